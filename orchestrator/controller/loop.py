"""Looking after runs: one run to its end (detached), all runs once, or all runs for ever."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from orchestrator.backends.base import JobRef, RemembersRuns, Wakes, load_backend
from orchestrator.clock import Clock
from orchestrator.contract.env import STATE_DIR
from orchestrator.controller import status_rows, trust
from orchestrator.controller.backoff import FAULTS, Backoff, as_error, file_system, is_gone
from orchestrator.controller.lease import FLEET_TTL_S, Lease, is_live, newest
from orchestrator.controller.reconcile import Step, reconcile, still_running
from orchestrator.controller.run import Run, open_entry
from orchestrator.controller.trust import ONLY_US, Trusted
from orchestrator.errors import CheckpointError, NewerVersion, NoSuchRun, QvlError
from orchestrator.registry import faults
from orchestrator.registry.rebuild import read_entry
from orchestrator.registry.store import Registry, RunEntry
from orchestrator.run_directory import attempts

REFRESH_S = 10.0
"""A full pass happens at least this often, or at the pace that the backend wants."""
SETTLE_S = 1.0
"""Changes come in flocks: shortest time between two passes over all runs."""
PATIENCE_S = 20.0
"""How long a new run waits for the site's own controller: some of its passes."""
_detached: list[subprocess.Popen[bytes]] = []
"""Controllers that this process started: known until they are reaped."""


def follow(run: Run, clock: Clock, lease: Lease, backoff: Backoff) -> Step | None:
    """Look after one run until it is settled, through whatever fails meanwhile; None if another
    controller holds it. The lease is the caller's to keep, and given back here.

    Raises NoSuchRun once a storage that answers holds the run no longer, NewerVersion for what
    only a newer controller can look after.
    """
    home: int | None = None
    try:
        while True:
            try:
                trust.require(run)
                if not lease.acquire():
                    return None
                home = file_system(run)
                step = reconcile(run)
                backoff.over()
                if step.settled:
                    return step
                _pause(run, step, clock)
            except NewerVersion:
                raise
            except FAULTS as fault:
                if is_gone(run, home):
                    raise NoSuchRun(f"{run.storage.uri} holds the run no longer") from fault
                if isinstance(fault, CheckpointError):
                    # Damage waits for a person, whom a lease would keep from mending it.
                    lease.release()
                clock.sleep(backoff.met(fault))
    finally:
        lease.release()


def _pause(run: Run, step: Step, clock: Clock) -> None:
    """Wait until the job has ended, or it is time for a full pass."""
    poll_s = run.backend.capabilities.poll_s
    until = clock.monotonic() + REFRESH_S
    job = status_rows.job_of(step.row)
    clock.sleep(poll_s)
    if job is not None and isinstance(run.backend, Wakes):
        run.backend.wait(until - clock.monotonic(), job)
        return
    while job is not None and clock.monotonic() < until:
        if not still_running(run, job):
            return
        clock.sleep(poll_s)


def once(
    registry: Registry,
    clock: Clock,
    report: Callable[[str, Step | QvlError], None],
    trusted: Trusted = ONLY_US,
) -> int:
    """One pass over every run that is not final; returns how many could not be looked after."""
    faults = 0
    entries = registry.runs()
    ask_ahead(registry, entries)
    for entry in entries:
        if entry.final:
            continue
        try:
            run = open_entry(registry, entry, clock)
            trust.require(run, trusted)
            lease = Lease(run.storage, clock, lasting=False)
            if not lease.acquire():
                continue
            try:
                report(entry.run_id, reconcile(run))
            finally:
                lease.release()
        except FAULTS as fault:
            faults += 1
            report(entry.run_id, as_error(fault))
    return faults


def ask_ahead(registry: Registry, entries: Sequence[RunEntry]) -> None:
    """One question for the jobs of all runs, to a backend that keeps the answer for the
    questions on single jobs that follow.
    """
    jobs: dict[str, list[JobRef]] = {}
    for entry in entries:
        job = status_rows.job_of(entry.row or {})
        if job is not None and not entry.final:
            jobs.setdefault(entry.backend, []).append(job)
    for name, refs in jobs.items():
        # Each run meets a fault itself, and says so in its own row.
        with suppress(*FAULTS):
            backend = load_backend(name, registry.state_dir)
            if backend.capabilities.keeps_answers:
                backend.observe(refs)


class Rounds:
    """Pass after pass over all runs, each under a lease that is kept from one to the next. A run
    whose storage fails is left alone for a while: the others shall not wait for it.
    """

    def __init__(self, registry: Registry, clock: Clock, trusted: Trusted = ONLY_US) -> None:
        self._registry = registry
        self._trusted = trusted
        self._clock = clock
        self._runs: dict[str, Run] = {}
        """Each keeps what it has read of its log."""
        self._leases: dict[str, Lease] = {}
        self._backoffs: dict[str, Backoff] = {}
        self._waker: Wakes | None = None

    def once(self, report: Callable[[str, Step | QvlError], None]) -> None:
        """One pass; a run that another controller holds is left to it."""
        entries = self._registry.runs()
        ask_ahead(self._registry, entries)
        for entry in entries:
            if entry.final:
                self._runs.pop(entry.run_id, None)
                self._leases.pop(entry.run_id, None)
                self._backoffs.pop(entry.run_id, None)
                continue
            backoff = self._backoffs.setdefault(entry.run_id, Backoff(self._clock, _report_tells))
            if not backoff.due:
                continue
            try:
                self._attend(self._run(entry), report)
                backoff.over()
            except FAULTS as fault:
                backoff.met(fault)
                report(entry.run_id, as_error(fault))

    def discover(self, report: Callable[[str, Step | QvlError], None]) -> None:
        """Enter runs that a backend knows of and this registry does not."""
        backend = load_backend("kubernetes", self._registry.state_dir)
        assert isinstance(backend, RemembersRuns)
        known = {entry.run_id for entry in self._registry.runs()}
        for found in backend.discover():
            if found.run_id not in known:
                try:
                    entry = read_entry(found.uri)
                    self._registry.add(entry)
                    trust.only_read(open_entry(self._registry, entry, self._clock))
                except FAULTS as fault:
                    report(found.run_id, as_error(fault))

    def wait(self, seconds: float) -> None:
        """Until the next pass: so long, or as soon as a backend knows that it is worth looking."""
        if self._waker is None or seconds <= SETTLE_S:
            self._clock.sleep(seconds)
            return
        self._clock.sleep(SETTLE_S)
        self._waker.wait(seconds - SETTLE_S)

    def close(self) -> None:
        """Let another controller take over at once."""
        for lease in self._leases.values():
            lease.release()
        self._leases.clear()

    def _run(self, entry: RunEntry) -> Run:
        known = self._runs.get(entry.run_id)
        if known is None or known.entry.uri != entry.uri:
            known = self._runs[entry.run_id] = open_entry(self._registry, entry, self._clock)
        return known

    def _attend(self, run: Run, report: Callable[[str, Step | QvlError], None]) -> None:
        trust.require(run, self._trusted)
        lease = self._leases.get(run.run_id)
        if lease is None:
            lease = self._leases[run.run_id] = Lease(run.storage, self._clock, FLEET_TTL_S)
        if not lease.acquire():
            return
        if isinstance(run.backend, Wakes):
            self._waker = run.backend
        step = reconcile(run)
        report(run.run_id, step)
        if step.settled:
            lease.release()


def _report_tells(_words: str) -> None:
    """What stands in the way goes to the pass's own report."""


def leave_controller(run: Run, wait_s: float = 0.0) -> str:
    """See to it that somebody looks after the run, as its site chooses; words about it, if any.

    `wait_s`: how long the site's own controller may take to take the run up before it is missed.
    """
    if not isinstance(run.backend, RemembersRuns):
        detach(run.registry, run.run_id)
        return ""
    kind = _chosen(run)
    if _attended(run, wait_s if kind == "deployment" else 0.0):
        return ""
    if kind == "process":
        detach(run.registry, run.run_id)
        return "no controller looked after the run: one was left on this machine"
    if kind == "job":
        spec = attempts.read_submissions(run.storage)[-1].spec
        name = run.backend.start_controller(run.job(spec.resolved), spec)
        return f"no controller looked after the run: Job {name} was started"
    cure = "`qvl-orchestrate controller once`, or `qvl-orchestrate controller run`"
    if kind == "deployment":
        cure = "is the Deployment of k8s/controller.yaml there? `kubectl get deployments`"
    return f"no controller looks after the run, and none was started: {cure}"


def _chosen(run: Run) -> str:
    return str(run.job().kubernetes.get("controller") or "process")


def is_attended(run: Run) -> bool:
    """False if the run waits for a controller of its site. Asked after `leave_controller`."""
    elsewhere = isinstance(run.backend, RemembersRuns) and _chosen(run) in ("deployment", "none")
    return not elsewhere or _attended(run, 0.0)


def _attended(run: Run, wait_s: float) -> bool:
    """True if a controller holds the run, or does so in time."""
    end = run.clock.monotonic() + wait_s
    while not is_live(newest(run.storage), run.clock.now()):
        if run.clock.monotonic() >= end:
            return False
        run.clock.sleep(0.5)
    return True


def look_after(run: Run) -> Step | None:
    """One pass here, and a controller for what remains; None if the run has one already."""
    trust.require(run)
    lease = Lease(run.storage, run.clock, lasting=False)
    if not lease.acquire():
        return None
    try:
        step = reconcile(run)
    except FAULTS:
        lease.release()
        leave_controller(run)
        raise
    lease.release()
    if not step.settled:
        leave_controller(run)
    return step


def detach(registry: Registry, run_id: str) -> int:
    """Start a controller for one run that outlives this process; returns its pid."""
    try:
        log = _log_of(registry, run_id)
    except OSError as fault:
        raise faults.of_files(registry.state_dir, fault) from fault
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    with log:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.controller", run_id],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
            env={**os.environ, STATE_DIR: str(registry.state_dir), "PYTHONPATH": path},
        )
    _detached[:] = [p for p in _detached if p.poll() is None] + [process]
    return process.pid


def _log_of(registry: Registry, run_id: str) -> BinaryIO:
    folder = registry.state_dir / "controllers"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return (folder / f"{run_id}.log").open("ab")
