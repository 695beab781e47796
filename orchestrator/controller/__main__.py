"""`python -m orchestrator.controller RUN_ID`: the detached controller of one run."""

from __future__ import annotations

import sys

from orchestrator.clock import SystemClock
from orchestrator.controller.loop import follow
from orchestrator.controller.run import open_run
from orchestrator.errors import QvlError, Unreachable
from orchestrator.registry.store import Registry, default_state_dir

RETRY_S = 5.0
TAKEN_S = 5.0
"""How long a controller that finds another one waits for it: it may be on its way out."""


def main(run_id: str) -> int:
    """Follow the run to its end, through a storage that is away for a while."""
    clock = SystemClock()
    registry = Registry(default_state_dir())
    end = clock.monotonic() + TAKEN_S
    while True:
        try:
            if follow(open_run(registry, run_id, clock), clock) or clock.monotonic() > end:
                return 0
            clock.sleep(0.2)
        except Unreachable as fault:
            sys.stderr.write(f"{fault}\n")
            clock.sleep(RETRY_S)
        except QvlError as fault:
            sys.stderr.write(f"{fault}\n")
            return fault.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
