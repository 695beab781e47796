"""From a Job and its pods to a phase, a reason in words and how the attempt ended. Pure.

what the server shows                      -> ending        what `decide` makes of it
DisruptionTarget PreemptionByScheduler     -> preempted     requeue, free
DisruptionTarget EvictionByEvictionAPI,
    TerminationByKubelet; status Evicted   -> preempted     requeue, free
DisruptionTarget DeletionByTaintManager,
    DeletionByPodGC; status NodeLost,
    NodeShutdown; Terminating for ever     -> node-fail     requeue, free
a pod deleted by hand, or by a server that
    gives no cause (before 1.26)           -> preempted     requeue, free
a replacement pod that stood aside (79)    -> preempted     requeue, free
the command cannot be started              -> start-error   requeue after a back-off, then hold
container OOMKilled                        -> oom           a failure, named as such
exit code 75, 76                           -> stopped       by the verdict, else requeue, free
exit code 74                               -> storage       requeue once the storage takes writes
activeDeadlineSeconds                      -> timeout       requeue (three without a commit: hold)
the Job deleted by other hands             -> cancelled     cancelled for good
another container outlives the agent  -> as its own container ended; the Job is ended
suspended by hand                      -> (pending)     wait; what it stopped is not counted
the Job withdrawn by us: image, settings   -> unstartable   hold
any other exit                             -> failed        by the verdict

unschedulable, quota, suspended, image not there yet: pending, and the reason in words; an
image or a setting that stays wrong is `stuck`, so that the run is held and its GPUs freed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from orchestrator.backends.base import Observation
from orchestrator.backends.kubernetes import names
from orchestrator.backends.kubernetes.objects import AnchorView, JobView, PodView, Said
from orchestrator.contract.records import Ending, ending_by_code

LOST_S = 30.0
"""A pod that still lives so long after its grace is on a node that has gone."""
STUCK_S = 600.0
"""How long an image may fail to come before the run is held."""
HOPELESS_S = 10.0
"""The same for what cannot mend itself."""
ROOM_S = 120.0
"""How long the pods that have found room hold it while there is none for the others."""
CREATED_S = 10.0
"""So soon, a Job without pods is nothing to explain."""

_HOPELESS = frozenset({"InvalidImageName", "ErrImageNeverPull"})
_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable"})
_SETTINGS = frozenset(
    {
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "StartError",
        "ContainerCannotRun",
    }
)
_DISRUPTIONS: dict[str, tuple[Ending, str]] = {
    "PreemptionByScheduler": ("preempted", "preempted by a pod of higher priority"),
    "EvictionByEvictionAPI": ("preempted", "evicted (a drain, or by hand)"),
    "TerminationByKubelet": ("preempted", "ended by its node (shutdown, or pressure)"),
    "DeletionByTaintManager": ("node-fail", "its node was lost or tainted"),
    "DeletionByPodGC": ("node-fail", "its node is gone"),
}
_STATUS: dict[str, tuple[Ending, str]] = {
    "Evicted": ("preempted", "evicted by its node"),
    "Preempting": ("preempted", "preempted on its node"),
    "NodeLost": ("node-fail", "its node was lost"),
    "NodeShutdown": ("node-fail", "its node was shut down"),
    "Shutdown": ("node-fail", "its node was shut down"),
    "Terminated": ("node-fail", "its node was shut down"),
}
_REPLACED = 79
AGENT = "[agent]"
"""Begins what the agent prints."""
WORDS = 500
"""So many letters of its last words are kept."""
_OOM = "OOMKilled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Everything that the server says of one submission."""

    number: int
    job: JobView | None
    pods: tuple[PodView, ...] = ()
    anchor: AnchorView | None = None
    refused: Said | None = None
    """The newest event that says why the Job gets no pods."""


def read(attempt: Attempt, now: float, uid: str = "") -> Observation:
    """What the controller is told. `now`: seconds since the epoch. `uid`: of the Job that was
    handed over; empty = not known.
    """
    job = attempt.job
    if job is not None and uid not in ("", job.uid):
        detail = "its Job has gone; another one has its name"
        return Observation(phase="unknown", detail=detail, forgotten=True)
    living = [p for p in attempt.pods if _is_living(p, now)]
    if job is None or job.deleted:
        return _deleted(attempt, living)
    over = [
        job.conditions[c] for c in ("Complete", "Failed", "FailureTarget") if c in job.conditions
    ]
    if living:
        return _living(attempt, job, living, now, stopping=bool(over))
    if over or any(is_lost(p, now) for p in attempt.pods):
        return _gone(attempt, job, now)
    if job.suspended:
        return _suspended(job)
    if any(p.lingers for p in attempt.pods):
        return replace(_gone(attempt, job, now), lingers=True)
    return _without_pods(attempt, job, now)


def _is_living(pod: PodView, now: float) -> bool:
    """A pod that is deleted before it was started holds nothing of the attempt: should its agent
    come up after all, it is told to stop, or stands aside.
    """
    never_started = pod.phase == "Pending" and pod.kill_at is not None
    return not (pod.has_ended or never_started or is_lost(pod, now))


def is_lost(pod: PodView, now: float) -> bool:
    """True for a pod whose node does not answer: deleted, its grace long over, still there."""
    return pod.kill_at is not None and now > pod.kill_at + LOST_S


def _deleted(attempt: Attempt, living: Sequence[PodView]) -> Observation:
    if living:
        return Observation(phase="running", detail=f"deleted; {_pods(len(living))} may still save")
    if attempt.anchor is None:
        return Observation(
            phase="unknown", detail="this cluster does not know the run", forgotten=True
        )
    back = attempt.anchor.taken_back
    if back is not None and back.submission != attempt.number:
        back = None
    if back is not None and back.over:
        return Observation(phase="gone", ending=back.ending, detail=back.why)
    if back is not None and back.at is not None:
        return Observation(phase="absent", given_back=back.count, since=back.at, detail=back.why)
    why = attempt.anchor.withdrawn.get(attempt.number)
    if why is not None:
        return Observation(phase="gone", ending="unstartable", detail=why)
    return Observation(phase="gone", ending="cancelled", detail="the Job was deleted")


def _living(
    attempt: Attempt, job: JobView, living: Sequence[PodView], now: float, *, stopping: bool
) -> Observation:
    running = [p for p in living if p.phase == "Running"]
    leaving = [p for p in living if p.kill_at is not None]
    if stopping or leaving:
        causes = [words for _, words in (cause(p, now) for p in leaving) if words]
        return Observation(phase="running", detail=", ".join(dict.fromkeys(causes)) or "stopping")
    waiting = [p for p in living if p.phase != "Running"]
    quota = _over_quota(attempt) if len(living) < job.nodes else ""
    if not waiting and not quota:
        return Observation(phase="running")
    words, stuck = _why_pending(waiting, now) if waiting else (quota, "")
    if job.nodes > 1:
        words = f"waits for {job.nodes - len(running)} of {job.nodes} pods: {words}"
    if not running:
        return Observation(phase="pending", detail=words, stuck=stuck)
    held = now - min(p.started_at or p.created_at for p in running)
    crowded = bool(quota) or any(p.unscheduled is not None for p in waiting)
    no_room = crowded and not stuck and held > ROOM_S
    return Observation(phase="running", detail=words, stuck=stuck, no_room=no_room)


def _suspended(job: JobView) -> Observation:
    """A queue suspends what it has not admitted, or takes back; else a person has done so."""
    if job.queue:
        return Observation(phase="pending", detail="suspended: its queue has not admitted it")
    words = f"suspended by hand; goes on when spec.suspend of Job {job.name} is false again"
    return Observation(phase="pending", detail=words, suspended=True)


def _over_quota(attempt: Attempt) -> str:
    said = attempt.refused.message if attempt.refused is not None else ""
    return f"the quota is used up: {said}" if "exceeded quota" in said else ""


def _why_pending(pods: Iterable[PodView], now: float) -> tuple[str, str]:
    """Words for a person, and what is stuck (empty: it may still come)."""
    words = "starting"
    for pod in pods:
        said = pod.waiting or Said()
        limit = HOPELESS_S if said.reason in _HOPELESS else STUCK_S
        late = now - pod.created_at > limit
        if said.reason in _HOPELESS | _IMAGE:
            text = f"the image cannot be had: {said}"
            return text, "image" if late else ""
        if said.reason in _SETTINGS:
            return f"the container cannot be made: {said}", "settings" if late else ""
        if pod.unscheduled is not None:
            words = f"no node has room: {pod.unscheduled.message or pod.unscheduled.reason}"
    return words, ""


def _without_pods(attempt: Attempt, job: JobView, now: float) -> Observation:
    if attempt.pods:
        return Observation(phase="running", detail="its pods have ended")
    if now - job.created_at < CREATED_S or attempt.refused is None:
        return Observation(phase="pending", detail="waiting for its pods")
    said, quota = attempt.refused.message, _over_quota(attempt)
    if quota:
        return Observation(phase="pending", detail=quota)
    late = now - job.created_at > STUCK_S
    return Observation(
        phase="pending",
        detail=f"the cluster refuses its pods: {said}",
        stuck="settings" if late else "",
    )


def _gone(attempt: Attempt, job: JobView, now: float) -> Observation:
    found = _how_gone(attempt, job, now)
    return replace(found, suspended=job.was_suspended and not job.queue)


def _how_gone(attempt: Attempt, job: JobView, now: float) -> Observation:
    clean = attempt.pods and all(p.exit_code == 0 for p in attempt.pods)
    if "Complete" in job.conditions or clean:
        return Observation(phase="gone", ending="completed")
    failed = job.conditions.get("Failed") or job.conditions.get("FailureTarget") or Said()
    if failed.reason == "DeadlineExceeded":
        return Observation(phase="gone", ending="timeout", detail=str(failed))
    if not attempt.pods:
        # One that failed by itself would still be there.
        return Observation(phase="gone", ending="preempted", detail="its pods were deleted")
    causes = [cause(p, now) for p in attempt.pods]
    for wanted in _ORDER:
        words = [w for ending, w in causes if ending == wanted]
        if words:
            return Observation(phase="gone", ending=wanted, detail=", ".join(dict.fromkeys(words)))
    return Observation(phase="gone", detail=str(failed))


_ORDER: tuple[Ending, ...] = (
    "start-error",
    "node-fail",
    "preempted",
    "oom",
    "stopped",
    "storage",
    "failed",
)
"""Of several pods: what was done to one of them counts before what the others made of it."""


def cause(pod: PodView, now: float) -> tuple[Ending, str]:
    """How one pod ended or is ending: kind, and words that name it."""
    found = _disruption(pod, now) or _exit(pod)
    if found is None:
        return "", ""
    ending, words = found
    return ending, f"{pod.name}: {words}"


def _disruption(pod: PodView, now: float) -> tuple[Ending, str] | None:
    if is_lost(pod, now) and pod.phase != "Pending" and not pod.has_ended:
        return "node-fail", f"node {pod.node} does not answer, or does not end it"
    if pod.disruption is not None:
        known = _DISRUPTIONS.get(pod.disruption.reason)
        return known or ("preempted", f"taken away ({pod.disruption})")
    if pod.status.reason in _STATUS:
        ending, words = _STATUS[pod.status.reason]
        return ending, f"{words} ({pod.status.message})" if pod.status.message else words
    return None


def _exit(pod: PodView) -> tuple[Ending, str] | None:
    if pod.exit_code == _REPLACED:
        return "preempted", "another pod was taken away; this replacement stood aside"
    if pod.ended is not None and pod.ended.reason in _SETTINGS:
        return "start-error", f"cannot be started: {pod.ended.message}"
    if pod.ended is not None and pod.ended.reason == _OOM:
        return "oom", "killed for memory (OOMKilled): raise resources.memory_gb"
    if pod.kill_at is not None:
        return "preempted", "deleted"
    if pod.phase == "Failed" or pod.exit_code:
        code = "" if pod.exit_code is None else f" with exit code {pod.exit_code}"
        words = _last_words(pod)
        said = f"ended{code}: {words}" if words else f"ended{code}"
        return ending_by_code(pod.exit_code) or "failed", said
    return None


def _last_words(pod: PodView) -> str:
    """What the agent printed last; without a line of its own, whatever came last."""
    lines = [x.strip() for x in (pod.ended or Said()).message.splitlines() if x.strip()]
    agents = [x.removeprefix(AGENT).strip() for x in lines if x.startswith(AGENT)]
    said = [x for x in agents if not x.startswith("hint:")] or lines
    return said[-1][:WORDS] if said else ""


def _pods(count: int) -> str:
    return "1 pod" if count == 1 else f"{count} pods"


def attempt_of(
    name: str,
    jobs: Sequence[JobView],
    pods: Sequence[PodView],
    anchors: Sequence[AnchorView],
    refused: Said | None = None,
) -> Attempt:
    """What of a namespace belongs to the Job of that name."""
    run_id, number = names.run_of(name)
    job = next((j for j in jobs if j.name == name), None)
    # A Job that was given back and came again finds pods of its name that are not its own.
    owners = ("",) if job is None else ("", job.uid)
    return Attempt(
        number=number,
        job=job,
        pods=tuple(p for p in pods if p.job == name and (job is None or p.owner in owners)),
        anchor=next((a for a in anchors if a.run_id == run_id), None),
        refused=refused,
    )
