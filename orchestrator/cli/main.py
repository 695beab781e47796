"""Entry point: lazily loaded commands, and the one place where errors become exit codes."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from orchestrator import __version__
from orchestrator.cli import streams
from orchestrator.cli.common import note, note_text, out_json
from orchestrator.errors import InternalError, QvlError, StorageError, UserError

INTERRUPTED = 130
_EPILOG = """Every command takes --help, which shows an example.

\b
Exit codes:
  0   done
  1   an internal error
  2   the command line is wrong
  3   no such run
  69  a backend or a storage does not answer
  73  a checkpoint is damaged or refused
  78  the job file or the site file is wrong

\b
Completion of commands and options, in bash (zsh_source, fish_source for the others):
  eval "$(_QVL_ORCHESTRATE_COMPLETE=bash_source qvl-orchestrate)"
"""
COMMANDS = {
    "init": "Write a commented job.yaml to start from.",
    "submit": "Submit a job file as a new run.",
    "data": "Check a data set before it costs GPU time.",
    "status": "Show runs at a glance.",
    "logs": "Show what the ranks print, over all attempts.",
    "events": "Show what happened to a run.",
    "metrics": "Show the training curve over all attempts.",
    "checkpoints": "List a run's checkpoints, and verify them.",
    "preempt": "Deliver a notice as a scheduler would.",
    "cancel": "Cancel a run for good; it saves first if it can.",
    "resume": "Go on with a run that is held, failed or cancelled.",
    "repair": "Show what is damaged in a run, and rebuild its log.",
    "rm": "Delete a run and its directory.",
    "adopt": "Enter run directories into this machine's registry.",
    "controller": "Look after runs, once (for cron) or continuously.",
    "nodes": "Show or clear the nodes that new jobs keep away from.",
    "export": "Write a run's adapter as a folder that plain PEFT loads.",
    "merge": "Write the base model with a run's adapter merged into it.",
    "generate": "Ask a trained model a question about a picture.",
    "verify": "Prove that a run's attempts are one training.",
    "template": "Look at, check and start a site's batch template.",
    "drill": "Preempt a short copy of a job on purpose, and compare.",
    "doctor": "Check what would endanger a run here, and how to cure it.",
    "schema": "Print the JSON schema of job.yaml.",
    "version": "Show versions.",
}


_MACHINE = frozenset({
    errno.EACCES, errno.EDQUOT, errno.EIO, errno.EISDIR, errno.ELOOP, errno.EMFILE,
    errno.ENAMETOOLONG, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.ENOTCONN, errno.ENOTDIR,
    errno.EPERM, errno.EROFS, errno.ESTALE, errno.ETIMEDOUT,
})  # fmt: skip
"""Errors that the machine gives for its own reasons."""
BROKEN_PIPE = 128 + 13
"""As a shell shows a program that SIGPIPE has ended."""


class LazyGroup(click.Group):
    """Commands live in `orchestrator.cli.commands.<name>` as `command`; loaded when used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"orchestrator.cli.commands.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """From the table above, so that help loads no command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name not in COMMANDS and not name.startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(name, COMMANDS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            ctx.fail(f"No such command {name!r}.{hint}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Fine-tune Qwen-VL models with Q-LoRA on preemptible GPUs as safely as on reserved ones."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; never a traceback for the user.

    SIGPIPE stays ignored, as Python has it: a connection that breaks is an error to be told. Only
    a reader of our output who leaves early ends the command without a word.
    """
    streams.prepare()
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:
        streams.give_up_stdout()
        return BROKEN_PIPE
    except SystemExit:  # what click makes of a broken pipe
        return BROKEN_PIPE
    except OSError as fault:
        return _tell(streams.lost(fault), as_json=False)
    return code


def _run(args: Sequence[str]) -> int:
    as_json = "--json" in args
    try:
        result = cli.main(args=list(args), prog_name="qvl-orchestrate", standalone_mode=False)
    except click.exceptions.Exit as left:
        return left.exit_code
    except click.Abort:
        if as_json:
            _print_error("aborted", None, INTERRUPTED)
        note("aborted")
        return INTERRUPTED
    except click.ClickException as fault:
        if as_json:
            _print_error(fault.format_message(), None, fault.exit_code)
        usage = io.StringIO()
        fault.show(usage)
        note_text(usage.getvalue().rstrip("\n"))
        return fault.exit_code
    except QvlError as fault:
        return _tell(fault, as_json)
    except BrokenPipeError:
        raise
    except Exception as fault:  # noqa: BLE001 - the last line of defence of the command line
        if (lost := streams.fault_of_stdout()) is not None:
            return _tell(lost, as_json=False)
        return _tell(_of_this_machine(fault) or _of_ours(fault, args), as_json)
    return result if isinstance(result, int) else 0


def _tell(fault: QvlError, as_json: bool) -> int:
    ours = isinstance(fault, InternalError)
    message = f"internal error: {fault.message}" if ours else fault.message
    if as_json:
        _print_error(message, fault.hint, fault.exit_code)
    head = "" if ours else "error: "
    hint = f"\n  hint: {fault.hint}" if fault.hint else ""
    note_text(f"{head}{message}{hint}")
    return fault.exit_code


def _of_this_machine(fault: Exception) -> QvlError | None:
    """For what the machine refuses us (space, rights, a disk), which is no fault of ours."""
    if not isinstance(fault, OSError) or fault.errno not in _MACHINE:
        return None
    from orchestrator.registry import faults
    from orchestrator.registry.store import default_state_dir

    try:
        state = default_state_dir()
    except UserError as homeless:
        return homeless
    if fault.filename is not None and Path(os.fsdecode(fault.filename)).is_relative_to(state):
        return faults.of_files(state, fault)
    if fault.filename is None:
        return StorageError(f"the output, or a file, cannot be written: {fault.strerror}")
    hint = "free some space there" if fault.errno in faults.FULL else None
    return StorageError(
        f"{os.fsdecode(fault.filename)} cannot be used: {fault.strerror}", hint=hint
    )


def _of_ours(fault: Exception, args: Sequence[str]) -> InternalError:
    report = _write_report(args)
    return InternalError(
        f"{type(fault).__name__}: {fault}",
        hint=None if report is None else f"please report it, with {report}",
    )


def _print_error(message: str, hint: str | None, exit_code: int) -> None:
    out_json({"error": {"message": message, "hint": hint, "exit_code": exit_code}})


def _write_report(args: Sequence[str]) -> Path | None:
    """The traceback of the current exception in a file (0600) below the state folder.

    None if it cannot be written: a full disk may be what went wrong.
    """
    from orchestrator.clock import SystemClock, iso
    from orchestrator.registry.store import default_state_dir

    now = iso(SystemClock().now())
    head = f"qvl-orchestrate {__version__}, Python {sys.version}\n{now}\n{list(args)}\n\n"
    try:
        path = default_state_dir() / "crashes" / f"{now.replace(':', '')}-{os.getpid()}.txt"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(head + traceback.format_exc())
    except (OSError, UserError):
        return None
    return path


if __name__ == "__main__":
    sys.exit(main())
