"""What of a Job, a pod and a run's ConfigMap matters here, read from what a server sends. Pure.

Servers differ by many versions: whatever is missing has its neutral value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from orchestrator.backends.kubernetes import names
from orchestrator.contract.jsonio import MalformedJson, from_json, loads
from orchestrator.contract.records import Ending

Raw = Mapping[str, Any]
ENDED = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A reason and a message, as conditions, states and events carry them."""

    reason: str = ""
    message: str = ""

    def __str__(self) -> str:
        return ": ".join(x for x in (self.reason, self.message) if x)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodView:
    """One pod of an attempt. Times are seconds since the epoch."""

    name: str
    uid: str = ""
    job: str = ""
    owner: str = ""
    """The uid of the Job that it belongs to."""
    phase: str = "Pending"
    node: str = ""
    created_at: float = 0.0
    started_at: float | None = None
    """Since when its node holds what it asked for."""
    kill_at: float | None = None
    """Set while it is being deleted: when its grace is over."""
    disruption: Said | None = None
    """Condition DisruptionTarget (servers from 1.26 on)."""
    status: Said = field(default_factory=Said)
    unscheduled: Said | None = None
    waiting: Said | None = None
    ended: Said | None = None
    """Why our container ended."""
    exit_code: int | None = None
    others_run: bool = False
    """A container that is not ours runs."""

    @property
    def has_ended(self) -> bool:
        """Our container has: nothing starts it again."""
        return self.phase in ENDED or self.ended is not None

    @property
    def lingers(self) -> bool:
        """Another container holds what ours has left."""
        return self.ended is not None and self.others_run


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """One Job."""

    name: str
    uid: str = ""
    run_id: str = ""
    nodes: int = 1
    created_at: float = 0.0
    suspended: bool = False
    was_suspended: bool = False
    queue: str = ""
    """The queue that may suspend it, and does so to take its room."""
    deleted: bool = False
    conditions: Mapping[str, Said] = field(default_factory=dict)
    """Those that are true, by type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenBack:
    """A note on a Job that we deleted, though its run goes on."""

    submission: int
    count: int = 0
    """How often there was no room for it."""
    at: float | None = None
    """When it was deleted for that, in seconds since the epoch; None: it was submitted again."""
    why: str = ""
    over: bool = False
    """It was deleted because its attempt had ended, and not for want of room."""
    ending: Ending = ""
    """How it had ended then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorView:
    """The run's ConfigMap: it says that this cluster knows the run."""

    run_id: str
    run_dir: str = ""
    withdrawn: Mapping[int, str] = field(default_factory=dict)
    taken_back: TakenBack | None = None


def read_pod(raw: Raw) -> PodView:
    """A pod of the server's."""
    meta, status = _map(raw, "metadata"), _map(raw, "status")
    conditions = _conditions(status)
    state = _map(_container(status), "state")
    terminated = state.get("terminated")
    return PodView(
        name=str(meta.get("name", "")),
        uid=str(meta.get("uid", "")),
        owner=next((str(o.get("uid")) for o in meta.get("ownerReferences") or ()), ""),
        job=str(_map(meta, "labels").get("job-name", "")),
        phase=str(status.get("phase", "Pending")),
        node=str(_map(raw, "spec").get("nodeName") or ""),
        created_at=_seconds(meta.get("creationTimestamp")) or 0.0,
        started_at=_seconds(status.get("startTime")),
        kill_at=_seconds(meta.get("deletionTimestamp")),
        disruption=conditions.get("DisruptionTarget", (False, None))[1]
        if conditions.get("DisruptionTarget", (False,))[0]
        else None,
        status=_said(status),
        unscheduled=conditions["PodScheduled"][1]
        if conditions.get("PodScheduled", (True,))[0] is False
        else None,
        waiting=_said(state["waiting"]) if state.get("waiting") else None,
        ended=_said(terminated) if terminated else None,
        others_run=any(
            c.get("name") != names.CONTAINER and _map(c, "state").get("running") is not None
            for c in status.get("containerStatuses") or ()
        ),
        exit_code=int(terminated["exitCode"]) if terminated else None,
    )


def read_job(raw: Raw) -> JobView:
    """A Job of the server's."""
    meta, spec = _map(raw, "metadata"), _map(raw, "spec")
    return JobView(
        name=str(meta.get("name", "")),
        uid=str(meta.get("uid", "")),
        run_id=str(_map(meta, "labels").get(names.RUN, "")),
        nodes=int(spec.get("completions") or 1),
        created_at=_seconds(meta.get("creationTimestamp")) or 0.0,
        suspended=bool(spec.get("suspend")),
        was_suspended="Suspended" in _conditions(_map(raw, "status")),
        queue=str(_map(meta, "labels").get(names.QUEUE, "")),
        deleted=bool(meta.get("deletionTimestamp")),
        conditions={
            k: said for k, (true, said) in _conditions(_map(raw, "status")).items() if true
        },
    )


def read_anchor(raw: Raw) -> AnchorView:
    """A run's ConfigMap of the server's."""
    meta = _map(raw, "metadata")
    notes = _map(meta, "annotations")
    number, _, why = str(notes.get(names.WITHDRAWN, "")).partition(" ")
    return AnchorView(
        run_id=str(_map(meta, "labels").get(names.RUN, "")),
        run_dir=str(notes.get(names.RUN_DIR, "")),
        withdrawn={int(number): why} if number.isdecimal() else {},
        taken_back=_taken_back(notes.get(names.TAKEN_BACK)),
    )


def _container(status: Raw) -> Raw:
    """What is said of our container; the server lists them in an order of its own."""
    found = status.get("containerStatuses") or ()
    ours = (c for c in found if c.get("name") == names.CONTAINER)
    return next(ours, next(iter(found), {}))


def _taken_back(text: Any) -> TakenBack | None:
    """None for a note that is not there or that nobody of ours has written."""
    try:
        return from_json(TakenBack, loads(str(text or "").encode()))
    except MalformedJson:
        return None


def _conditions(status: Raw) -> dict[str, tuple[bool, Said]]:
    found = {}
    for condition in status.get("conditions") or ():
        true = condition.get("status") == "True"
        found[str(condition.get("type"))] = (true, _said(condition))
    return found


def _said(raw: Raw) -> Said:
    return Said(reason=str(raw.get("reason") or ""), message=str(raw.get("message") or ""))


def _map(raw: Raw, name: str) -> Raw:
    value = raw.get(name)
    return value if isinstance(value, Mapping) else {}


def _seconds(text: Any) -> float | None:
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
