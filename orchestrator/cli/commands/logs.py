"""`logs`: what the ranks of a run print."""

from __future__ import annotations

import heapq
import re
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from orchestrator.cli import escape
from orchestrator.cli.common import get_run, json_option, note, note_text, out_json, out_text
from orchestrator.cli.services.tail import Tail, until_settled
from orchestrator.errors import QvlError, UsageError

if TYPE_CHECKING:
    from orchestrator.contract.records import ClaimRecord
    from orchestrator.controller.run import Run

_HELP = """Show what the ranks of RUN printed: the newest attempt that printed anything, all ranks.

With -f, go on across attempts until the run has ended or waits for a person. Where no rank
has printed anything, the output of the run's agent on this machine is shown instead. What ended
an attempt by failure is named at the end, with the rank that failed first.
"""
_EXAMPLES = """\b
Examples:
  qvl-orchestrate logs -f digits
  qvl-orchestrate logs digits --attempt 2 --rank 0 -n 50
"""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of output; without attempt, rank and time where the agent printed it."""

    attempt: int | None
    rank: int | None
    time: str | None
    text: str


@click.command("logs", help=_HELP, epilog=_EXAMPLES)
@click.argument("run")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run is settled.")
@click.option("--attempt", type=click.IntRange(min=1), help="This attempt only.")
@click.option("--rank", type=click.IntRange(min=0), help="This rank only.")
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), help="Begin with the last N lines of each rank."
)
@json_option
def command(
    *,
    run: str,
    follow: bool,
    attempt: int | None,
    rank: int | None,
    lines: int | None,
    as_json: bool,
) -> int:
    """Show output (see `_HELP`)."""
    chosen = get_run(run)
    source = _Source(chosen, attempt, rank)
    several = (rank is None and chosen.entry.gpus > 1) or (follow and attempt is None)
    shown = _print(_last(source.lines(), lines), several=several, as_json=as_json)
    if follow:
        with suppress(KeyboardInterrupt):
            for _ in until_settled(chosen):
                shown |= _print(source.lines(), several=several, as_json=as_json)
    for words in _failures(chosen, source.shown):
        note_text(words)
    if not shown and rank is not None:
        note(f"rank {rank} has printed nothing")
    elif not shown:
        note("no rank has printed anything; what the agent says:")
        _print(_last(source.agent_lines(), lines), several=False, as_json=as_json)
    elif shown and attempt is None and rank is None:
        for line in _unclaimed(chosen):
            note(line.text)
    return 0


def _failures(run: Run, shown: Collection[int]) -> list[str]:
    """What ended these attempts, if that was a failure: the ranks that went down with the one that
    failed first had the last word.
    """
    from orchestrator.contract.codes import ExitCode
    from orchestrator.run_directory.attempts import read_verdicts

    fine = (ExitCode.DONE, ExitCode.PREEMPTED, ExitCode.PREEMPTED_NOTHING_NEW, ExitCode.NOT_OWNER)
    found = []
    for attempt in sorted(shown):
        failed = [v for v in read_verdicts(run.storage, attempt) if v.code not in fine]
        if failed:
            first = min(failed, key=lambda v: v.time)
            words = ": ".join(filter(None, (first.reason, first.message)))
            found.append(f"attempt {attempt} failed: {words}")
    return found


def _unclaimed(run: Run) -> list[Line]:
    """What is known of starts since the newest attempt that claimed none: why their agents left."""
    from orchestrator.contract import layout
    from orchestrator.controller.observe import observe
    from orchestrator.run_directory.attempts import read_claims
    from orchestrator.run_directory.segments import read_segments

    claimed = max((c.submission for c in read_claims(run.storage)), default=0)
    found = []
    for _, event in read_segments(run.storage, layout.run_events("controller")):
        data = event.get("data") or {}
        ended = int(data.get("submission") or 0) - 1
        if event["kind"] == "requeued" and ended > claimed and data.get("detail"):
            text = f"submission {ended} claimed no attempt: {data['detail']}"
            found.append(Line(None, None, event["time"], text))
    with suppress(QvlError):
        facts = observe(run).facts
        if facts.backend == "gone" and not facts.claimed and facts.words:
            text = f"submission {facts.newest_submission} claimed no attempt: {facts.words}"
            found.append(Line(None, None, None, text))
    return found


class _Source:
    """New lines of the chosen attempts and ranks, in order."""

    def __init__(self, run: Run, attempt: int | None, rank: int | None) -> None:
        self._run = run
        self._attempt = attempt
        self._rank = rank
        self._tail = Tail(run.storage)
        self._first: int | None = attempt
        self.shown: set[int] = set()
        """Attempts of which there were lines."""
        if rank is not None and rank >= run.entry.gpus:
            raise UsageError(
                f"run {run.run_id} has no rank {rank}",
                hint=f"it has {run.entry.gpus}, counted from 0",
            )
        if attempt is not None and attempt not in {c.attempt for c in self._claims()}:
            raise UsageError(f"run {run.run_id} has no attempt {attempt}")

    def lines(self) -> Iterator[Line]:
        """What has come since the last call; at first the newest attempt that has any."""
        numbers = [c.attempt for c in self._claims()]
        if self._first is None:
            self._first = next((n for n in reversed(numbers) if self._streams(n)), None)
        if self._first is None:
            return
        if self._attempt is not None:
            numbers = [self._attempt]
        # An attempt may still get its last lines while the next one starts, never later.
        first = max(self._first, numbers[-1] - 1)
        for number in numbers:
            if number >= first:
                ranks = (self._stream(number, *found) for found in self._streams(number))
                yield from heapq.merge(*ranks, key=lambda line: (line.time or "", line.rank or 0))

    def agent_lines(self) -> Iterator[Line]:
        """Output of the newest agent that this machine knows (of --attempt: that one's)."""
        claims = {c.attempt: c for c in self._claims()}
        pattern = f"{self._run.run_id}-*/agent.log"
        files = {
            int(path.parent.name.rpartition("-")[2]): path
            for path in (self._run.registry.state_dir / "jobs").glob(pattern)
            if path.parent.name.removeprefix(f"{self._run.run_id}-").isdecimal()
        }
        wanted = max(files, default=0)
        if self._attempt is not None:
            wanted = claims[self._attempt].submission
        if wanted in files:
            for line in files[wanted].read_bytes().splitlines():
                yield Line(self._attempt, None, None, line.decode(errors="replace"))
        elif self._attempt is None:
            yield from _unclaimed(self._run)

    def _claims(self) -> list[ClaimRecord]:
        from orchestrator.run_directory.attempts import read_claims

        return read_claims(self._run.storage)

    def _streams(self, attempt: int) -> list[tuple[int, str]]:
        """(rank, folder) of an attempt's output, by rank."""
        from orchestrator.contract import layout

        found = []
        for folder in self._tail.streams(f"{layout.attempt_dir(attempt)}logs/"):
            named = re.search(r"/rank-(\d+)/$", folder)
            if named is not None and self._rank in (None, int(named[1])):
                found.append((int(named[1]), folder))
        return sorted(found)

    def _stream(self, attempt: int, rank: int, folder: str) -> Iterator[Line]:
        time = ""
        for raw in self._tail.new(folder):
            stamp, _, text = raw.decode(errors="replace").partition(" ")
            if re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", stamp):
                time = stamp
            else:  # the rest of a line that was cut by a carriage return
                text = raw.decode(errors="replace")
            self.shown.add(attempt)
            yield Line(attempt, rank, time, text)


def _last(lines: Iterable[Line], count: int | None) -> Iterable[Line]:
    """The last `count` of each rank, in their order."""
    if count is None:
        return lines
    kept: dict[int | None, deque[tuple[int, Line]]] = defaultdict(lambda: deque(maxlen=count))
    for number, line in enumerate(lines):
        kept[line.rank].append((number, line))
    return [line for _, line in heapq.merge(*kept.values(), key=lambda pair: pair[0])]


def _print(lines: Iterable[Line], *, several: bool, as_json: bool) -> bool:
    """True if there was anything to print."""
    line = None
    for line in lines:
        if as_json:
            answer = {"attempt": line.attempt, "rank": line.rank, "time": line.time}
            out_json({**answer, "line": line.text})
        else:
            mark = f"[a{line.attempt} r{line.rank}] " if several else ""
            out_text(f"{mark}{escape.printed(line.text)}\n")
    return line is not None
