"""From how the ranks ended to this node's verdict. Pure."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.contract.codes import CRASH, ExitCode, normalize

_PRECEDENCE = (
    ExitCode.NOT_OWNER,
    ExitCode.OUT_OF_MEMORY,
    ExitCode.REFUSED,
    ExitCode.STORAGE,
    ExitCode.PREEMPTED,
    ExitCode.PREEMPTED_NOTHING_NEW,
)


@dataclass(frozen=True, slots=True)
class RankEnd:
    """How one rank ended: exit status (negative = signal), and its own last words."""

    status: int | None
    code: int | None = None
    reason: str = ""
    message: str = ""
    at: float = 0.0
    """Monotonic second of its last words, or of its death if it had none."""


@dataclass(frozen=True, slots=True)
class NodeOutcome:
    """This node's part of the verdict."""

    code: int
    reason: str
    message: str


_REASONS = {
    ExitCode.DONE: "done",
    ExitCode.PREEMPTED: "preempted",
    ExitCode.PREEMPTED_NOTHING_NEW: "preempted",
    ExitCode.OUT_OF_MEMORY: "oom",
    ExitCode.REFUSED: "refused",
    ExitCode.NOT_OWNER: "not-owner",
    ExitCode.STORAGE: "storage",
}


def node_outcome(
    ends: Sequence[RankEnd], *, notice: str | None, oom_kills: int = 0, hang: str = ""
) -> NodeOutcome:
    """One code for the node. After a notice, errors of ranks are no crash.

    oom_kills: processes of this job that the kernel killed at their memory limit
    hang: what had stood still, and where, when the ranks were killed for it

    A rank's own `ending` message wins over its exit status, which a library may change on
    the way out.
    """
    codes = [_code(end) for end in ends]
    if notice is not None:
        return _after_notice(ends, codes)
    if hang:
        return NodeOutcome(CRASH, "hang", hang)
    for code in _PRECEDENCE:
        if code in codes:
            return _named(code, ends, codes)
    if all(code == ExitCode.DONE for code in codes):
        return NodeOutcome(ExitCode.DONE, "done", "")
    return _crash(ends, codes, oom_kills)


def _code(end: RankEnd) -> int:
    if end.code is not None:
        return normalize(end.code)
    return CRASH if end.status is None else normalize(end.status)


def _after_notice(ends: Sequence[RankEnd], codes: Sequence[int]) -> NodeOutcome:
    for code in (ExitCode.NOT_OWNER, ExitCode.PREEMPTED):
        if code in codes:
            return _named(code, ends, codes)
    if all(code == ExitCode.DONE for code in codes):
        return NodeOutcome(ExitCode.DONE, "done", "")
    words = next((e.message for e in ends if e.message), "")
    return NodeOutcome(ExitCode.PREEMPTED_NOTHING_NEW, "preempted", words)


def _named(code: ExitCode, ends: Sequence[RankEnd], codes: Sequence[int]) -> NodeOutcome:
    end = next(e for e, c in zip(ends, codes, strict=True) if c == code)
    return NodeOutcome(code, end.reason or _REASONS[code], end.message)


def _crash(ends: Sequence[RankEnd], codes: Sequence[int], oom_kills: int) -> NodeOutcome:
    """Names the rank that failed first: the others fail because it has left them."""
    failed = [(i, e) for i, (e, c) in enumerate(zip(ends, codes, strict=True)) if c == CRASH]
    rank, end = min(failed, key=lambda pair: pair[1].at)
    words = end.message or f"ended with {_status_text(end.status)}"
    if oom_kills and end.status == -signal.SIGKILL and not end.message:
        words = "killed by the kernel: the memory limit of this job was reached"
    return NodeOutcome(CRASH, end.reason or "crash", f"rank {rank}: {words}")


def _status_text(status: int | None) -> str:
    if status is None:
        return "no status"
    return f"signal {-status}" if status < 0 else f"exit code {status}"


def verdict_fields(
    outcome: NodeOutcome,
    ends: Sequence[RankEnd],
    *,
    notice: str | None,
    notice_to_exit_s: float | None,
) -> Mapping[str, object]:
    """The message `outcome` for the helper."""
    return {
        "code": int(outcome.code),
        "reason": outcome.reason,
        "message": outcome.message[:4000],
        "rank_codes": [e.status for e in ends],
        "notice": notice,
        "notice_to_exit_s": notice_to_exit_s,
    }
