"""What the orchestrator may expect of a trainer; the fake and the real one alike.

The real cases are marked `training`. Every disturbed run is resumed and compared bit for bit
with the undisturbed one: losses, learning rates, samples, evaluations, final adapter.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
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
from orchestrator.contract.jsonio import loads, pretty, to_json
from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.contract.spec import StartPoint
from orchestrator.storage import checkpoints
from tests.harness import jobs
from tests.harness.ranks import ROOT, Attempt, Run, free_port

SAMPLES, HELD_OUT = 50, 5
STEPS, EVERY, EVAL_EVERY = 8, 4, 3
Spot = dict[str, Any]


@dataclass
class Flavour:
    """One implementation of the contract, with its data and its undisturbed run."""

    module: str
    job: ResolvedJob
    folder: Path
    straight: Run | None = None

    def run(self, name: str, **changes: Any) -> Run:
        job = dataclasses.replace(self.job, **changes)
        return Run(self.folder / f"run-{name}", job, self.module)

    def undisturbed(self) -> Run:
        if self.straight is None:
            run = self.run("straight")
            attempt = run.start()
            assert attempt.wait() == [0, 0]
            self.straight = run
        return self.straight


def write_data(folder: Path) -> None:
    """Small pictures in plain colours, in the original Qwen-VL format."""
    from PIL import Image

    (folder / "images").mkdir()
    for part, first, count in (("train", 0, SAMPLES), ("eval", SAMPLES, HELD_OUT)):
        records = []
        for i in range(first, first + count):
            Image.new("RGB", (56, 56), (i * 5 % 256, i * 37 % 256, 90)).save(
                folder / f"images/{i}.png"
            )
            question = f"Picture 1: <img>images/{i}.png</img>\nWhat is in the picture?"
            records.append(
                {
                    "id": str(i),
                    "conversations": [
                        {"from": "user", "value": question},
                        {"from": "assistant", "value": f"A square, number {i}."},
                    ],
                }
            )
        (folder / f"{part}.json").write_text(json.dumps(records))


def make_flavour(folder: Path, module: str) -> Flavour:
    write_data(folder)
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
    model = str(flavour.folder / "model")
    subprocess.run([sys.executable, "-m", "trainer.tiny", model], check=True, timeout=120)
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


def evaluations(attempts: list[Attempt]) -> dict[int, float]:
    return {e["step"]: e["metrics"]["eval_loss"] for a in attempts for e in a.events("evaluated")}


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


DISTURBANCES = {
    "one rank in mid-accumulation": ([at("micro", 5, 1, "SIGUSR1", micro=1)], 75, 5),
    "all ranks at a boundary": ([at("boundary", 3, r) for r in (0, 1)], 75, 3),
    "one rank while fetching": ([at("fetch", 5, 0, "SIGUSR2")], 75, 5),
    "during a periodic save": ([at("save", 4, 1)], 75, 4),
    "in an evaluation": ([at("eval", 6, 0)], 75, 6),
    "in the last evaluation": ([at("eval", 8, 1, "SIGUSR1")], 75, 8),
    "twice": ([at("micro", 5, 0, micro=0), at("save", 5, 0, "SIGUSR1")], 75, 5),
    "before the first step": ([at("fetch", 0, 1)], 76, None),
    "in the first window": ([at("micro", 0, 0, micro=1)], 76, None),
}
COSTLY = {"one rank while fetching", "twice", "in the first window", "before the first step"}
"""The real trainer is asked the others."""


@pytest.mark.parametrize("name", DISTURBANCES)
def test_disturbed_run_equals_the_undisturbed(flavour: Flavour, name: str) -> None:
    if name in COSTLY and flavour.module == "tests.harness.probe":
        pytest.skip("asked of the fake only")
    straight = flavour.undisturbed()
    spots, code, committed = DISTURBANCES[name]
    run = flavour.run(name.replace(" ", "-"))
    first = run.start(extra_env=probe(*spots))
    assert first.wait() == [code, code]
    assert [e["code"] for e in first.endings()] == [code, code]
    notices = [m for _, m in first.messages if m["t"] == "notice"]
    assert {n["signal"] for n in notices} == {s["signal"] for s in spots}
    assert (run.commits()[-1].step if run.commits() else None) == committed
    second = run.start()
    assert second.wait() == [0, 0]
    assert_same_result(run, straight)
    assert set(evaluations([first, second])) == {3, 6, 8}
    if committed is not None:
        assert second.events("resumed")[0]["step"] == committed


def test_evaluations_are_the_same_across_an_interruption(flavour: Flavour) -> None:
    straight = flavour.run("eval-straight")
    whole = straight.start()
    assert whole.wait() == [0, 0]
    run = flavour.run("eval-twice")
    first = run.start(extra_env=probe(at("eval", 3, 1)))
    assert first.wait() == [75, 75]
    assert first.events("eval_interrupted") == [{"step": 3}]
    assert checkpoints.read_manifest(run.storage, run.commits()[-1].directory, None).pending_eval
    second = run.start()
    assert second.wait() == [0, 0]
    assert evaluations([first, second]) == evaluations([whole])
    assert_same_result(run, straight)


def test_notice_while_loading_ends_every_rank_at_once(flavour: Flavour) -> None:
    run = flavour.run("loading")
    attempt = run.start(assign=False, extra_env={"QVL_FAKE_LOAD_S": "60"})
    attempt.wait_for(lambda r, m: r == 1 and m["t"] == "hello")
    attempt.signal(signal.SIGUSR1, 1)
    assert attempt.wait(10.0) == [76, 76]
    assert run.commits() == []


@pytest.mark.training
@pytest.mark.parametrize("phase", ["assigned", "model"])
def test_notice_while_the_model_is_loaded(real: Flavour, phase: str) -> None:
    run = real.run(f"loading-{phase}")
    attempt = run.start()
    attempt.wait_phase(phase, 1)
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
    run = flavour.run("tampered")
    first = run.start(extra_env=probe(at("boundary", 2, 0)))
    assert first.wait() == [75, 75]
    directory = run.commits()[-1].directory
    path = run.folder / directory / layout.MANIFEST
    manifest = loads(path.read_bytes())
    manifest["rank_digests"][1] = "blake3:" + "0" * 64
    path.write_bytes(pretty(manifest))
    start = StartPoint(kind="checkpoint", step=2, directory=str(run.folder / directory))
    second = run.start(start)
    second.wait()
    refusal = [e for e in second.endings() if e["code"] == 78]
    assert refusal[0]["reason"] == "contract"
    assert "rank 1" in refusal[0]["message"]


@pytest.mark.parametrize(("knob", "code", "reason"), [("OOM", 77, "oom"), ("CRASH", 1, "crash")])
def test_failures_have_their_code(quick: Flavour, knob: str, code: int, reason: str) -> None:
    run = quick.run(knob)
    attempt = run.start(extra_env={f"QVL_FAKE_{knob}_AT": "6:1"})
    assert attempt.wait()[1] == code
    assert (1, reason) in [(r, m["reason"]) for r, m in attempt.messages if m["t"] == "ending"]
    assert run.commits()[-1].step == 4


def test_failed_periodic_save_does_not_stop_training(quick: Flavour) -> None:
    straight = quick.undisturbed()
    run = quick.run("savefail")
    attempt = run.start(extra_env={"QVL_FAKE_SAVEFAIL_AT": "4:1"})
    assert attempt.wait() == [0, 0]
    assert "rank 1" in attempt.events("save_failed")[0]["message"]
    assert [c.step for c in run.commits()] == [8]
    assert_same_result(run, straight)


def test_smaller_micro_batches_see_the_same_samples(quick: Flavour) -> None:
    straight = quick.undisturbed()
    run = quick.run("plan")
    assert run.start(extra_env=probe(at("boundary", 3, 0))).wait() == [75, 75]
    attempt = run.start(plan=BatchPlan(micro=1, accumulation=6, world_size=2))
    assert attempt.wait() == [0, 0]
    assert [r.samples for r in run.curve()] == [r.samples for r in straight.curve()]
    assert [r.loss_hex for r in run.curve()] == [r.loss_hex for r in straight.curve()]


def test_fake_starts_fast(quick: Flavour) -> None:
    started = time.monotonic()
    attempt = quick.run("fast").start()
    attempt.wait_phase("assigned", 0)
    assert time.monotonic() - started < 2.0
    assert attempt.wait() == [0, 0]


def test_weights_only_start_is_a_new_curve(flavour: Flavour) -> None:
    if flavour.module == "tests.harness.probe":
        pytest.skip("asked of the fake only")
    straight = flavour.undisturbed()
    folder = str(straight.folder / straight.commits()[-1].directory)
    run = flavour.run("weights")
    assert run.start(StartPoint(kind="weights", directory=folder)).wait() == [0, 0]
    assert run.curve()[0].step == 1
    assert run.curve()[0].loss_hex != straight.curve()[0].loss_hex


def test_done_run_resumed_at_its_last_step_only_finishes(flavour: Flavour) -> None:
    """The end was cut off between the final commit and the done record."""
    straight = flavour.undisturbed()
    run = flavour.run("finish")
    assert run.start(extra_env=probe(at("eval", STEPS, 0))).wait() == [75, 75]
    last = run.start()
    assert last.wait() == [0, 0]
    assert [m["step"] for _, m in last.messages if m["t"] == "progress"] == []
    assert_same_result(run, straight)
    assert to_json(run.view().done().done())["step"] == STEPS  # type: ignore[union-attr]


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
    straight = quick.undisturbed()
    run = quick.run("killed")
    chance = random.Random(1)
    for _ in range(6):
        attempt = run.start(extra_env={"QVL_FAKE_STEP_S": "0.05", "QVL_FAKE_SAVE_S": "0.05"})
        time.sleep(chance.uniform(0.2, 0.7))
        before = run.commits()[-1].step if run.commits() else 0
        attempt.signal(signal.SIGKILL)
        attempt.wait()
        reached = max([m["step"] for _, m in attempt.messages if m["t"] == "progress"] or [0])
        assert reached - before <= EVERY
        if run.view().is_done():
            break
    while not run.view().is_done():
        assert run.start().wait() == [0, 0]
    assert_same_result(run, straight)
