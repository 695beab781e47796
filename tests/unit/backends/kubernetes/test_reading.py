"""From what a server shows to a phase, an ending and words; and what is decided of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.backends.kubernetes import reading
from orchestrator.backends.kubernetes.objects import (
    AnchorView,
    JobView,
    PodView,
    Said,
    TakenBack,
    read_pod,
)
from orchestrator.backends.kubernetes.reading import Attempt, read
from orchestrator.domain.decide import Cancel, Decision, Hold, Requeue, Wait, decide
from orchestrator.domain.facts import AttemptFacts, RunFacts, taken_away
from orchestrator.domain.verdict import Verdict

NOW = 10_000.0
JOB = JobView(name="run-1", run_id="run", created_at=NOW - 100)
ANCHOR = AnchorView(run_id="run")
POD = PodView(name="p", job="run-1", phase="Running", node="n1", created_at=NOW - 90)
FAILED = replace(JOB, conditions={"Failed": Said(reason="BackoffLimitExceeded")})


def attempt(*pods: PodView, job: JobView | None = JOB, **more: Any) -> Attempt:
    return Attempt(number=1, job=job, pods=pods, anchor=more.pop("anchor", ANCHOR), **more)


def ended(code: int, **more: Any) -> PodView:
    said = more.pop("ended", Said(reason="Error"))
    return replace(POD, phase="Failed", exit_code=code, ended=said, **more)


def pending(**more: Any) -> PodView:
    return replace(POD, phase="Pending", **more)


@pytest.mark.parametrize(
    ("pod", "ending", "words"),
    [
        (ended(75, disruption=Said(reason="PreemptionByScheduler")), "preempted", "priority"),
        (ended(75, disruption=Said(reason="EvictionByEvictionAPI")), "preempted", "evicted"),
        (ended(75, disruption=Said(reason="TerminationByKubelet")), "preempted", "shutdown"),
        (ended(137, disruption=Said(reason="DeletionByTaintManager")), "node-fail", "tainted"),
        (ended(137, disruption=Said(reason="DeletionByPodGC")), "node-fail", "node is gone"),
        (ended(137, disruption=Said(reason="NewReason")), "preempted", "NewReason"),
        (ended(137, status=Said(reason="Evicted", message="disk")), "preempted", "disk"),
        (ended(137, status=Said(reason="NodeShutdown")), "node-fail", "shut down"),
        (replace(POD, kill_at=NOW - 60), "node-fail", "n1 does not answer"),
        (ended(75, kill_at=NOW), "preempted", "deleted"),
        (ended(79), "preempted", "stood aside"),
        (ended(137, ended=Said(reason="OOMKilled")), "oom", "memory_gb"),
        (
            ended(128, ended=Said(reason="StartError", message="no such file")),
            "start-error",
            "no such file",
        ),
        (ended(1), "failed", "exit code 1"),
        (
            ended(1, ended=Said(message="[rank-0] step\n[agent] /runs/x: Permission denied\n")),
            "failed",
            "p: ended with exit code 1: /runs/x: Permission denied",
        ),
        (
            ended(1, ended=Said(message="Traceback\n  x\nImportError: y\n")),
            "failed",
            "1: ImportError: y",
        ),
        (ended(75), "stopped", "exit code 75"),
        (ended(74), "storage", "exit code 74"),
    ],
)
def test_how_an_attempt_ended(pod: PodView, ending: str, words: str) -> None:
    seen = read(attempt(pod, job=FAILED), NOW)
    assert (seen.phase, seen.ending) == ("gone", ending)
    assert words in seen.detail


def test_what_was_done_to_one_pod_counts_before_what_the_others_made_of_it() -> None:
    evicted = ended(75, name="a", disruption=Said(reason="EvictionByEvictionAPI"))
    seen = read(attempt(ended(1, name="b"), evicted, job=FAILED), NOW)
    assert (seen.ending, seen.detail) == ("preempted", "a: evicted (a drain, or by hand)")


def test_a_failed_job_without_any_pod_lost_them() -> None:
    """Before 1.26 the objects of deleted pods go, and the Job removes the replacements."""
    seen = read(attempt(job=FAILED), NOW)
    assert (seen.phase, seen.ending) == ("gone", "preempted")
    assert isinstance(decided(seen), Requeue)


def test_a_job_is_gone_only_when_its_last_pod_is() -> None:
    leaving = replace(POD, kill_at=NOW + 5)
    assert read(attempt(ended(75), leaving, job=FAILED), NOW).phase == "running"
    assert read(attempt(ended(75), leaving, job=FAILED), NOW + 30).phase == "running"
    assert read(attempt(ended(75), leaving, job=FAILED), NOW + 36).phase == "gone"
    assert read(attempt(leaving, job=None), NOW).phase == "running"
    assert read(attempt(job=None), NOW).phase == "gone"


def test_a_replacement_that_is_deleted_before_it_started_holds_nothing_up() -> None:
    """Nodes of old servers may take a minute over it."""
    unborn = pending(kill_at=NOW + 5)
    seen = read(attempt(ended(79), unborn, job=FAILED), NOW)
    assert (seen.phase, seen.ending) == ("gone", "preempted")
    seen = read(attempt(ended(79), unborn, job=FAILED), NOW + 60)
    assert (seen.phase, seen.ending) == ("gone", "preempted")


def test_a_replacement_that_waits_does_not_end_the_attempt() -> None:
    """The object of the first pod has gone; before 1.28 another one is there at once."""
    assert read(attempt(pending()), NOW).phase == "pending"
    assert read(attempt(), NOW).phase == "pending"


@pytest.mark.parametrize(
    ("pod", "words", "stuck"),
    [
        (pending(unscheduled=Said(reason="Unschedulable", message="0/2 nodes")), "0/2 nodes", ""),
        (pending(waiting=Said(reason="ErrImagePull", message="nope")), "nope", ""),
        (pending(waiting=Said(reason="ImagePullBackOff"), created_at=0.0), "image", "image"),
        (pending(waiting=Said(reason="InvalidImageName")), "image", "image"),
        (pending(waiting=Said(reason="InvalidImageName"), created_at=NOW), "image", ""),
        (
            pending(waiting=Said(reason="CreateContainerConfigError", message="secret")),
            "secret",
            "",
        ),
        (
            pending(waiting=Said(reason="CreateContainerConfigError"), created_at=0.0),
            "container",
            "settings",
        ),
        (pending(waiting=Said(reason="ContainerCreating"), created_at=0.0), "starting", ""),
    ],
)
def test_why_it_waits(pod: PodView, words: str, stuck: str) -> None:
    seen = read(attempt(pod), NOW)
    assert (seen.phase, seen.stuck) == ("pending", stuck)
    assert words in seen.detail


def test_a_gang_of_which_a_part_runs() -> None:
    waits = pending(unscheduled=Said(message="0/2 nodes"), name="q")
    seen = read(attempt(POD, waits, job=replace(JOB, nodes=2)), NOW)
    assert seen.phase == "running"
    assert seen.detail == "waits for 1 of 2 pods: no node has room: 0/2 nodes"
    assert not seen.no_room, "the other node may come at any moment"


GANG = replace(JOB, nodes=2)
HOLDS = replace(POD, started_at=NOW - reading.ROOM_S - 1)
QUOTA = Said(message='pods "run-1-x" is forbidden: exceeded quota: gpus')


@pytest.mark.parametrize(
    ("pods", "no_room", "words"),
    [
        ((HOLDS, pending(unscheduled=Said(message="0/2"))), True, "1 of 2 pods: no node has room"),
        ((HOLDS,), True, "1 of 2 pods: the quota is used up"),
        ((HOLDS, pending(waiting=Said(reason="ErrImagePull"))), False, "the image cannot be had"),
        ((HOLDS, pending()), False, "1 of 2 pods: starting"),
        ((HOLDS, replace(HOLDS, name="q")), False, ""),
        ((pending(unscheduled=Said(message="0/2")),) * 2, False, "2 of 2 pods: no node has room"),
    ],
)
def test_what_is_held_in_vain(pods: tuple[PodView, ...], no_room: bool, words: str) -> None:
    """Only the scheduler's own word, or a quota, gives it back, and only where something is held;
    a part that has waited for hours without holding anything may go on waiting.
    """
    refused = QUOTA if len(pods) < 2 else None
    seen = read(attempt(*pods, job=GANG, refused=refused), NOW)
    assert (seen.no_room, words in seen.detail) == (no_room, True), seen


def test_a_job_that_was_given_back_is_absent_and_not_cancelled() -> None:
    """Until it is there again: from then on, who deletes it cancels the run."""
    note = TakenBack(submission=1, count=2, at=NOW - 5, why="no room")
    anchor = replace(ANCHOR, taken_back=note, withdrawn={1: "no room"})
    seen = read(attempt(job=None, anchor=anchor), NOW)
    assert (seen.phase, seen.given_back, seen.since) == ("absent", 2, NOW - 5)
    again = replace(anchor, taken_back=replace(note, at=None), withdrawn={})
    assert read(attempt(job=None, anchor=again), NOW).ending == "cancelled"
    older = replace(anchor, taken_back=replace(note, submission=3), withdrawn={})
    assert read(attempt(job=None, anchor=older), NOW).ending == "cancelled"


def test_without_pods() -> None:
    quota = Said(message="pods is forbidden: exceeded quota: none")
    seen = read(attempt(refused=quota, job=replace(JOB, created_at=0.0)), NOW)
    assert (seen.phase, seen.stuck) == ("pending", "")
    assert "quota" in seen.detail
    policy = Said(message="violates PodSecurity")
    young = read(attempt(refused=policy), NOW)
    assert (young.phase, young.stuck) == ("pending", "")
    old = read(attempt(refused=policy, job=replace(JOB, created_at=0.0)), NOW)
    assert old.stuck == "settings"
    assert "violates" in old.detail
    held = read(attempt(job=replace(JOB, suspended=True)), NOW)
    assert (held.phase, "suspended" in held.detail) == ("pending", True)


def test_a_job_that_is_not_there() -> None:
    assert read(attempt(job=None), NOW).ending == "cancelled"
    withdrawn = AnchorView(run_id="run", withdrawn={1: "no image"})
    seen = read(attempt(job=None, anchor=withdrawn), NOW)
    assert (seen.phase, seen.ending, seen.detail) == ("gone", "unstartable", "no image")
    other = AnchorView(run_id="run", withdrawn={7: "no image"})
    assert read(attempt(job=None, anchor=other), NOW).ending == "cancelled"
    strange = read(attempt(job=None, anchor=None), NOW)
    assert (strange.phase, strange.forgotten) == ("unknown", True), "perhaps another cluster"


def test_complete_and_deadline() -> None:
    done = replace(JOB, conditions={"Complete": Said()})
    assert read(attempt(job=done), NOW).ending == "completed"
    late = replace(JOB, conditions={"Failed": Said(reason="DeadlineExceeded")})
    assert read(attempt(ended(75), job=late), NOW).ending == "timeout"
    early = replace(JOB, conditions={"FailureTarget": Said(reason="BackoffLimitExceeded")})
    assert read(attempt(POD, job=early), NOW).phase == "running"


SILENT = Verdict(1, "killed", "no verdict")


def decided(seen: Any, verdict: Verdict = SILENT, *, unclaimed: int = 0) -> Decision:
    """What comes of an observation after one attempt; silent: the agent left no word."""
    silent = verdict is SILENT
    lost = taken_away(seen.ending, silent=silent, started_again=False, after_lost=False)
    last = AttemptFacts(number=1, submission=1, verdict=verdict, ending=seen.ending, lost=lost)
    facts = RunFacts(
        attempts=() if unclaimed else (last,),
        newest_submission=1,
        submitted_at=0.0,
        unclaimed=unclaimed,
        backend=seen.phase,
        ending=seen.ending,
        stuck=seen.stuck,
        detail=seen.detail,
    )
    return decide(facts)


PREEMPTED = Verdict(75, "preempted", "SIGTERM")
CRASHED = Verdict(1, "crash", "rank 0: killed by signal 9")


@pytest.mark.parametrize(
    ("pod", "verdict", "decision", "words"),
    [
        (ended(75, disruption=Said(reason="PreemptionByScheduler")), PREEMPTED, Requeue, ""),
        (ended(137, disruption=Said(reason="PreemptionByScheduler")), SILENT, Requeue, "taken"),
        (replace(POD, kill_at=NOW - 60), SILENT, Requeue, "taken away (node-fail)"),
        (ended(79), SILENT, Requeue, "taken away"),
        (ended(137, kill_at=NOW), SILENT, Requeue, "taken away"),
        (ended(137, ended=Said(reason="OOMKilled")), CRASHED, Requeue, "failed (memory)"),
        (ended(137, ended=Said(reason="OOMKilled")), SILENT, Requeue, "failed (memory)"),
        (ended(1), CRASHED, Requeue, "failed (crash)"),
    ],
)
def test_what_is_decided(pod: PodView, verdict: Verdict, decision: type, words: str) -> None:
    found = decided(read(attempt(pod, job=FAILED), NOW), verdict)
    assert isinstance(found, decision)
    assert words in found.reason
    free = not found.reason.startswith("failed")
    assert (found.not_before == 0.0) == free


def test_what_is_decided_of_a_job_that_waits() -> None:
    room = read(attempt(pending(unscheduled=Said(message="0/2 nodes"))), NOW)
    assert decided(room) == Wait("no node has room: 0/2 nodes")
    image = read(attempt(pending(waiting=Said(reason="InvalidImageName", message="x y"))), NOW)
    assert decided(image) == Hold("image", "the image cannot be had: InvalidImageName: x y")
    back = AnchorView(run_id="run", withdrawn={1: "the image cannot be had"})
    taken = read(attempt(job=None, anchor=back), NOW)
    assert decided(taken) == Hold("unstartable", "the image cannot be had")
    assert decided(read(attempt(job=None), NOW)) == Cancel()


def test_a_command_that_cannot_be_started_is_tried_three_times() -> None:
    pod = ended(128, ended=Said(reason="StartError", message="no such file"))
    seen = read(attempt(pod, job=FAILED), NOW)
    assert isinstance(decided(seen, unclaimed=2), Requeue)
    held = decided(seen, unclaimed=3)
    assert isinstance(held, Hold)
    assert "no such file" in held.message


def test_killed_for_memory_again_and_again_is_held_with_the_cure() -> None:
    seen = read(attempt(ended(137, ended=Said(reason="OOMKilled")), job=FAILED), NOW)
    last = AttemptFacts(number=1, submission=1, verdict=CRASHED, ending="oom")
    facts = RunFacts(
        attempts=tuple(replace(last, number=n) for n in (1, 2, 3)),
        newest_submission=1,
        backend="gone",
        ending=seen.ending,
        detail=seen.detail,
    )
    found = decide(facts)
    assert isinstance(found, Hold)
    assert "raise resources.memory_gb" in found.message


def with_sidecar(code: int | None) -> PodView:
    """As the server lists them: by name, not as the manifest does."""
    ours = {"running": {}} if code is None else {"terminated": {"exitCode": code, "reason": "x"}}
    statuses = [
        {"name": "monitor", "state": {"running": {}}},
        {"name": "train", "state": ours},
    ]
    meta = {"name": "p", "labels": {"job-name": "run-1"}}
    return read_pod(
        {"metadata": meta, "status": {"phase": "Running", "containerStatuses": statuses}}
    )


@pytest.mark.parametrize(
    ("codes", "phase", "lingers", "ending"),
    [
        ((None,), "running", False, ""),
        ((0,), "gone", True, "completed"),
        ((75,), "gone", True, "stopped"),
        ((0, None), "running", False, ""),
        ((75, 0), "gone", True, "stopped"),
    ],
)
def test_a_container_that_outlives_the_agent(
    codes: tuple[int | None, ...], phase: str, lingers: bool, ending: str
) -> None:
    pods = [with_sidecar(code) for code in codes]
    seen = read(attempt(*pods, job=replace(JOB, nodes=len(pods))), NOW)
    assert (seen.phase, seen.lingers, seen.ending) == (phase, lingers, ending)


def test_a_pod_whose_only_container_has_just_ended_does_not_linger() -> None:
    """Its phase follows a moment later: nothing of it need be ended by us."""
    states = [{"name": "train", "state": {"terminated": {"exitCode": 75}}}]
    raw = {
        "metadata": {"name": "p", "labels": {"job-name": "run-1"}},
        "status": {"phase": "Running", "containerStatuses": states},
    }
    seen = read(attempt(read_pod(raw)), NOW)
    assert (seen.phase, seen.lingers) == ("running", False)


def test_pods_of_any_server_can_be_read() -> None:
    for raw in ({}, {"status": None}, {"metadata": {"deletionTimestamp": "x"}}, {"spec": []}):
        assert read_pod(raw).phase == "Pending"
    assert reading.LOST_S > 0
