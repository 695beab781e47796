"""What becomes of a hang: stacks into the logs, then one sentence for the verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from orchestrator.agent import stacks
from orchestrator.agent.watchdog import grouped

ANSWER_S = 2.0
"""Time for the ranks to write their stacks; then as much for their children."""


class Hang:
    """One hang, from its notice to its sentence.

    words: what has not happened
    pids: processes of the ranks of this node, by local rank
    first: number of local rank 0 among all ranks
    write: puts a line into a rank's log
    """

    def __init__(
        self,
        words: str,
        pids: Mapping[int, int],
        first: int,
        write: Callable[[int, str], None],
        now: float,
    ) -> None:
        self.sentence = ""
        """Known once `turn` has said True."""
        self._words = words
        self._pids = pids
        self._first = first
        self._write = write
        self._since = now
        self._lines: dict[int, list[str]] = {rank: [] for rank in pids}
        self._heard = True
        for pid in pids.values():
            stacks.ask(pid)

    def line(self, rank: int, text: str) -> None:
        """A rank has written this."""
        if self._heard and rank in self._lines:
            self._lines[rank].append(text)

    def turn(self, now: float) -> bool:
        """True once all is known."""
        if self._heard and now >= self._since + ANSWER_S:
            self._heard = False
            self._judge()
            for pid in self._pids.values():
                for child in stacks.descendants(pid):
                    stacks.ask(child)
        return now >= self._since + 2 * ANSWER_S

    def _judge(self) -> None:
        places = []
        for rank, pid in self._pids.items():
            place = stacks.place(self._lines[rank])
            if place is None:
                place, told = stacks.seen_from_outside(pid)
                for text in told:
                    self._write(rank, text)
            places.append((self._first + rank, place))
        self.sentence = f"{self._words}, {grouped(places)}"
