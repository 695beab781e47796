"""`python -m orchestrator.helper SPEC_FILE [--rejoin]`, started by the agent only."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from pathlib import Path

from orchestrator.agent.identity import identify
from orchestrator.clock import SystemClock
from orchestrator.contract import env as names
from orchestrator.contract.jsonio import from_json, loads
from orchestrator.contract.spec import TrainSpec
from orchestrator.contract.wire import attach
from orchestrator.helper.session import Session
from orchestrator.storage.opening import open_storage

PR_SET_PDEATHSIG = 1


def main() -> int:
    """Outlive no agent, ignore every notice (the agent passes them on), serve."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parser = argparse.ArgumentParser(prog="orchestrator.helper", description=__doc__)
    parser.add_argument("spec")
    parser.add_argument("--rejoin", action="store_true")
    options = parser.parse_args()
    spec = from_json(TrainSpec, loads(Path(options.spec).read_bytes()))
    agent_pid = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    identity = identify(spec.backend, os.environ, agent_pid)
    session = Session(
        open_storage(spec.storage),
        SystemClock(),
        spec,
        identity,
        os.environ[names.AGENT_TOKEN],
        attach(int(os.environ[names.AGENT_FD])),
    )
    return session.run(rejoin=options.rejoin)


if __name__ == "__main__":
    sys.exit(main())
