"""Reading from the cluster: one list of Jobs and one of pods for all runs of a namespace."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orchestrator.backends.kubernetes import names
from orchestrator.backends.kubernetes.api import Api, Kind, Refused
from orchestrator.backends.kubernetes.objects import (
    AnchorView,
    JobView,
    PodView,
    Said,
    read_anchor,
    read_job,
    read_pod,
)
from orchestrator.backends.kubernetes.reading import Attempt, attempt_of
from orchestrator.errors import Unreachable

FRESH_S = 1.0
"""An answer this young is given again: many runs are asked for one after the other."""


@dataclass(frozen=True, slots=True)
class _Seen:
    at: float
    jobs: tuple[JobView, ...]
    pods: tuple[PodView, ...]
    versions: Mapping[str, str]
    """Of the two lists, by kind."""


class Cluster:
    """What the server says. `steady`: monotonic seconds."""

    def __init__(self, api: Api, steady: Callable[[], float]) -> None:
        self.api = api
        self._steady = steady
        self._seen: dict[str, _Seen] = {}
        self._asking = threading.Lock()
        """Many threads, of `status` for one, want the same answer."""

    def forget(self) -> None:
        """The next question goes to the server."""
        self._seen.clear()

    def wait(self, namespace: str, run_id: str | None, seconds: float) -> None:
        """Until something of the run (None: of any) changes after what was seen last; at most
        `seconds`. Pods are watched while some live, then the Job, whose verdict follows them.

        Only a hint to look again: what counts is what is listed then. Raises as `Api` does.
        """
        seen = self._seen.get(namespace) or self._look(namespace)
        mine = (p for p in seen.pods if run_id in (None, names.run_of(p.job)[0]))
        kind: Kind = "jobs" if all(p.has_ended for p in mine) else "pods"
        labels = names.SELECTOR if run_id is None else names.of_run(run_id)
        since = seen.versions[kind]
        if self.api.changed(kind, namespace, labels=labels, since=since, seconds=seconds):
            self.forget()

    def attempt(self, backend_id: str) -> Attempt:
        """Everything about one submission. Raises Unreachable if it cannot be had."""
        namespace, name = names.split_id(backend_id)
        try:
            return self._attempt(namespace, name)
        except Refused as fault:
            raise Unreachable(f"the cluster refuses to answer: {fault.message}") from None

    def anchors(self, namespace: str) -> list[AnchorView]:
        """The ConfigMaps of all runs."""
        try:
            found = self.api.list("configmaps", namespace, labels=names.SELECTOR)
        except Refused as fault:
            raise Unreachable(f"runs cannot be listed: {fault.message}") from None
        return [a for a in map(read_anchor, found) if a.run_id]

    def _attempt(self, namespace: str, name: str) -> Attempt:
        seen = self._look(namespace)
        found = attempt_of(name, seen.jobs, seen.pods, ())
        if found.job is None or found.job.deleted:
            run_id, _ = names.run_of(name)
            raw = self.api.get("configmaps", namespace, run_id)
            anchors = () if raw is None else (read_anchor(raw),)
            return attempt_of(name, seen.jobs, seen.pods, anchors)
        if len(found.pods) < found.job.nodes and not found.job.conditions:
            return attempt_of(name, seen.jobs, seen.pods, (), self._refused(namespace, name))
        return found

    def _look(self, namespace: str) -> _Seen:
        with self._asking:
            return self._asked(namespace)

    def _asked(self, namespace: str) -> _Seen:
        known = self._seen.get(namespace)
        if known is not None and self._steady() - known.at < FRESH_S:
            return known
        # Jobs first: pods that are younger than their Job's answer can only have got further.
        jobs = self.api.listing("jobs", namespace, labels=names.SELECTOR)
        pods = self.api.listing("pods", namespace, labels=names.SELECTOR)
        seen = _Seen(
            self._steady(),
            tuple(map(read_job, jobs.items)),
            tuple(map(read_pod, pods.items)),
            {"jobs": jobs.version, "pods": pods.version},
        )
        self._seen[namespace] = seen
        return seen

    def _refused(self, namespace: str, name: str) -> Said | None:
        """The newest reason why a Job gets no pods; None without one, or the right to ask."""
        wanted = f"involvedObject.kind=Job,involvedObject.name={name},reason=FailedCreate"
        try:
            events = self.api.list("events", namespace, fields=wanted)
        except Refused:
            return None
        if not events:
            return None
        newest = max(events, key=lambda e: str(e.get("lastTimestamp") or ""))
        return Said(reason="FailedCreate", message=str(newest.get("message") or ""))
