"""What the Kubernetes backend does on every server: run on the fake and on a real one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.base import JobRef, Observation
from orchestrator.backends.kubernetes.api import ServerApi
from orchestrator.backends.kubernetes.backend import KubernetesBackend
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.contract.spec import TrainSpec
from orchestrator.errors import UserError
from tests.harness.waiting import until


@dataclass
class World:
    """A server, and jobs whose pods wait for a signal and then end with 75."""

    backend: KubernetesBackend
    job: ResolvedJob
    spec: TrainSpec
    get: Callable[[str], list[dict[str, Any]]]
    """All objects of a kind."""
    patience_s: float = 5.0

    def submit(self, number: int = 1, job: ResolvedJob | None = None, **spec: Any) -> JobRef:
        job = job or self.job
        sent = replace(self.spec, submission=number, nodes=job.resources.nodes, **spec)
        submission = self.backend.prepare(job, sent)
        return self.backend.submit(submission, f"{sent.run_id}-{number}")

    def see(self, identifier: JobRef) -> Observation:
        return self.backend.observe([identifier])[identifier]

    def until_all_run(self, identifier: JobRef, count: int) -> None:
        """A pod that is taken away while it is being started ends late on old servers."""
        self.until(identifier, "running")
        until(
            lambda: sum(p["status"].get("phase") == "Running" for p in self.get("pods")) >= count,
            self.patience_s,
            why=lambda: "not all pods run",
        )

    def until(self, identifier: JobRef, phase: str) -> Observation:
        end = time.monotonic() + self.patience_s
        while (seen := self.see(identifier)).phase != phase:
            assert time.monotonic() < end, f"{seen}, not {phase}"
            time.sleep(0.1)
        return seen


def make_spec(job: ResolvedJob, run_id: str, secrets: Path | None = None) -> TrainSpec:
    return TrainSpec(
        run_id=run_id,
        storage="/nowhere/run",
        submission=1,
        backend="kubernetes",
        nodes=job.resources.nodes,
        gpus_per_node=job.resources.gpus_per_node,
        grace_s=job.preemption.grace_s,
        python="/submitter/python",
        env=dict(job.env),
        secrets_file=str(secrets) if secrets else None,
    )


class KubernetesContract:
    """Subclasses give the fixture `world`."""

    def test_submitted_twice_is_one_job(self, world: World) -> None:
        first = world.submit()
        assert world.submit() == first
        assert (
            KubernetesBackend(ServerApi).submit(
                world.backend.prepare(world.job, world.spec), f"{world.spec.run_id}-1"
            )
            == first
        )
        assert len(world.get("jobs")) == 1

    def test_it_runs_and_a_notice_ends_it(self, world: World) -> None:
        identifier = world.submit()
        world.until(identifier, "running")
        world.backend.notify(identifier, "SIGTERM", None)
        seen = world.until(identifier, "gone")
        assert seen.ending == "preempted", seen

    @pytest.mark.parametrize("nodes", [2])
    def test_a_notice_to_a_gang(self, world: World, nodes: int) -> None:
        shape = replace(world.job.resources, nodes=nodes)
        identifier = world.submit(job=replace(world.job, resources=shape))
        world.until_all_run(identifier, nodes)
        world.backend.notify(identifier, "SIGTERM", None)
        seen = world.until(identifier, "gone")
        assert seen.ending == "preempted", (seen, [p["status"] for p in world.get("pods")])

    def test_cancelled(self, world: World) -> None:
        identifier = world.submit()
        world.until(identifier, "running")
        world.backend.cancel(identifier)
        world.backend.cancel(identifier)
        assert world.see(identifier).phase in ("running", "gone")
        assert world.until(identifier, "gone").ending == "cancelled"
        with pytest.raises(UserError, match="no pod that runs"):
            world.backend.notify(identifier, "SIGTERM", None)

    def test_a_wait_ends_when_the_job_changes(self, world: World) -> None:
        identifier = world.submit()
        world.until_all_run(identifier, 1)
        world.see(identifier)
        start = time.monotonic()
        while time.monotonic() - start < 0.5 * world.patience_s:
            began = time.monotonic()
            world.backend.wait(1.0, identifier)
            if time.monotonic() - began > 0.9:
                break
            world.see(identifier)
        else:
            pytest.fail("it never waits, though nothing happens")
        backend = world.backend
        for which, act in (
            (identifier, lambda: backend.notify(identifier, "SIGTERM", None)),
            (None, lambda: backend.cancel(identifier)),
        ):
            world.see(identifier)
            later = threading.Timer(0.3, act)
            later.start()
            began = time.monotonic()
            world.backend.wait(world.patience_s, which)
            assert time.monotonic() - began < world.patience_s - 1
            later.join()

    def test_withdrawn_is_not_cancelled(self, world: World) -> None:
        identifier = world.submit()
        world.backend.withdraw(identifier, "the image cannot be had: \n{{ x }}")
        world.backend.withdraw(identifier, "the image cannot be had: \n{{ x }}")
        seen = world.until(identifier, "gone")
        assert (seen.ending, seen.detail) == ("unstartable", "the image cannot be had: \n{{ x }}")

    def test_given_back_and_submitted_again(self, world: World) -> None:
        """The same submission under the same key; who deletes it by hand then cancels it."""
        identifier = world.submit()
        for count in (1, 2):
            world.until(identifier, "running")
            world.backend.give_back(identifier, "no {{ room }}\n")
            seen = world.until(identifier, "absent")
            assert (seen.given_back, seen.detail) == (count, "no {{ room }}\n")
            assert seen.since is not None
            assert abs(seen.since - time.time()) < world.patience_s
            again = world.submit()
            assert (again.id, again.uid != identifier.uid) == (identifier.id, True)
            identifier = again
        world.until(identifier, "running")
        world.backend.cancel(identifier)
        assert world.until(identifier, "gone").ending == "cancelled"

    def test_given_back_and_then_withdrawn(self, world: World) -> None:
        identifier = world.submit()
        world.backend.give_back(identifier, "no room")
        world.until(identifier, "absent")
        identifier = world.submit()
        world.backend.withdraw(identifier, "no image")
        seen = world.until(identifier, "gone")
        assert (seen.ending, seen.detail) == ("unstartable", "no image")

    def test_ended_by_us_keeps_its_ending(self, world: World) -> None:
        identifier = world.submit()
        world.until(identifier, "running")
        world.backend.end(identifier, "oom", "killed for memory")
        seen = world.until(identifier, "gone")
        assert (seen.ending, seen.detail, seen.lingers) == ("oom", "killed for memory", False)
        until(
            lambda: not world.get("jobs") and not world.get("pods"),
            10 * world.patience_s,
            why=lambda: "something is left",
        )

    def test_a_job_that_nobody_knows(self, world: World) -> None:
        namespace = world.submit().id.partition("/")[0]
        seen = world.see(JobRef(f"{namespace}/other-1", "other-1"))
        assert (seen.phase, seen.forgotten) == ("unknown", True)

    def test_the_next_submission_clears_away_what_would_still_start_pods(
        self, world: World
    ) -> None:
        first = world.submit()
        second = world.submit(2)
        assert first != second
        assert [j["metadata"]["name"] for j in world.get("jobs")] == [second.key]

    def test_secrets_travel_by_reference_and_are_forgotten(
        self, world: World, tmp_path: Path
    ) -> None:
        file = tmp_path / "secrets.json"
        file.write_text(json.dumps({"WORD": "swordfish"}))
        job = replace(world.job, secrets=("WORD",))
        identifier = world.submit(job=job, secrets_file=str(file))
        assert "swordfish" not in json.dumps(world.get("jobs"))
        mine = [
            s for s in world.get("secrets") if s["metadata"]["name"].startswith(world.spec.run_id)
        ]
        assert [s["metadata"]["name"] for s in mine] == [f"{world.spec.run_id}-env"]
        file.unlink()
        world.submit(2, job=job, secrets_file=str(file))
        world.backend.forget_secrets(world.spec.run_id, identifier.id)
        world.backend.forget_secrets(world.spec.run_id, identifier.id)
        with pytest.raises(UserError, match="not in the cluster any more"):
            world.submit(3, job=job, secrets_file=str(file))

    def test_runs_are_found_and_forgotten(self, world: World) -> None:
        identifier = world.submit()
        found = [f for f in world.backend.discover() if f.run_id == world.spec.run_id]
        assert [f.uri for f in found] == ["/nowhere/run"]
        world.backend.forget_run(world.spec.run_id, identifier.id)
        until(lambda: not world.get("jobs"))
        assert world.see(identifier).forgotten or world.see(identifier).phase == "running"

    def test_a_job_of_the_same_name_is_another_one(self, world: World) -> None:
        """Deleted and made again by other hands, say, or restored from a backup."""
        first = world.submit()
        world.until(first, "running")
        before = replace(first, uid="00000000-0000-0000-0000-000000000000")
        world.backend.cancel(before)
        with pytest.raises(UserError, match="no pod that runs"):
            world.backend.notify(before, "SIGTERM", None)
        assert world.see(first).phase == "running"
        assert (world.see(before).phase, world.see(before).forgotten) == ("unknown", True)
        assert not any(p["metadata"].get("deletionTimestamp") for p in world.get("pods"))
        older = replace(first, uid="")
        assert world.see(older).phase == "running", "submitted by a version that noted none"
        world.backend.cancel(older)
        world.until(first, "gone")

    def test_only_what_kubernetes_can_deliver(self, world: World) -> None:
        identifier = world.submit()
        with pytest.raises(UserError, match="SIGTERM"):
            world.backend.notify(identifier, "SIGUSR1", None)
        with pytest.raises(UserError, match="whole pods"):
            world.backend.notify(identifier, "SIGTERM", 1)
