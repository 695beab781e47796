"""Tables of the measurements in Markdown, with the goals beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks import local, quantized
from benchmarks.measure import Series, Table


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure and what it should be; `limit` None = reported without a goal."""

    what: str
    value: float
    limit: float | None
    least: bool = False
    """The limit is the smallest good value, not the largest."""
    unit: str = "x"

    @property
    def met(self) -> bool | None:
        if self.limit is None:
            return None
        return self.value >= self.limit if self.least else self.value <= self.limit

    def row(self) -> tuple[str, ...]:
        sign = "at least" if self.least else "at most"
        limit = "" if self.limit is None else f"{sign} {self.limit:g} {self.unit}"
        word = {True: "met", False: "**missed**", None: ""}[self.met]
        return self.what, f"{self.value:.3g} {self.unit}", limit, word


def rows(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in body), ""]


def goals(found: Iterable[Goal]) -> list[str]:
    """Goals, and whether they were met."""
    return rows(("figure", "measured", "goal", ""), (goal.row() for goal in found))


def saves(table: Table, title: str) -> list[str]:
    """Savers and loaders of one size, in seconds and as multiples of the floor."""
    floor = table.median(local.FLOOR, "durable")
    body = []
    for case, series in table.series.items():
        returns, durable = series["returns"], series.get("durable")
        last = ("", "") if durable is None else (_ms(durable), f"{durable.median / floor:.2f}")
        body.append((case, _ms(returns), *last))
    head = ("saver", "returns, ms (p90)", "durable, ms (p90)", "durable / floor")
    return [f"### {title}", "", *rows(head, body), *_skipped(table)]


def save_goals(table: Table, size: str, *, small: bool) -> list[Goal]:
    """What issue 3 asks of saves and loads of one size; `small` states only of the notice."""
    peers = _peers(table)
    notice = table.median(local.NOTICE, "durable")
    just_in_time = table.median(local.JUST_IN_TIME, "durable") if local.JUST_IN_TIME in peers else 0
    if small:
        what = f"{size}: the just-in-time checkpoint against ours, at a notice"
        return [Goal(what, just_in_time / notice, 10, least=True)]
    best, durable = table.best("durable", peers)
    stall = table.median(local.STAGE, "returns")
    other, returns = table.best("returns", peers)
    saved = table.median(local.SAVE, "durable")
    return [
        Goal(
            f"{size}: notice to durable / floor", notice / table.median(local.FLOOR, "durable"), 1.3
        ),
        Goal(f"{size}: notice to durable / best peer, synced ({best})", notice / durable, 1.0),
        Goal(
            f"{size}: save / the same with files not hashed",
            saved / table.median(local.UNHASHED_FILES, "durable"),
            1.10,
        ),
        Goal(
            f"{size}: save / the same with nothing hashed at all",
            saved / table.median(local.UNHASHED, "durable"),
            None,
        ),
        Goal(f"{size}: stall / memory copy", stall / table.median(local.MEMORY, "returns"), 1.5),
        Goal(f"{size}: stall / best peer's ({other})", stall / returns, 0.2),
        Goal(
            f"{size}: find, verify and load / read and hash",
            table.median(local.LOAD, "returns") / table.median(local.READ, "returns"),
            1.5,
        ),
    ]


def bytes_goal(size: str, found: int, total: int, allowed: float) -> Goal:
    """Bytes on disk."""
    what = f"{size}: {found:,} bytes / ({total:,} of tensors + allowance)"
    return Goal(what, found / (allowed / 1.02), 1.02)


def overhead_goal(table: Table, what: str, limit: float | None) -> Goal:
    """Time lost to a save every ten steps, in percent."""
    share = table.median("with saves", "seconds") / table.median("without", "seconds") - 1
    return Goal(what, 100 * share, limit, unit="%")


def transfers(table: Table, size: str, size_bytes: int) -> tuple[list[str], list[Goal]]:
    """S3, client by client; the goal against the fastest of the others."""
    gigabytes = size_bytes / 1e9
    body = [
        (
            client,
            *(
                cell
                for way in ("up", "down")
                for cell in (
                    f"{size_bytes / 1e6 / series[way].median:.0f}",
                    f"{series[f'{way}_peak'].median / 1e6:.0f}",
                    f"{series[f'{way}_cpu'].median / gigabytes:.2f}",
                )
            ),
        )
        for client, series in table.series.items()
    ]
    head = (
        "client", "up, MB/s", "peak, MB", "CPU s/GB", "down, MB/s", "peak, MB", "CPU s/GB",
    )  # fmt: skip
    others = [client for client in table.series if client != "ours"]
    found = []
    for way, least in (("up", 0.9), ("down", None)):
        best, took = table.best(way, others)
        what = f"S3, {size} {way}: speed / best client's ({best})"
        found.append(Goal(what, took / table.median("ours", way), least, least=True))
    title = f"### S3: one object of {size}, server on the same machine"
    return [title, "", *rows(head, body), *_skipped(table)], found


def starts(table: Table, model: str) -> tuple[list[str], Goal]:
    """NF4: snapshot against quantizing anew."""
    body = [(case, _ms(series["seconds"])) for case, series in table.series.items()]
    anew = table.median(quantized.ANEW, "seconds")
    ratio = table.median(quantized.SNAPSHOT, "seconds") / anew
    goal = Goal(f"NF4, {model} model: snapshot / anew", ratio, 1.0)
    return [f"### NF4 base, {model} model", "", *rows(("base", "ms (p90)"), body)], goal


def machine(found: Mapping[str, str]) -> list[str]:
    """What was measured on, and by which versions."""
    return rows(("", ""), found.items())


def _peers(table: Table) -> list[str]:
    own = (
        local.FLOOR, local.MEMORY, local.READ, local.SAVE, local.NOTICE, local.STAGE, local.LOAD,
        local.UNHASHED_FILES, local.UNHASHED,
    )  # fmt: skip
    return [case for case in table.series if case not in own]


def _ms(series: Series) -> str:
    text = f"{1000 * series.median:.1f} ({1000 * series.p90:.1f})"
    return f"{text}, unsteady" if series.unsteady else text


def _skipped(table: Table) -> list[str]:
    lines = [f"Not measured: {case} ({why})." for case, why in table.skipped.items()]
    return [*lines, ""] if lines else []
