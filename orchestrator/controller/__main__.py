"""`python -m orchestrator.controller`: the controller of one run.

`RUN_ID`: left by `submit` on its machine. `--stay RUN_DIR`: a Job of its own on a cluster, which
waits as long as another controller holds the run.
"""

from __future__ import annotations

import signal
import sys

from orchestrator.clock import Clock, SystemClock
from orchestrator.controller.lease import FLEET_TTL_S, TTL_S
from orchestrator.controller.loop import follow
from orchestrator.controller.run import Run, open_entry, open_run
from orchestrator.errors import QvlError, Unreachable
from orchestrator.registry.rebuild import read_entry
from orchestrator.registry.store import Registry, default_state_dir

RETRY_S = 5.0
TAKEN_S = 5.0
"""How long a controller that finds another one waits for it: it may be on its way out."""
WAITING_S = 5.0
"""How often one that stays looks whether the other one has gone."""
ENDED_BY_TERM = 128 + signal.SIGTERM


def main(wanted: str, *, stay: bool) -> int:
    """Follow the run to its end, through a storage that is away for a while."""
    clock = SystemClock()
    registry = Registry(default_state_dir())
    end = clock.monotonic() + TAKEN_S
    while True:
        try:
            run = _open(registry, wanted, clock) if stay else open_run(registry, wanted, clock)
            if follow(run, clock, FLEET_TTL_S if stay else TTL_S):
                return 0
            if not stay and clock.monotonic() > end:
                return 0
            clock.sleep(WAITING_S if stay else 0.2)
        except Unreachable as fault:
            sys.stderr.write(f"{fault}\n")
            clock.sleep(RETRY_S)
        except QvlError as fault:
            sys.stderr.write(f"{fault}\n")
            return fault.exit_code


def _open(registry: Registry, directory: str, clock: Clock) -> Run:
    """The run of that directory, entered here."""
    entry = read_entry(directory)
    registry.add(entry)
    return open_entry(registry, entry, clock)


def _leave(*_: object) -> None:
    """Give the lease back. Not with 0: a Job that succeeds is not started again."""
    sys.exit(ENDED_BY_TERM)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _leave)
    *flags, last = sys.argv[1:]
    sys.exit(main(last, stay=flags == ["--stay"]))
