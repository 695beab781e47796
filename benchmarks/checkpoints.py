"""Checkpoints against their floor and their peers: `python -m benchmarks.checkpoints`.

Everything is measured in interleaved rounds of one run; ratios are what can be compared, also
on a busy machine. Prints Markdown; with --record the figures replace those in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "docs/benchmarks.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
GROUPS = ("saves", "overhead", "s3", "nf4")
SMALL_BYTES = 20e6
"""Below this only the notice is of interest."""
LEAST_ROUNDS = 9


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoints", description=__doc__)
    parser.add_argument(
        "--sizes", default="1MB,100MB,1GB", help="states, also qwen-vl and qwen2.5-vl-7b"
    )
    parser.add_argument("--rounds", type=int, default=LEAST_ROUNDS)
    parser.add_argument("--quick", action="store_true", help="two rounds, short steps, small")
    parser.add_argument("--only", default=",".join(GROUPS), help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--folder", help="where to write; default: the system's for temporary")
    parser.add_argument("--record", action="store_true", help=f"into {RECORD.name}")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.rounds = 2
        chosen.sizes = "1MB,30MB" if chosen.sizes == parser.get_default("sizes") else chosen.sizes
    return chosen


def prepare(device: str) -> None:
    """What a rank does before it imports DeepSpeed."""
    import torch

    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(1)
        from trainer.checkpoint import engine

        engine.without_compiler()


class Run:
    """One run of all that was asked for."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        from benchmarks import report

        self._report = report
        self._chosen = chosen
        self._only = chosen.only.split(",")
        self._step_s = 0.1 if chosen.quick else 1.0
        self.goals: list[report.Goal] = []
        self.tables: list[str] = []

    def measure(self, store: Callable[[], None]) -> None:
        """All groups, one size after the other; `store` is called after each."""
        sizes = self._chosen.sizes.split(",")
        for size in sizes:
            if "saves" in self._only or ("overhead" in self._only and size == sizes[-1]):
                self._size(size, overhead="overhead" in self._only and size == sizes[-1])
                store()
        for group, measured in (("nf4", self._nf4), ("s3", self._s3)):
            if group in self._only:
                measured()
                store()

    def _size(self, size: str, *, overhead: bool) -> None:
        from benchmarks.local import Local
        from benchmarks.measure import say

        with self._folder() as folder:
            say(f"{size}: a trained state ...")
            state = Local(size, folder, cuda=self._chosen.device == "cuda")
            small = state.bytes < SMALL_BYTES
            if "saves" in self._only:
                say(f"{size}: saves ...")
                table = state.saves(self._chosen.rounds)
                title = f"{size}: {state.shape.parameters:,} parameters, {state.bytes:,} bytes"
                self.tables += self._report.saves(table, title)
                self.goals += self._report.save_goals(table, size, small=small)
                sizes = (state.bytes, state.sum_bytes(), state.may_bytes())
                self.goals.append(self._report.bytes_goal(size, *sizes))
            if overhead:
                self._overhead(state, size)
            state.close()

    def _overhead(self, state: object, size: str) -> None:
        from benchmarks.local import STEPS, Local, busy, wait
        from benchmarks.measure import say

        assert isinstance(state, Local)
        cores = os.cpu_count() or 1
        steps = {
            f"{size}: overhead of a save every {STEPS} steps, a step waits {self._step_s:g} s": (
                wait(self._step_s),
                3.0,
            ),
            f"{size}: the same, a step keeps {cores} cores busy": (busy(self._step_s, cores), None),
        }
        for what, (step, limit) in steps.items():
            say(f"{what} ...")
            table = state.overhead(self._chosen.rounds, step)
            self.goals.append(self._report.overhead_goal(table, what, limit))

    def _s3(self) -> None:
        from benchmarks import remote
        from benchmarks.measure import say

        why = remote.missing()
        if why is not None:
            self.tables += [f"S3 was not measured: {why}.", ""]
            return
        size, size_bytes = ("100MB", 10**8) if self._chosen.quick else ("1GB", 10**9)
        say(f"S3: {size} ...")
        with self._folder() as folder:
            table = remote.transfers(size_bytes, folder, self._chosen.rounds)
        lines, found = self._report.transfers(table, size, size_bytes)
        self.tables += lines
        self.goals += found

    def _nf4(self) -> None:
        import torch

        from benchmarks import quantized
        from benchmarks.measure import say

        with self._folder() as folder:
            for name, model in quantized.models(folder, wide=not self._chosen.quick).items():
                say(f"NF4: {name} model ...")
                device = torch.device(self._chosen.device)
                table = quantized.starts(model, folder / name[0], self._chosen.rounds, device)
                lines, goal = self._report.starts(table, name)
                self.tables += lines
                self.goals.append(goal)

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        # DeepSpeed and the savers may still hold files: what is left must not end the run.
        with tempfile.TemporaryDirectory(
            dir=self._chosen.folder, ignore_cleanup_errors=True
        ) as name:
            yield Path(name)


def record(lines: list[str]) -> None:
    """Put the figures between the marks of the document."""
    text = RECORD.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    RECORD.write_text("\n".join([f"{before}{BEGIN}", "", *lines, f"{END}{after}"]))


def main() -> None:
    """Measure, print, record."""
    chosen = options()
    prepare(chosen.device)
    from benchmarks import measure, report

    started, before = time.monotonic(), measure.load()
    run = Run(chosen)

    def lines() -> list[str]:
        facts = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            **measure.machine(),
            "device": chosen.device,
            "rounds": str(chosen.rounds),
            "took": f"{(time.monotonic() - started) / 60:.0f} min",
            "load before": _loads(before),
            "load after": _loads(measure.load()),
        }
        return [*report.machine(facts), *report.goals(run.goals), *run.tables]

    def store() -> None:
        if chosen.record:
            record(lines())

    run.measure(store)
    print("\n".join(lines()), flush=True)
    # Process groups and daemon threads of torch and DeepSpeed may abort an orderly way out.
    os._exit(0)


def _loads(values: tuple[float, float, float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


if __name__ == "__main__":
    main()
