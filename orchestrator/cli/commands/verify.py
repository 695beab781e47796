"""`verify`: the proof that a run's attempts are one training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import asked_as, get_run, json_option, out, out_json, site_option
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.cli.services.proofs import Proof
    from orchestrator.cli.services.replay import Replay

REFUTED = 73
STEPS = 10
"""That a replay computes at most, unless the user says."""
_HELP = """Prove that RUN went on after each interruption exactly where it had been.

From what stands in the run directory, without a GPU: for each attempt the learning rate,
adapter, optimizer and random states that it found against those that were saved; the losses
of micro-batches that a stop gave up against those of the attempt that computed them again;
and over the whole run the order of samples.

With --replay, a copy of RUN also computes some of its steps once more, where RUN was trained,
from a checkpoint that is kept; what it computes is compared with what was recorded. The copy
is removed when nothing differs. RUN itself is only read.

Exit code 73 if anything differs.
"""
_EXAMPLES = """\b
Examples:
  qvl-orchestrate verify digits
  qvl-orchestrate verify digits --json | jq '.attempts[].checks[] | select(.result != "equal")'
  qvl-orchestrate verify digits --replay
  qvl-orchestrate verify digits --replay --from checkpoint-20 --steps 5
"""


@dataclass(frozen=True, slots=True)
class Asked:
    """Which run, and what of it is computed again."""

    run: str
    replay: bool
    ref: str | None
    steps: int | None
    site: Path | None
    keep: bool
    as_json: bool


@click.command("verify", help=_HELP, epilog=_EXAMPLES)
@click.argument("run")
@click.option("--replay", is_flag=True, help="Compute some steps once more and compare.")
@click.option("--from", "ref", metavar="CHECKPOINT",
              help="Where the replay begins; 0 = the run's beginning.  "
              "[default: the newest with steps after it]")  # fmt: skip
@click.option("--steps", type=click.IntRange(1, 100_000), help="How many it computes at most.  "
              f"[default: {STEPS}]")  # fmt: skip
@site_option
@click.option("--keep", is_flag=True, help="Keep the copy in any case.")
@json_option
@asked_as(Asked)
def command(asked: Asked) -> int:
    """Prove a run's continuity (see `_HELP`)."""
    from orchestrator.cli.services.proofs import gather, prove

    given = (asked.ref, asked.steps, asked.site)
    if not asked.replay and (given != (None, None, None) or asked.keep):
        raise UsageError("--from, --steps, --site and --keep are for --replay")
    chosen = get_run(asked.run)
    record = gather(chosen)
    proof = prove(chosen.run_id, record)
    if not asked.as_json:
        _print(proof)
    again = None
    if asked.replay:
        from orchestrator.cli.services.replay import compute_again

        again = compute_again(
            chosen,
            record,
            ref=asked.ref,
            steps=asked.steps or STEPS,
            site=asked.site,
            keep=asked.keep,
        )
        if not asked.as_json:
            _print_replay(again)
    if asked.as_json:
        out_json(_answer(proof, again))
    return 0 if proof.holds and (again is None or again.holds) else REFUTED


def _answer(proof: Proof, again: Replay | None) -> dict[str, Any]:
    from orchestrator.contract.jsonio import to_json

    answer: dict[str, Any] = to_json(proof)
    if again is not None:
        answer["replay"] = {**to_json(again), "holds": again.holds}
    return {**answer, "holds": proof.holds and (again is None or again.holds)}


def _print_replay(again: Replay) -> None:
    begin = f"the checkpoint of step {again.first}" if again.first else "the beginning"
    out(f"replayed from {begin} to step {again.last}")
    _lines(again.checks)
    if again.holds:
        out("replayed: what was recorded was computed again")
    else:
        out(f"NOT what was recorded; look at  qvl-orchestrate events {again.run_id}")


def _print(proof: Proof) -> None:
    tolerance = "bit for bit" if proof.tolerance == 0 else f"within {proof.tolerance:g}"
    out(f"{proof.run_id}: losses are compared {tolerance}")
    for attempt in proof.attempts:
        began = f"goes on after step {attempt.step}" if attempt.step else "begins anew"
        out(f"attempt {attempt.attempt} {began}")
        _lines(attempt.checks)
    out("the whole run")
    _lines(proof.checks)
    if not proof.holds:
        out("NOT one training: see what differs above")
    elif proof.interruptions:
        out("one training: nothing that was compared differs")
    else:
        out("never interrupted: there is nothing to prove")


def _lines(checks: Any) -> None:
    for check in checks:
        detail = f"  {check.detail}" if check.detail else ""
        out(f"  {check.result:<12}  {check.name}{detail}")
    if not checks:
        out("  nothing was interrupted that it could have computed again")
