"""`python -m orchestrator.controller`: the controller of one run.

`RUN_ID`: left by `submit` on its machine. `--stay RUN_DIR`: a Job of its own on a cluster, which
waits as long as another controller holds the run.
"""

from __future__ import annotations

import signal
import socket
import sys

from orchestrator.clock import Clock, SystemClock
from orchestrator.contract.records import LeaseRecord
from orchestrator.controller import trust
from orchestrator.controller.backoff import FAULTS, Backoff, as_error, tell
from orchestrator.controller.lease import FLEET_TTL_S, TTL_S, Lease, newest
from orchestrator.controller.loop import follow
from orchestrator.controller.run import Run, open_entry, open_run
from orchestrator.errors import NewerVersion, NoSuchRun, StorageError, UserError
from orchestrator.registry.rebuild import read_entry
from orchestrator.registry.store import Registry, default_state_dir

TAKEN_S = 5.0
"""How long a controller that finds another one waits for it: it may be on its way out."""
WAITING_S = 5.0
"""How often it looks then whether the other one has gone."""
ENDED_BY_TERM = 128 + signal.SIGTERM


def main(wanted: str, *, stay: bool) -> int:
    """Look after the run until it is settled, or until another controller does."""
    clock = SystemClock()
    registry = Registry(default_state_dir())
    backoff = Backoff(clock)
    try:
        run = _open(registry, wanted, clock, backoff, stay=stay)
        trust.require(run)
        lease = Lease(run.storage, clock, FLEET_TTL_S if stay else TTL_S)
        other = Other(clock)
        while follow(run, clock, lease, backoff) is None:
            if not stay and other.stays(_holder(run)):
                return 0
            clock.sleep(WAITING_S if stay or other.for_long else 0.2)
    except NoSuchRun as fault:
        tell(str(fault))
        return 0
    except FAULTS as fault:
        tell(str(fault))
        return as_error(fault).exit_code
    return 0


def _open(registry: Registry, wanted: str, clock: Clock, backoff: Backoff, *, stay: bool) -> Run:
    """The run, once its storage can be reached. Raises what waiting does not mend."""
    while True:
        try:
            return _entered(registry, wanted, clock) if stay else open_run(registry, wanted, clock)
        except (NoSuchRun, NewerVersion):
            raise
        except FAULTS as fault:
            if stay and isinstance(fault, UserError):
                raise
            clock.sleep(backoff.met(fault))


def _entered(registry: Registry, directory: str, clock: Clock) -> Run:
    """The run of that directory, entered here."""
    entry = read_entry(directory)
    registry.add(entry)
    run = open_entry(registry, entry, clock)
    # Whoever made this Job named the run: that is the word which others need.
    trust.believe(run)
    return run


def _holder(run: Run) -> LeaseRecord | None:
    try:
        return newest(run.storage)
    except StorageError:
        return None


class Other:
    """The controller that was found to hold the run: is it one that stays with it?"""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._first: LeaseRecord | None = None
        self._since = clock.monotonic()

    @property
    def for_long(self) -> bool:
        """True if it is not just on its way out."""
        return self._clock.monotonic() - self._since > TAKEN_S

    def stays(self, held: LeaseRecord | None) -> bool:
        """True once it can be relied upon: it lives on this host, or was seen renewing from
        another, and is none that makes only one pass.
        """
        if held is None:
            return False
        if self._first is None or self._first.owner != held.owner:
            self._first, self._since = held, self._clock.monotonic()
        alive = held.host == socket.gethostname() or held.seq > self._first.seq
        return self.for_long and held.lasting and not held.released and alive


def _leave(*_: object) -> None:
    """Give the lease back. Not with 0: a Job that succeeds is not started again."""
    sys.exit(ENDED_BY_TERM)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _leave)
    *flags, last = sys.argv[1:]
    sys.exit(main(last, stay=flags == ["--stay"]))
