"""`verify`: the proof that a run's attempts are one training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import get_run, json_option, out, out_json

if TYPE_CHECKING:
    from orchestrator.cli.proofs import Proof

REFUTED = 73
_HELP = """Prove that RUN went on after each interruption exactly where it had been.

From what stands in the run directory, without a GPU: for each attempt the learning rate,
adapter, optimizer and random states that it found against those that were saved; the losses
of micro-batches that a stop gave up against those of the attempt that computed them again;
and over the whole run the order of samples. Exit code 73 if anything differs.
"""
_EXAMPLES = """\b
Examples:
  qvl-orchestrate verify digits
  qvl-orchestrate verify digits --json | jq '.attempts[].checks[] | select(.result != "equal")'
"""


@click.command("verify", help=_HELP, epilog=_EXAMPLES)
@click.argument("run")
@json_option
def command(*, run: str, as_json: bool) -> int:
    """Prove a run's continuity (see `_HELP`)."""
    from orchestrator.cli.proofs import prove

    proof = prove(get_run(run))
    if as_json:
        out_json(_answer(proof))
    else:
        _print(proof)
    return 0 if proof.holds else REFUTED


def _answer(proof: Proof) -> dict[str, Any]:
    from orchestrator.contract.jsonio import to_json

    answer: dict[str, Any] = to_json(proof)
    return {**answer, "holds": proof.holds}


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
