"""`checkpoints`: list, verify, inspect, pull and prune the checkpoints of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import get_run, json_option, note, out, out_json
from orchestrator.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from orchestrator.contract.records import LogRecord
    from orchestrator.controller.run import Run
    from orchestrator.run_directory.runlog import LogView, RunLog

_HELP = """List the checkpoints of a run, verify, inspect, copy and prune them.

`qvl-orchestrate checkpoints RUN` is short for `qvl-orchestrate checkpoints list RUN`.
"""
_EXAMPLES = """\b
Examples:
  qvl-orchestrate checkpoints digits
  qvl-orchestrate checkpoints verify digits --json
  qvl-orchestrate checkpoints inspect digits 20
  qvl-orchestrate checkpoints pull digits latest ./adapters
  qvl-orchestrate checkpoints prune digits --dry-run
"""
_LIST_HELP = """List the checkpoints of RUN, oldest first.

\b
  committed  complete; a resume starts from the newest one
  retired    given up for newer ones, its files removed
  bad        found damaged, never used again, its files kept

--verify is `qvl-orchestrate checkpoints verify RUN`.
"""
_VERIFY_HELP = """Read every file of the committed checkpoints of RUN and compare its hash.

With STEP... those steps only. Exit code 73 if one is damaged. Files that no manifest names are
pointed out; nothing ever loads them. Nothing is changed: the next attempt verifies for itself.
"""
_INSPECT_HELP = """Show what a checkpoint says of itself: place in training, shape of the job,
sizes, and the facts that the resume contract compares. STEP is a number or `latest`.
"""
_PULL_HELP = """Copy the checkpoint of STEP (a number or `latest`) to DIR/checkpoint-<step>.

Also from S3. Every byte is verified while it is copied, and the folder has its name only once
it is whole: PEFT, and a plain Trainer with resume_from_checkpoint, can then read it.
"""
_PRUNE_HELP = """Remove the checkpoints of RUN that it could do without, and what replaced
attempts have left.

The newest --keep stay, and nothing goes unless the newest was read and found right. Refused
while the run is at work: it prunes by itself then.
"""


class _ListByDefault(click.Group):
    """What is no subcommand is a run to list."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("-h", "--help")):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group("checkpoints", cls=_ListByDefault, help=_HELP, epilog=_EXAMPLES)
def command() -> None:
    """Checkpoints (see `_HELP`)."""


def _examples(*lines: str) -> str:
    return "\b\nExample:\n" + "\n".join(f"  qvl-orchestrate checkpoints {line}" for line in lines)


_attempt_option = click.option(
    "--attempt", type=click.IntRange(min=1), help="Of this attempt, where several saved the step."
)


@command.command("list", help=_LIST_HELP, epilog=_examples("list digits --json"))
@click.argument("run")
@click.option("--verify", is_flag=True, help="Read and hash the files of the committed ones.")
@json_option
def list_command(*, run: str, verify: bool, as_json: bool) -> int:
    """List checkpoints (see `_LIST_HELP`)."""
    if verify:
        return _verify(get_run(run), (), as_json)
    return _answer(get_run(run), None, (), as_json)


@command.command("verify", help=_VERIFY_HELP, epilog=_examples("verify digits", "verify digits 20"))
@click.argument("run")
@click.argument("steps", metavar="[STEP]...", nargs=-1, type=click.IntRange(min=0))
@json_option
def verify_command(*, run: str, steps: tuple[int, ...], as_json: bool) -> int:
    """Verify checkpoints (see `_VERIFY_HELP`)."""
    return _verify(get_run(run), steps, as_json)


@command.command("inspect", help=_INSPECT_HELP, epilog=_examples("inspect digits latest --json"))
@click.argument("run")
@click.argument("step", default="latest")
@_attempt_option
@json_option
def inspect_command(*, run: str, step: str, attempt: int | None, as_json: bool) -> int:
    """Inspect a checkpoint (see `_INSPECT_HELP`)."""
    from orchestrator.cli.output.checkpoints import print_inspection, row, sizes
    from orchestrator.contract.jsonio import to_json
    from orchestrator.operations.checkpoints import find
    from orchestrator.run_directory.checkpoints import extra_files, read_manifest

    chosen = get_run(run)
    record = find(_read(chosen)[1], _step(step), attempt)
    commit = record.commit()
    manifest = read_manifest(chosen.storage, commit.directory, commit.manifest_hash)
    found = {
        **row(chosen, record, "committed"),
        "sizes": sizes(manifest),
        "extra_files": extra_files(chosen.storage, commit.directory, manifest),
        "manifest": to_json(manifest),
    }
    out_json(found) if as_json else print_inspection(found)
    return 0


@command.command("pull", help=_PULL_HELP, epilog=_examples("pull digits 20 ./pulled"))
@click.argument("run")
@click.argument("step")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@_attempt_option
@json_option
def pull_command(*, run: str, step: str, folder: Path, attempt: int | None, as_json: bool) -> int:
    """Pull a checkpoint (see `_PULL_HELP`)."""
    from orchestrator.cli.output.checkpoints import reading, row
    from orchestrator.operations.checkpoints import find, pull

    chosen = get_run(run)
    record = find(_read(chosen)[1], _step(step), attempt)
    with reading([record], f"copying step {record.commit().step}") as progress:
        target = pull(chosen, record, folder.absolute(), progress.add)
    if as_json:
        out_json({**row(chosen, record, "committed"), "copy": str(target)})
    else:
        out(f"step {record.commit().step} is in {target}, verified")
    return 0


@command.command("prune", help=_PRUNE_HELP, epilog=_examples("prune digits --dry-run"))
@click.argument("run")
@click.option("--dry-run", is_flag=True, help="Show what would go; change nothing.")
@click.option("--keep", type=click.IntRange(min=1), help="As the job's keep_last if not given.")
@json_option
def prune_command(*, run: str, dry_run: bool, keep: int | None, as_json: bool) -> int:
    """Prune checkpoints (see `_PRUNE_HELP`)."""
    from orchestrator.cli.output.checkpoints import reading, row
    from orchestrator.cli.output.table import size
    from orchestrator.operations.checkpoints import prune, surplus
    from orchestrator.run_directory.checkpoints import live_commits

    chosen = get_run(run, alone=True)
    newest = live_commits(_read(chosen)[1])[-1:]
    with reading(newest, "verifying the newest") as progress:
        found = (surplus if dry_run else prune)(chosen, keep, progress.add)
    answer = {
        "dry_run": dry_run,
        "checkpoints": [
            row(chosen, r, "committed" if dry_run else "retired") for r in found.retire
        ],
        "leftovers": [{"path": p, "size_bytes": n} for p, n in sorted(found.leftovers.items())],
        "half_written": [u.path for u in found.half_written],
        "size_bytes": found.size_bytes,
    }
    if as_json:
        out_json(answer)
        return 0
    for record in found.retire:
        out(f"step {record.commit().step}, attempt {record.attempt}: {record.commit().directory}")
    for path, count in sorted(found.leftovers.items()):
        out(f"left over, {size(count)}: {path}")
    for upload in found.half_written:
        out(f"half written: {upload.path}")
    out(f"{'would free' if dry_run else 'freed'} {size(found.size_bytes)}")
    return 0


def _step(text: str) -> int | None:
    """A step, or None for the newest."""
    if text == "latest":
        return None
    if text.isascii() and text.isdigit() and len(text) < 19:
        return int(text)
    raise UsageError(f"{text!r} is neither a step nor `latest`")


def _read(run: Run) -> tuple[RunLog, LogView]:
    from orchestrator.run_directory.runlog import RunLog

    log = RunLog(run.storage, run.clock)
    view = log.read()
    for seq in view.unreadable:
        note(f"warning: record {seq} of the run's log cannot be read and is passed over")
    return log, view


def _verify(run: Run, steps: tuple[int, ...], as_json: bool) -> int:
    """Reads what is committed, then looks at the log again: what was retired while we read it
    is not damaged.
    """
    from orchestrator.cli.output.checkpoints import reading
    from orchestrator.operations.checkpoints import THREADS, find, is_elsewhere
    from orchestrator.run_directory.checkpoints import extra_files, live_commits, verify

    view = _read(run)[1]
    for step in steps:
        find(view, step)
    wanted = [r for r in live_commits(view) if not steps or r.commit().step in steps]
    found: dict[int, CheckpointError | list[str] | None] = {}
    with reading(wanted, "verifying") as progress:
        for record in wanted:
            commit = record.commit()
            progress.what = f"verifying step {commit.step}"
            try:
                if is_elsewhere(run.storage, record):
                    found[record.seq] = None
                    continue
                verified = verify(run.storage, record, threads=THREADS, on_file=progress.add)
                found[record.seq] = extra_files(run.storage, commit.directory, verified.manifest)
            except CheckpointError as fault:
                found[record.seq] = fault
    return _answer(run, found, steps, as_json)


def _answer(
    run: Run,
    verified: dict[int, CheckpointError | list[str] | None] | None,
    steps: tuple[int, ...],
    as_json: bool,
) -> int:
    """Rows of all checkpoints (of `steps`); with what verification has found, if it was asked."""
    from orchestrator.cli.output.checkpoints import print_rows, row
    from orchestrator.operations.checkpoints import states

    view = _read(run)[1]
    known, rows, faults = states(view), [], []
    for record in view.records:
        if record.seq not in known or (steps and record.commit().step not in steps):
            continue
        line = row(run, record, known[record.seq])
        if verified is not None:
            result = verified.get(record.seq) if line["state"] == "committed" else None
            line |= _judged(record, result)
            if isinstance(result, CheckpointError):
                faults.append(result)
        rows.append(line)
    out_json(rows) if as_json else print_rows(rows)
    for fault in faults:
        note(f"error: {fault.message}")
    return CheckpointError.exit_code if faults else 0


def _judged(record: LogRecord, result: CheckpointError | list[str] | None) -> dict[str, Any]:
    """What verification adds to a row; None: it was not read."""
    if result is None:
        return {"verified": None}
    if isinstance(result, CheckpointError):
        return {"verified": False}
    for name in result:
        note(f"warning: {record.commit().directory}/{name} belongs to no checkpoint")
    return {"verified": True, "extra_files": result}
