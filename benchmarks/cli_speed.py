"""CPU time of the command line: `python benchmarks/cli_speed.py [repeats]`.

Runs `--help`, and `status --json` with registries of 100 and 2000 runs (a tenth of them
live, with run directories and a summary each), and prints the median CPU seconds (user and
system) of each, the machine, its load, and the versions.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from orchestrator.agent.identity import process_id  # noqa: E402
from orchestrator.clock import SystemClock, iso  # noqa: E402
from orchestrator.contract import layout  # noqa: E402
from orchestrator.contract.jsonio import pretty, to_json  # noqa: E402
from orchestrator.contract.summary import RunSummary  # noqa: E402
from orchestrator.controller.rows import blank_row, with_summary  # noqa: E402
from orchestrator.registry.store import Registry, RunEntry  # noqa: E402
from orchestrator.storage.opening import open_storage  # noqa: E402

LIVE_SHARE = 10
"""One run in so many is live."""


def summary(run_id: str, now: float) -> RunSummary:
    """A run in the middle of its training."""
    return RunSummary(
        run_id=run_id, attempt=2, phase="training", step=42, total_steps=100, loss=0.5,
        learning_rate=1e-4, step_seconds=1.5, save_seconds=3.0, checkpoint_step=40,
        checkpoint_time=iso(now - 30), checkpoint_verified=True, preemptions=1, lost_steps=0,
        eta_s=87.0, time=iso(now),
    )  # fmt: skip


def fill(folder: Path, count: int) -> None:
    """A registry of `count` runs; live ones belong to this process, so that they seem to run."""
    registry = Registry(folder / "state")
    now = SystemClock().now()
    job = process_id(os.getpid())
    for number in range(count):
        live = number % LIVE_SHARE == 0
        run_id = f"bench-{number:06d}"
        uri = str(folder / "runs" / run_id)
        entry = RunEntry(
            run_id=run_id, name="bench", backend="local", uri=uri,
            created_at=now - count + number, gpus=4,
        )  # fmt: skip
        registry.add(entry)
        known = {**blank_row(entry), "state": "RUNNING" if live else "SUCCEEDED"}
        row = with_summary(known, summary(run_id, now))
        registry.saw(run_id, {**row, "backend_job_id": job}, final=not live, at=now)
        if live:
            open_storage(uri).put(layout.SUMMARY, pretty(to_json(summary(run_id, now))))


def cpu_seconds(argv: list[str], state: Path) -> float:
    """CPU seconds of one call, user and system."""
    env = {**os.environ, "QVL_STATE_DIR": str(state), "PYTHONPATH": str(ROOT)}
    env |= {"PYTHONPYCACHEPREFIX": str(state.parent / "pyc"), "PYTHONDONTWRITEBYTECODE": ""}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *argv],
        check=True, stdout=subprocess.DEVNULL, env=env, cwd=state.parent,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(argv: list[str], state: Path, repeats: int) -> dict[str, object]:
    """Median and extremes; one call before, which compiles the modules."""
    cpu_seconds(argv, state)
    found = sorted(cpu_seconds(argv, state) for _ in range(repeats))
    return {
        "median_cpu_s": round(statistics.median(found), 4),
        "min_cpu_s": round(found[0], 4),
        "max_cpu_s": round(found[-1], 4),
    }


def main(repeats: int = 15) -> None:
    """Measure and print as JSON."""
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        for count in (100, 2000):
            folder = Path(name) / str(count)
            fill(folder, count)
            state = folder / "state"
            if count == 100:
                results["--help"] = measure(["--help"], state, repeats)
                results["submit --help"] = measure(["submit", "--help"], state, repeats)
            for argv in (["status"], ["status", "--json"]):
                results[f"{' '.join(argv)} of {count} runs"] = measure(argv, state, repeats)
    machine = {
        "cpus": os.cpu_count(),
        "load": os.getloadavg(),
        "machine": platform.platform(),
        "python": platform.python_version(),
        "click": metadata.version("click"),
        "repeats": repeats,
        "live_runs": f"1 in {LIVE_SHARE}",
    }
    print(json.dumps({"machine": machine, "results": results}, indent=1))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
