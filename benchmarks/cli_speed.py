"""CPU time of the command line: `python benchmarks/cli_speed.py [repeats]`.

Measures `--help`, and `status` with registries of 100 and 2000 runs that have ended and of
100 live ones (with run directories and a summary each). Prints CPU seconds (user and
system, minimum and median) and their ratio to `python -c 'import click'`. The calls are
interleaved, so that a busy machine slows all of them alike; ratios are what can be compared.
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
from orchestrator.controller.status_rows import blank_row, with_summary  # noqa: E402
from orchestrator.registry.store import Registry, RunEntry  # noqa: E402
from orchestrator.storage.opening import open_storage  # noqa: E402

BASELINE = "import click"
Case = tuple[list[str], Path]


def summary(run_id: str, now: float) -> RunSummary:
    """A run in the middle of its training."""
    return RunSummary(
        run_id=run_id, attempt=2, phase="training", step=42, total_steps=100, loss=0.5,
        learning_rate=1e-4, step_seconds=1.5, save_seconds=3.0, checkpoint_step=40,
        checkpoint_time=iso(now - 30), checkpoint_verified=True, preemptions=1, lost_steps=0,
        eta_s=87.0, time=iso(now),
    )  # fmt: skip


def fill(folder: Path, count: int, *, live: bool) -> Path:
    """A state folder with `count` runs; live ones belong to this process, so they seem to run."""
    registry = Registry(folder / "state")
    now = SystemClock().now()
    job = process_id(os.getpid())
    for number in range(count):
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
    return registry.state_dir


def cpu_seconds(argv: list[str], state: Path) -> float:
    """CPU seconds of one call of the interpreter, user and system."""
    env = {**os.environ, "QVL_STATE_DIR": str(state), "PYTHONPATH": str(ROOT)}
    env |= {"PYTHONPYCACHEPREFIX": str(state.parent / "pyc"), "PYTHONDONTWRITEBYTECODE": ""}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *argv], check=True, stdout=subprocess.DEVNULL, env=env, cwd=state.parent
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def cases(folder: Path) -> dict[str, Case]:
    """What is measured, by name; the baseline first."""
    command = ["-m", "orchestrator.cli"]
    registries = {
        "100 ended": fill(folder / "a", 100, live=False),
        "2000 ended": fill(folder / "b", 2000, live=False),
        "100 live": fill(folder / "c", 100, live=True),
    }
    small = registries["100 ended"]
    found: dict[str, Case] = {
        BASELINE: (["-c", BASELINE], small),
        "--help": ([*command, "--help"], small),
        "submit --help": ([*command, "submit", "--help"], small),
        "status, 100 ended": ([*command, "status"], small),
    }
    for name, state in registries.items():
        found[f"status --json, {name}"] = ([*command, "status", "--json"], state)
    return found


def measure(chosen: dict[str, Case], repeats: int) -> dict[str, dict[str, float]]:
    """Minimum and median of each; one call before, which compiles the modules."""
    for argv, state in chosen.values():
        cpu_seconds(argv, state)
    times: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(repeats):
        for name, (argv, state) in chosen.items():
            times[name].append(cpu_seconds(argv, state))
    lows = {name: min(found) for name, found in times.items()}
    middles = {name: statistics.median(found) for name, found in times.items()}
    return {
        name: {
            "min_cpu_s": round(lows[name], 4),
            "median_cpu_s": round(middles[name], 4),
            "min_ratio": round(lows[name] / lows[BASELINE], 2),
            "median_ratio": round(middles[name] / middles[BASELINE], 2),
        }
        for name in chosen
    }


def main(repeats: int = 15) -> None:
    """Measure and print as JSON."""
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as name:
        results = measure(cases(Path(name)), repeats)
    machine = {
        "cpus": os.cpu_count(),
        "load_before": load,
        "load_after": os.getloadavg(),
        "machine": platform.platform(),
        "python": platform.python_version(),
        "click": metadata.version("click"),
        "repeats": repeats,
    }
    print(json.dumps({"machine": machine, "results": results}, indent=1))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
