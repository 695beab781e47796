"""Saving to S3: our storage against plain clients, on a server of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.measure import Case, Table, interleave
from benchmarks.s3_client import CLIENTS

BUCKET = "bench"
LIMIT_S = 600


def missing() -> str | None:
    """Why there is no server, or None."""
    try:
        from tests.harness import weed
    except ImportError as fault:
        return f"the test harness is not there ({fault.name})"
    return weed.missing()


def transfers(size_bytes: int, folder: Path, rounds: int) -> Table:
    """One object of that size, up and down, by each client; each in a process of its own."""
    from tests.harness.weed import Weed

    server = Weed(folder)
    server.start()
    try:
        server.client().create_bucket(Bucket=BUCKET)
        others = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        environment = {**others, **server.environment()}

        def case(name: str) -> Case:
            return lambda: _client(name, size_bytes, environment)

        return interleave({name: case(name) for name in CLIENTS}, rounds)
    finally:
        server.kill()


def _client(name: str, size_bytes: int, environment: Mapping[str, str]) -> Mapping[str, float]:
    argv = [sys.executable, "-m", "benchmarks.s3_client", name, str(size_bytes), BUCKET]
    done = subprocess.run(
        argv, env=dict(environment), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    found: dict[str, float] = json.loads(done.stdout)
    return found
