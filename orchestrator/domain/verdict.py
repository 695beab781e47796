"""How an attempt ended: a function of what is stored, whatever the processes returned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.contract.codes import CRASH, ExitCode
from orchestrator.contract.records import (
    Ending,
    LogRecord,
    SlotRecord,
    StopRecord,
    VerdictRecord,
)

PREEMPTED = "preempted"
CANCELLED = "cancelled"
STORAGE = "storage"
CANCEL = "cancel"
"""The notice of a cancel, beside the names of signals."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Exit code of an attempt as a whole, a short reason and a message for a person."""

    code: int
    reason: str
    message: str = ""

    @property
    def preempted(self) -> bool:
        """True if capacity was taken away; a cancel is served alike, but is none."""
        return self.code in (75, 76) and self.reason == PREEMPTED


def attempt_verdict(
    attempt: int,
    records: Sequence[LogRecord],
    slots: Sequence[SlotRecord],
    stops: Sequence[StopRecord],
    verdicts: Sequence[VerdictRecord],
    ending: Ending = "",
) -> Verdict:
    """The verdict of an attempt that has ended on every node.

    ending: how the scheduler says that its job ended; it counts where nothing was stored, which
    a full storage may have refused

    A claimed slot without a verdict counts as killed. Errors after a notice are no crash.
    Every attempt but the newest is fenced by its successor in the end; it counts as fenced
    only if its own processes met the fence.
    """
    if any(r.kind == "done" and r.attempt == attempt for r in records):
        return Verdict(ExitCode.DONE, "done")
    if _committed_at_notice(attempt, records, verdicts):
        return _served(ExitCode.PREEMPTED, stops, verdicts)
    fence = max((r.attempt for r in records if r.kind == "fence"), default=0)
    if fence > attempt and any(v.code == ExitCode.NOT_OWNER for v in verdicts):
        return Verdict(ExitCode.NOT_OWNER, "fenced", f"replaced by attempt {fence}")
    if stops or any(v.notice for v in verdicts):
        return _served(ExitCode.PREEMPTED_NOTHING_NEW, stops, verdicts)
    if not verdicts and ending in ("preempted", "stopped"):
        return Verdict(ExitCode.PREEMPTED_NOTHING_NEW, PREEMPTED, "it left no verdict")
    if not verdicts and ending == "storage":
        return Verdict(ExitCode.STORAGE, STORAGE, "the run storage took no writes")
    return _without_notice(slots, verdicts)


def _committed_at_notice(
    attempt: int, records: Sequence[LogRecord], verdicts: Sequence[VerdictRecord]
) -> bool:
    """A commit for the notice, or one that the notice met on its way, as the ranks say."""
    commits = [r.commit() for r in records if r.kind == "commit" and r.attempt == attempt]
    said = any(v.code == ExitCode.PREEMPTED for v in verdicts)
    return any(said or c.trigger == "notice" for c in commits)


def _without_notice(slots: Sequence[SlotRecord], verdicts: Sequence[VerdictRecord]) -> Verdict:
    by_code = {v.code: v for v in verdicts}
    for code in (ExitCode.OUT_OF_MEMORY, ExitCode.REFUSED, ExitCode.STORAGE):
        if code in by_code:
            return Verdict(code, by_code[code].reason, by_code[code].message)
    crash = next((v for v in verdicts if v.code not in (0, ExitCode.NOT_OWNER)), None)
    if crash is not None:
        return Verdict(CRASH, crash.reason, crash.message)
    silent = sorted({s.slot for s in slots} - {v.slot for v in verdicts})
    if silent or not verdicts:
        names = ", ".join(map(str, silent)) or "none claimed"
        return Verdict(CRASH, "killed", f"no verdict from node(s): {names}")
    return Verdict(CRASH, "no-done", "the processes ended without finishing the run")


def _served(
    code: ExitCode, stops: Sequence[StopRecord], verdicts: Sequence[VerdictRecord]
) -> Verdict:
    notices = {s.reason for s in stops} | {v.notice for v in verdicts if v.notice}
    cancelled = CANCEL in notices or any(v.cause == CANCELLED for v in verdicts)
    return Verdict(code, CANCELLED if cancelled else PREEMPTED, ", ".join(sorted(notices)))
