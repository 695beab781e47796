"""Whether the ranks of this node get on: a clock for each, set anew by all that it finishes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

from orchestrator.contract.wire import Message

STEPS = 10
"""A rank that trains may take so many times its median step."""
SLOW = 3
"""So many times longer may last what has no pace yet: a stage of the start-up, the first step
(kernels are compiled, the file system is cold), and a save that training waits for."""
PAUSE_S = 5.0
"""If this process did not run for so long, it was stopped, and its ranks with it."""
_RECENT = 50
_WAITING = ("in all_", "in barrier", "in broadcast", "in monitored_barrier", "in reduce")
"""Where ranks wait for another one."""
_WORDS = {
    "training": "no step",
    "evaluating": "no batch of the evaluation",
    "saving": "no end of a save",
}


@dataclass(slots=True)
class _Pace:
    """What one rank does, since when, and how long its last steps took."""

    since: float
    doing: str = "assigned"
    step_since: float | None = None
    """When its last step ended, if it has done nothing but train since."""
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))


class Watch:
    """The clocks of one attempt.

    hang_s: the shortest time without a step that counts as a hang; 0 = nothing does
    """

    def __init__(self, hang_s: float) -> None:
        self._hang_s = hang_s
        self._beating: set[int] = set()
        """Local ranks that say what they do; those of older versions do not."""
        self._paces: dict[int, _Pace] = {}
        self._begun = False
        self._looked: float | None = None

    def begin(self, now: float) -> None:
        """The ranks are assigned: from now on they have something to do."""
        self._begun = True
        self._paces = {rank: _Pace(now) for rank in self._beating}

    def heard(self, rank: int, message: Message, now: float) -> None:
        """Take any message of a rank."""
        kind = message["t"]
        if kind == "hello" and message.get("beats"):
            self._beating.add(rank)
            if self._begun:
                self._paces[rank] = _Pace(now)
        pace = self._paces.get(rank)
        if pace is None:
            return
        if kind == "ending" or message.get("phase") == "stopping":
            # It leaves; its way out has limits of its own.
            del self._paces[rank]
        elif kind == "phase" and not pace.seconds and message["phase"] != "evaluating":
            pace.since, pace.doing = now, str(message["phase"])
        elif kind == "phase":
            _does(pace, str(message["phase"]), now)
        elif kind == "beat":
            _does(pace, str(message["doing"]), now)

    def overdue(self, now: float) -> str:
        """What has not happened for too long, in words; empty while all is well."""
        before, self._looked = self._looked, now
        if before is not None and now - before > PAUSE_S:
            for pace in self._paces.values():
                pace.since += now - before
                pace.step_since = None
        late = [p for p in self._paces.values() if now - p.since > self._limit(p)]
        if not late or not self._hang_s:
            return ""
        pace = min(late, key=lambda p: p.since)
        what = _WORDS.get(pace.doing, f"nothing after the stage {pace.doing}")
        return f"{what} for {now - pace.since:.0f} s"

    def _limit(self, pace: _Pace) -> float:
        if not pace.seconds or pace.doing == "saving":
            return SLOW * self._hang_s
        return max(self._hang_s, STEPS * median(pace.seconds))


def _does(pace: _Pace, doing: str, now: float) -> None:
    """`step`: a step has ended; `training`: a part of one has; else what begins or goes on."""
    if doing == "step":
        pace.seconds.append(now - (pace.since if pace.step_since is None else pace.step_since))
        pace.step_since = now
    elif doing != "training":
        pace.step_since = None
    elif pace.doing != "training":
        pace.step_since = now
    pace.since, pace.doing = now, "training" if doing == "step" else doing


def grouped(places: Iterable[tuple[int, str]]) -> str:
    """`rank 1 in read, ranks 0, 2 and 3 in all_reduce`: those first who wait for nobody, and the
    fewest, for they differ.
    """
    by_place: dict[str, list[int]] = {}
    for rank, place in sorted(places):
        by_place.setdefault(place, []).append(rank)

    def odd_first(item: tuple[str, list[int]]) -> tuple[bool, int, list[int]]:
        place, ranks = item
        return place.startswith(_WAITING), len(ranks), ranks

    groups = sorted(by_place.items(), key=odd_first)
    return ", ".join(f"{_ranks(ranks)} {place}" for place, ranks in groups)


def _ranks(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"rank {numbers[0]}"
    *most, last = map(str, numbers)
    return f"ranks {', '.join(most)} and {last}"
