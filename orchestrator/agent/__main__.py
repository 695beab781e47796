"""`python -m orchestrator.agent SPEC`: one agent a node, also as PID 1."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from orchestrator.agent.identity import process_id
from orchestrator.agent.start import read_spec
from orchestrator.agent.supervisor import Supervisor
from orchestrator.clock import SystemClock
from orchestrator.contract import env as names
from orchestrator.contract.codes import ExitCode
from orchestrator.contract.jsonio import MalformedJson


def main() -> int:
    """Parse, supervise, and return the attempt's exit code on this node."""
    parser = argparse.ArgumentParser(prog="orchestrator.agent", description=__doc__)
    parser.add_argument("spec", help=f"file with the TrainSpec as JSON; - = ${names.SPEC}")
    parser.add_argument("--agents-dir", type=Path, help="where to say `queued` or `started`")
    options = parser.parse_args()
    os.umask(0o077)
    try:
        spec = read_spec(options.spec, os.environ)
    except (OSError, MalformedJson) as fault:
        sys.stderr.write(f"agent: cannot read {options.spec}: {fault}\n")
        return ExitCode.REFUSED
    state_file = options.agents_dir and options.agents_dir / f"{process_id(os.getpid())}.json"
    return Supervisor(spec, SystemClock(), options.spec, state_file).run()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2))
    sys.exit(main())
