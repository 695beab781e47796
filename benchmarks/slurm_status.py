"""How often Slurm is asked: `python benchmarks/slurm_status.py [runs]` (2000 by default).

A registry of so many live Slurm runs with their run directories: Slurm knows the jobs of one half
(running), only the accounting those of the other (cancelled). `squeue` and `sacct` are scripts
that answer from a file and count. Measured are `status` (no row younger than 30 s) and one pass of
`controller once`: calls, seconds on the clock and of CPU, rows that could not be refreshed in time.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.cli_speed import summary  # noqa: E402
from orchestrator.backends.slurm.states import FIELDS  # noqa: E402
from orchestrator.clock import SystemClock, iso  # noqa: E402
from orchestrator.contract import layout  # noqa: E402
from orchestrator.contract.jsonio import pretty, to_json  # noqa: E402
from orchestrator.contract.plan import BatchPlan  # noqa: E402
from orchestrator.contract.records import (  # noqa: E402
    ClaimRecord,
    SubmissionId,
    SubmissionRecord,
)
from orchestrator.contract.resolved import (  # noqa: E402
    CheckpointSpec,
    DataSpec,
    ModelSpec,
    PreemptionSpec,
    ResolvedJob,
    Resources,
)
from orchestrator.contract.spec import StartFrom  # noqa: E402
from orchestrator.controller.status_rows import blank_row, with_summary  # noqa: E402
from orchestrator.operations.submit import SiteSettings, make_spec  # noqa: E402
from orchestrator.registry.store import Registry, RunEntry  # noqa: E402
from orchestrator.run_directory import attempts  # noqa: E402
from orchestrator.storage.opening import open_storage  # noqa: E402

CLIENT = """#!/bin/sh
echo {name} >> '{folder}/calls'
exec cat '{folder}/{name}.answer'
"""
OLD_S = 120.0
"""Age of every row in the registry: old enough to be refreshed."""


def job(uri: str) -> ResolvedJob:
    """What all runs train."""
    return ResolvedJob(
        name="bench", backend="slurm", model=ModelSpec(path="/models/m"), quantization={}, lora={},
        data=DataSpec(train="/data/train.json"), training={"max_steps": 100}, deepspeed={},
        zero_stage=2, resources=Resources(nodes=1, gpus_per_node=4),
        checkpoint=CheckpointSpec(uri=uri, every_steps=10),
        preemption=PreemptionSpec(grace_s=60.0),
        batch=BatchPlan(micro=1, accumulation=1, world_size=4),
    )  # fmt: skip


def add_run(registry: Registry, root: Path, number: int, now: float) -> str:
    """A run with one attempt under way, its row `OLD_S` old; returns Slurm's id of its job."""
    run_id, backend_id = f"bench-{number:06d}", str(100_000 + number)
    uri, made = str(root / run_id), job(str(root))
    entry = RunEntry(
        run_id=run_id, name="bench", backend="slurm", uri=uri, created_at=now - 3600, gpus=4
    )
    registry.add(entry)
    storage = open_storage(uri)
    spec = make_spec(made, run_id, uri, registry.state_dir, SiteSettings())
    key = f"{run_id}-1"
    storage.put(layout.RESOLVED, pretty(to_json(made)))
    storage.put(layout.SUMMARY, pretty(to_json(summary(run_id, now))))
    attempts.create_submission(
        storage,
        SubmissionRecord(
            number=1, key=key, token="t", spec=spec, start=StartFrom(), time=iso(now - 3600)
        ),
    )
    attempts.record_backend_id(storage, SubmissionId(number=1, backend_id=backend_id))
    attempts.create_claim(
        storage,
        ClaimRecord(
            attempt=1, submission=1, backend_id=backend_id, restart_count=0, token="t",
            plan=made.batch, host="n1", time=iso(now - 3500),
        ),
    )  # fmt: skip
    row = with_summary({**blank_row(entry), "state": "RUNNING"}, summary(run_id, now))
    registry.saw(run_id, {**row, "backend_job_id": backend_id}, final=False, at=now - OLD_S)
    return backend_id


def install(folder: Path, living: list[str], ended: list[str], now: float) -> None:
    """squeue and sacct that answer and count, in `folder`."""
    head = "JOBID|STATE|REASON|RESTART_COUNT|EXIT_CODE|END_TIME|NAME|"
    assert head.count("|") == len(FIELDS)
    rows = [
        f"{i}|RUNNING|None|0|0|{now + 3600:.0f}|bench-{int(i) - 100_000:06d}-1|" for i in living
    ]
    (folder / "squeue.answer").write_text("\n".join([head, *rows]) + "\n")
    rows = [f"{i}|CANCELLED by 0|0:0|{now - 600:.0f}|bench-{int(i) - 100_000:06d}-1" for i in ended]
    (folder / "sacct.answer").write_text("\n".join(rows) + "\n")
    for name in ("squeue", "sacct"):
        program = folder / name
        program.write_text(CLIENT.format(name=name, folder=folder))
        program.chmod(0o755)


def call(argv: list[str], folder: Path, state: Path) -> dict[str, Any]:
    """One call of the command line: seconds and how often each client was asked."""
    calls = folder / "calls"
    calls.unlink(missing_ok=True)
    env = {**os.environ, "QVL_STATE_DIR": str(state), "PYTHONPATH": str(ROOT)}
    env["PATH"] = f"{folder}:{env['PATH']}"
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *argv],
        check=True, capture_output=True, text=True, env=env, cwd=folder,
    )  # fmt: skip
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    asked = calls.read_text().split() if calls.exists() else []
    return {
        "squeue": asked.count("squeue"),
        "sacct": asked.count("sacct"),
        "wall_s": round(wall, 2),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "out": done.stdout,
    }


def measure(folder: Path, count: int) -> dict[str, dict[str, Any]]:
    """`status`, then a pass of the controller, over the same runs."""
    registry = Registry(folder / "state")
    now = SystemClock().now()
    jobs = [add_run(registry, folder / "runs", n, now) for n in range(count)]
    install(folder, jobs[::2], jobs[1::2], now)
    found = {}
    status = call(["status"], folder, registry.state_dir)
    status["not_refreshed"] = status.pop("out").count("not refreshed")
    found["status"] = status
    once = call(["controller", "once", "--json"], folder, registry.state_dir)
    states = [json.loads(line)["state"] for line in once.pop("out").splitlines()]
    once["states"] = {state: states.count(state) for state in sorted(set(states))}
    found["controller once"] = once
    return found


def main(count: int = 2000) -> int:
    """Measure, print as JSON; 1 if Slurm was asked more often than it may be."""
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as name:
        results = measure(Path(name), count)
    machine = {
        "runs": count,
        "cpus": os.cpu_count(),
        "load_before": load,
        "load_after": os.getloadavg(),
        "machine": platform.platform(),
        "python": platform.python_version(),
    }
    print(json.dumps({"machine": machine, "results": results}, indent=1))
    status, once = results["status"], results["controller once"]
    return int(status["squeue"] > 1 or status["sacct"] > 1 or once["sacct"] > 1)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:2])))
