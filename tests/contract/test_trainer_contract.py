"""What the orchestrator may expect of a trainer; the fake and the real one alike.

The real cases are marked `training`. Every disturbed run is resumed and compared bit for bit
with the undisturbed one: losses, learning rates, samples, evaluations, final adapter.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.contract import layout
from orchestrator.contract.jsonio import pretty, to_json
from orchestrator.contract.manifest import decode_manifest, encode_manifest
from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.contract.spec import StartPoint
from orchestrator.helper.rendezvous import free_port
from orchestrator.run_directory import checkpoints
from tests.harness import jobs
from tests.harness.ranks import ROOT, Attempt, Run

STEPS, EVERY, EVAL_EVERY = 8, 4, 3
EVALUATED = [3, 6, 8]
Spot = dict[str, Any]


@dataclass
class Flavour:
    """One implementation of the contract, with its data and its undisturbed run."""

    module: str
    job: ResolvedJob
    folder: Path
    straight: tuple[Run, Attempt] | None = None

    def run(self, name: str, **changes: Any) -> Run:
        job = dataclasses.replace(self.job, **changes)
        return Run(self.folder / f"run-{name}", job, self.module)

    def undisturbed(self) -> tuple[Run, Attempt]:
        """The run that nothing happens to, and its one attempt."""
        if self.straight is None:
            run = self.run("straight")
            attempt = run.start()
            assert attempt.wait() == [0, 0]
            self.straight = run, attempt
        return self.straight


def make_flavour(folder: Path, module: str) -> Flavour:
    jobs.write_data(folder)
    job = jobs.job(
        folder,
        every_steps=EVERY,
        evaluate=True,
        max_steps=STEPS,
        eval_strategy="steps",
        eval_steps=EVAL_EVERY,
        per_device_eval_batch_size=2,
        logging_steps=3,
    )
    return Flavour(module, job, folder)


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Flavour:
    return make_flavour(tmp_path_factory.mktemp("fake"), "tests.harness.fakeprobe")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Flavour:
    flavour = make_flavour(tmp_path_factory.mktemp("real"), "tests.harness.probe")
    jobs.make_model(flavour.folder)
    return flavour


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.training)])
def flavour(request: pytest.FixtureRequest) -> Flavour:
    found: Flavour = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def quick(fake: Flavour) -> Flavour:
    """For cases that only the fake is asked."""
    return fake


def probe(*spots: Spot) -> dict[str, str]:
    return {"QVL_PROBE": json.dumps(spots)}


def at(place: str, step: int, rank: int, name: str = "SIGTERM", **more: int) -> Spot:
    return {"at": place, "step": step, "rank": rank, "signal": name, **more}


def evaluations(*attempts: Attempt) -> list[tuple[int, float]]:
    return [(e["step"], e["metrics"]["eval_loss"]) for a in attempts for e in a.events("evaluated")]


def curve(run: Run, rank: int) -> list[tuple[Any, ...]]:
    return [
        (r.step, r.loss_hex, r.learning_rate, r.grad_norm, r.samples, r.micro_losses)
        for r in run.curve(rank)
    ]


def assert_same_result(run: Run, straight: Run) -> None:
    for rank in (0, 1):
        assert curve(run, rank) == curve(straight, rank)
    assert run.commits()[-1].adapter_sha256 == straight.commits()[-1].adapter_sha256
    assert run.view().is_done()
    assert run.storage.get(layout.DONE)


COURSE: list[tuple[str, list[Spot], int, int | None]] = [
    ("before the first step", [at("fetch", 0, 1)], 76, None),
    ("in the first window", [at("micro", 0, 0, micro=1)], 76, None),
    ("all ranks at a boundary", [at("boundary", 3, r) for r in (0, 1)], 75, 3),
    ("in the evaluation that is repeated", [at("eval", 3, 1)], 76, 3),
    ("during a periodic save", [at("save", 4, 1)], 75, 4),
    ("one rank in mid-accumulation", [at("micro", 5, 1, "SIGUSR1", micro=1)], 75, 5),
    ("at once after the resume", [at("micro", 5, 0, micro=0)], 76, 5),
    ("in an evaluation", [at("eval", 6, 0)], 75, 6),
    ("while fetching, and again", [at("fetch", 7, 0), at("save", 7, 0, "SIGUSR2")], 75, 7),
    ("in the last evaluation", [at("eval", 8, 1, "SIGUSR1")], 75, 8),
]
"""What happens to each attempt of one run: (where, spots, exit code, newest committed step)."""


@pytest.mark.timeout(1200)
def test_disturbed_run_equals_the_undisturbed(flavour: Flavour) -> None:
    """Every attempt but the last is disturbed; that one has only the end left to do."""
    straight, whole = flavour.undisturbed()
    run = flavour.run("disturbed")
    attempts: list[Attempt] = []
    resumed: list[int] = []
    for where, spots, code, committed in COURSE:
        attempts.append(run.start(extra_env=probe(*spots)))
        assert attempts[-1].wait() == [code, code], where
        assert [e["code"] for e in attempts[-1].endings()] == [code, code], where
        notices = [m["signal"] for _, m in attempts[-1].messages if m["t"] == "notice"]
        assert sorted(notices) == sorted(s["signal"] for s in spots), where
        assert [e["step"] for e in attempts[-1].events("resumed")] == resumed, where
        assert (run.commits()[-1].step if run.commits() else None) == committed, where
        interrupted = [{"step": s["step"]} for s in spots if s["at"] == "eval"]
        assert attempts[-1].events("eval_interrupted") == interrupted, where
        if interrupted:
            newest = run.commits()[-1].directory
            assert checkpoints.read_manifest(run.storage, newest, None).pending_eval, where
        resumed = [] if committed is None else [committed]
    last = run.start()
    assert last.wait() == [0, 0]
    assert [m["step"] for _, m in last.messages if m["t"] == "progress"] == []
    assert evaluations(*attempts, last) == evaluations(whole)
    assert [step for step, _ in evaluations(whole)] == EVALUATED
    assert_same_result(run, straight)
    assert to_json(run.view().done().done())["step"] == STEPS  # type: ignore[union-attr]


def test_notice_while_loading_ends_every_rank_at_once(flavour: Flavour) -> None:
    run = flavour.run("loading")
    attempt = run.start(assign=False, extra_env={"QVL_FAKE_LOAD_S": "60"})
    attempt.wait_for(lambda r, m: r == 1 and m["t"] == "hello")
    attempt.signal(signal.SIGUSR1, 1)
    assert attempt.wait(10.0) == [76, 76]
    assert run.commits() == []


@pytest.mark.training
def test_notice_between_model_and_engine(real: Flavour) -> None:
    run = real.run("loading-engine")
    attempt = run.start()
    attempt.wait_phase("adapter", 1)
    attempt.signal(signal.SIGTERM, 1)
    assert attempt.wait(20.0) == [76, 76]
    assert run.commits() == []


def test_stop_of_the_agent_is_served_like_a_signal(quick: Flavour) -> None:
    run = quick.run("agent-stop")
    attempt = run.start(extra_env={"QVL_FAKE_STEP_S": "0.3"})
    attempt.wait_step(2)
    attempt.stop("preempt", 30.0)
    assert attempt.wait() == [75, 75]
    assert run.commits()[-1].trigger == "notice"


def test_fenced_attempt_commits_nothing_and_says_so(flavour: Flavour) -> None:
    run = flavour.run("fenced")
    attempt = run.start(extra_env={"QVL_FAKE_STEP_S": "0.2"})
    attempt.wait_phase("imports")
    run.log.append("fence", 2)
    assert attempt.wait() == [79, 79]
    assert run.commits() == []


def test_ranks_leave_when_the_agent_dies(quick: Flavour) -> None:
    attempt = quick.run("orphans").start(extra_env={"QVL_FAKE_STEP_S": "5"})
    attempt.wait_phase("training")
    for link in attempt.links:
        link.shutdown(socket.SHUT_RDWR)
    assert attempt.wait(5.0) == [1, 1]


def test_changed_state_is_refused(flavour: Flavour) -> None:
    straight, _ = flavour.undisturbed()
    run = flavour.run("tampered")
    directory = run.folder / "copy"
    shutil.copytree(straight.folder / straight.commits()[-1].directory, directory)
    path = directory / layout.MANIFEST
    manifest = decode_manifest(path.read_bytes())
    other = (manifest.rank_digests[0], "blake3:" + "0" * 64)
    path.write_bytes(encode_manifest(dataclasses.replace(manifest, rank_digests=other)))
    attempt = run.start(StartPoint(kind="checkpoint", step=STEPS, directory=str(directory)))
    attempt.wait()
    refusal = [e for e in attempt.endings() if e["code"] == 78]
    assert refusal[0]["reason"] == "contract"
    assert "rank 1" in refusal[0]["message"]


@pytest.mark.parametrize(("knob", "code", "reason"), [("OOM", 77, "oom"), ("CRASH", 1, "crash")])
def test_failures_have_their_code(quick: Flavour, knob: str, code: int, reason: str) -> None:
    run = quick.run(knob)
    slowly = {"QVL_FAKE_STEP_S": "0.3"}
    attempt = run.start(extra_env={f"QVL_FAKE_{knob}_AT": "6:1", **slowly})
    assert attempt.wait()[1] == code
    assert (1, reason) in [(r, m["reason"]) for r, m in attempt.messages if m["t"] == "ending"]
    assert run.commits()[-1].step == 4


def test_failed_periodic_save_does_not_stop_training(quick: Flavour) -> None:
    straight, _ = quick.undisturbed()
    run = quick.run("savefail")
    attempt = run.start(extra_env={"QVL_FAKE_SAVEFAIL_AT": "4:1"})
    assert attempt.wait() == [0, 0]
    assert "rank 1" in attempt.events("save_failed")[0]["message"]
    assert [c.step for c in run.commits()] == [8]
    assert_same_result(run, straight)


def test_smaller_micro_batches_see_the_same_samples(quick: Flavour) -> None:
    straight, _ = quick.undisturbed()
    run = quick.run("plan")
    assert run.start(extra_env=probe(at("boundary", 3, 0))).wait() == [75, 75]
    attempt = run.start(plan=BatchPlan(micro=1, accumulation=6, world_size=2))
    assert attempt.wait() == [0, 0]
    assert [r.samples for r in run.curve()] == [r.samples for r in straight.curve()]
    assert [r.loss_hex for r in run.curve()] == [r.loss_hex for r in straight.curve()]


def test_fake_starts_fast(quick: Flavour) -> None:
    """Without torch, in two seconds of processor time, however busy the machine is."""
    attempt = quick.run("fast").start()
    attempt.wait_phase("assigned", 0)
    pid = attempt.processes[0].pid
    assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
    ticks = [int(n) for n in Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[11:13]]
    assert sum(ticks) / os.sysconf("SC_CLK_TCK") < 2.0
    assert attempt.wait() == [0, 0]


def test_weights_only_start_is_a_new_curve(quick: Flavour) -> None:
    straight, _ = quick.undisturbed()
    folder = str(straight.folder / straight.commits()[-1].directory)
    run = quick.run("weights")
    assert run.start(StartPoint(kind="weights", directory=folder)).wait() == [0, 0]
    assert run.curve()[0].step == 1
    assert run.curve()[0].loss_hex != straight.curve()[0].loss_hex


@pytest.mark.training
def test_checkpoint_is_plain_and_loader_workers_are_deaf(real: Flavour, tmp_path: Path) -> None:
    """One rank; with two loader workers, disturbed; read by plain libraries; same result."""
    job = jobs.job(real.folder, ranks=1, every_steps=None, max_steps=4, seed=3)
    straight = Run(real.folder / "run-plain-straight", job, real.module)
    assert straight.start().wait() == [0]
    workers = {**job.training, "dataloader_num_workers": 2}
    run = Run(real.folder / "run-plain", dataclasses.replace(job, training=workers), real.module)
    first = run.start(extra_env=probe(at("micro", 2, 0, "SIGUSR1", micro=1)))
    first.wait_step(1)
    for child in first.children(0):
        os.kill(child, signal.SIGTERM)
    assert first.wait() == [75]
    directory = run.folder / run.commits()[-1].directory
    job_file = tmp_path / "job.json"
    job_file.write_bytes(pretty(to_json(job)))
    output = subprocess.run(
        [sys.executable, "-m", "tests.harness.plain", str(directory), str(job_file)],
        check=True,
        capture_output=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MASTER_PORT": str(free_port())},
    ).stdout
    plain = json.loads(output.splitlines()[-1])
    manifest = checkpoints.verify_directory(run.storage, run.commits()[-1].directory)
    assert plain["digest"] == plain["peft_digest"] == manifest.adapter_digest
    assert plain["step"] == 3
    assert run.start().wait() == [0]
    assert curve(run, 0) == curve(straight, 0)
    assert run.commits()[-1].adapter_sha256 == straight.commits()[-1].adapter_sha256


def test_killed_at_random_moments_the_run_still_ends_alike(quick: Flavour) -> None:
    """Without notice at most one interval is lost, and it is computed again bit for bit."""
    straight, _ = quick.undisturbed()
    run = quick.run("killed")
    chance = random.Random(1)
    for _ in range(6):
        attempt = run.start(extra_env={"QVL_FAKE_STEP_S": "0.05", "QVL_FAKE_SAVE_S": "0.05"})
        time.sleep(chance.uniform(0.2, 0.7))
        before = run.commits()[-1].step if run.commits() else 0
        attempt.signal(signal.SIGKILL)
        attempt.wait()
        reached = max([m["step"] for _, m in attempt.messages if m["t"] == "progress"] or [0])
        assert reached - before < 2 * EVERY, "one interval, and a save that was on its way"
        if run.view().is_done():
            break
    while not run.view().is_done():
        assert run.start().wait() == [0, 0]
    assert_same_result(run, straight)
