"""`python -m orchestrator.helper SPEC [--rejoin]`, started by the agent only."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys

from orchestrator.agent.identity import identify
from orchestrator.agent.start import read_spec
from orchestrator.clock import SystemClock
from orchestrator.contract import env as names
from orchestrator.contract.wire import attach, encode
from orchestrator.errors import QvlError
from orchestrator.helper import ending
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
    spec = read_spec(options.spec, os.environ)
    agent_pid = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    identity = identify(spec.backend, os.environ, agent_pid)
    link = attach(int(os.environ[names.AGENT_FD]))
    try:
        storage = open_storage(spec.storage)
    except QvlError as fault:
        code, reason = ending.refusal_code(fault)
        said = {"code": code, "reason": reason, "message": str(fault), "verdict": int(code)}
        link.sendall(encode("refused", said))
        return 0
    token = os.environ[names.AGENT_TOKEN]
    session = Session(storage, SystemClock(), spec, identity, token, link)
    return session.run(rejoin=options.rejoin)


if __name__ == "__main__":
    sys.exit(main())
