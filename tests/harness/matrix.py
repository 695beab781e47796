"""`python -m tests.harness.matrix FOLDER`: many small trainings, each undisturbed and preempted.

Reads JSON lines from stdin: {"id", "stage", "training", "evaluate", "ranks"} and, where it is not
the usual one, {"deepspeed"}. For each prints one with "id", "fault" (empty if the preempted run
equals the undisturbed one), the undisturbed run's "rates" and the "seconds" it took. The training
stack is imported once: ranks are forks of this.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import trainer.loop.build  # noqa: F401 - what a rank would import
from orchestrator.run_directory import checkpoints
from tests.harness import jobs
from tests.harness.probe import ProbedWork
from tests.harness.ranks import Run
from tests.harness.training import listed_otherwise
from trainer.process.rank import run

STEPS, STOP_AT = 4, 2
NOTICE = {"at": "micro", "step": STOP_AT, "micro": 1, "rank": 0, "signal": "SIGTERM"}
Case = dict[str, Any]


class Fork:
    """A rank that is a fork of this process; what `Attempt` asks of a process."""

    def __init__(self, variables: dict[str, str], log: Path) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            self._become_rank(variables, log)
        self._code: int | None = None

    def _become_rank(self, variables: dict[str, str], log: Path) -> None:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ.clear()
        os.environ.update(variables)
        run(ProbedWork())

    def poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, seconds: float | None = None) -> int:
        while (code := self.poll()) is None:
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkedRun(Run):
    """A run whose ranks need no imports."""

    def popen(self, variables: dict[str, str], log: Path, keep: int) -> Any:
        return Fork(variables, log)


def course(folder: Path, job: Any, notices: list[Case]) -> ForkedRun:
    """A run that gets one notice an attempt, and is finished then."""
    made = ForkedRun(folder, job, "")
    for spots in [*([notice] for notice in notices), []]:
        attempt = made.start(extra_env={"QVL_PROBE": json.dumps(spots)})
        codes = attempt.wait()
        if set(codes) != {75 if spots else 0}:
            words = [m["message"] for m in attempt.endings()]
            raise AssertionError(f"attempt {attempt.number} ended with {codes}: {words}")
    return made


def state(found: ForkedRun) -> dict[str, Any]:
    """All that must be equal; files by their hashes."""
    directory = found.commits()[-1].directory
    manifest = checkpoints.read_manifest(found.storage, directory, None)
    return {
        "curve": [replace(row, attempt=0, time="") for row in found.curve()],
        "optimizer": manifest.rank_digests,
        "adapter": manifest.adapter_digest,
        "random states": manifest.rng_digests,
        **{f.path: f.hash for f in manifest.files if not listed_otherwise(f.path)},
    }


def compare(folder: Path, data: Path, case: Case) -> dict[str, Any]:
    """What is wrong with this case, if anything; and the rates of the undisturbed run."""
    job = jobs.job(
        data,
        ranks=case["ranks"],
        accumulation=2,
        every_steps=None,
        evaluate=case["evaluate"],
        **{"max_steps": STEPS, "warmup_steps": 1, **case["training"]},
    )
    config = {
        **job.deepspeed,
        "zero_optimization": {"stage": case["stage"]},
        **case.get("deepspeed", {}),
    }
    job = replace(job, deepspeed=config, zero_stage=case["stage"])
    try:
        straight = course(folder / "straight", job, [])
        preempted = course(folder / "preempted", job, [NOTICE])
    except AssertionError as fault:
        return {"fault": str(fault), "rates": []}
    ours, theirs = state(preempted), state(straight)
    differing = [name for name in theirs if ours[name] != theirs[name]]
    return {
        "fault": "".join(f"{name} differs; " for name in differing),
        "rates": [r.learning_rate for r in straight.curve()],
    }


def main(folder: Path) -> None:
    """One case after the other."""
    for line in sys.stdin:
        case = json.loads(line)
        started = time.monotonic()
        found = compare(folder / case["id"], folder / "data", case)
        seconds = round(time.monotonic() - started, 2)
        print(json.dumps({"id": case["id"], "seconds": seconds, **found}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
