"""What an agent is started with, and the words it leaves to what is around it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from orchestrator.contract import env as names
from orchestrator.contract.jsonio import MalformedJson, from_json, loads
from orchestrator.contract.regular import read_regular
from orchestrator.contract.spec import TrainSpec

SCANCEL_S = 20.0


def read_spec(where: str, environ: Mapping[str, str]) -> TrainSpec:
    """The TrainSpec in the file `where`, or in the environment if that is `-`.

    Raises OSError or MalformedJson.
    """
    if where != "-":
        return from_json(TrainSpec, loads(read_regular(where)))
    if names.SPEC not in environ:
        raise MalformedJson(f"{names.SPEC} is not set")
    return from_json(TrainSpec, loads(environ[names.SPEC].encode()))


def leave_word(environ: Mapping[str, str], code: int, *, again: bool) -> None:
    """Tell the batch script of this node how to end, where there is one that asks.

    Only the agent on the batch host does: its script cannot read the run directory, and the
    launcher between them returns the highest code of all nodes.
    """
    path = environ.get(names.VERDICT_FILE)
    if path is None or environ.get("SLURM_NODEID", "0") != "0":
        return
    try:
        tmp = Path(f"{path}.tmp")
        tmp.write_text(f"{code} {'requeue' if again else 'leave'}\n")
        os.replace(tmp, path)
    except OSError as fault:
        os.write(2, f"[agent] no word for the batch script: {fault}\n".encode())


def end_step(environ: Mapping[str, str]) -> None:
    """End what is left of this job's step: srun would wait for an agent that never came, and
    keep all nodes, until the time limit. Nothing to do where there is no step.
    """
    job, step = environ.get("SLURM_JOB_ID"), environ.get("SLURM_STEP_ID")
    if job and step:
        argv = ["scancel", "--signal=KILL", f"{job}.{step}"]
        try:
            subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=SCANCEL_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as fault:
            os.write(2, f"[agent] the step goes on: {fault}\n".encode())


def read_secrets(path: str | None) -> dict[str, str]:
    """The secret variables of the run; none, which is said, where they cannot be read."""
    if path is None:
        return {}
    try:
        values = json.loads(read_regular(path))
    except (OSError, ValueError):
        sys.stdout.write(f"[agent] the secrets of this run cannot be read from {path}\n")
        return {}
    return {str(k): str(v) for k, v in values.items()}


def leave_state(
    path: Path, state: str, ranks: Sequence[str | None], code: int | None = None
) -> None:
    """For the local backend: `queued`, `started` or `ended`, the process ids of the ranks, and the
    exit code; lost where its disk is full.
    """
    tmp = path.with_suffix(".tmp")
    with suppress(OSError):
        tmp.write_text(json.dumps({"state": state, "ranks": list(ranks), "code": code}))
        tmp.replace(path)
