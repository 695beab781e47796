"""Trackers: what the job asks for, one run of W&B over all attempts, and no fault that matters."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.harness import jobs
from trainer.tracking.trackers import wanted
from trainer.tracking.wandb import CLOSE_S, WeightsAndBiases


class FakeWandb:
    """The part of the library that is used, and what it was told."""

    def __init__(self, fails_at: str = "", hangs_at: str = "") -> None:
        self.told: list[tuple[str, Any]] = []
        self.mode: str | None = None
        self._fails_at, self._hangs_at = fails_at, hangs_at
        self.free = threading.Event()

    def Settings(self, **settings: Any) -> SimpleNamespace:  # noqa: N802 - as the library has it
        return SimpleNamespace(**settings)

    def init(self, **how: Any) -> FakeWandb:
        self.mode = os.environ["WANDB_MODE"]
        self._tell("init", how)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        self._tell("define", (name, step_metric))

    def log(self, values: dict[str, float]) -> None:
        self._tell("log", values)

    def mark_preempting(self) -> None:
        self._tell("preempting", None)

    def finish(self, exit_code: int) -> None:
        self._tell("finish", exit_code)

    def _tell(self, what: str, value: Any) -> None:
        if what == self._fails_at:
            raise RuntimeError("no such account")
        if what == self._hangs_at:
            self.free.wait(30)
        self.told.append((what, value))


Make = Callable[[FakeWandb], WeightsAndBiases]


@pytest.fixture
def warned() -> list[str]:
    return []


@pytest.fixture
def make(tmp_path: Path, warned: list[str], monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)

    def made(wandb: FakeWandb) -> WeightsAndBiases:
        return WeightsAndBiases(
            tmp_path / "w", "digits-1", {"lora": {"r": 8}}, warned.append, lambda: wandb
        )

    return made


def test_one_run_over_all_attempts_offline_by_default(make: Make, warned: list[str]) -> None:
    wandb = FakeWandb()
    first = make(wandb)
    first.scalars(1, {"train/loss": 2.0, "train/grad_norm": None})
    first.close(interrupted=True)
    second = make(wandb)
    second.scalars(2, {"train/loss": 1.0})
    second.close(interrupted=False)
    kinds = ["init", "define", "log"]
    assert [kind for kind, _ in wandb.told] == [*kinds, "preempting", "finish", *kinds, "finish"]
    (one, two) = [value for kind, value in wandb.told if kind == "init"]
    assert (one["id"], one["resume"], one["config"]) == ("digits-1", "allow", {"lora": {"r": 8}})
    assert (two["id"], two["project"]) == ("digits-1", "qvl-orchestrate")
    assert Path(one["dir"]).is_dir()
    assert wandb.mode == "offline"
    assert [v for k, v in wandb.told if k == "log"] == [
        {"train/loss": 2.0, "step": 1},
        {"train/loss": 1.0, "step": 2},
    ]
    assert [v for k, v in wandb.told if k == "finish"] == [1, 0]
    assert warned == []


def test_the_users_mode_counts(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = make(wandb := FakeWandb())
    tracker.close(interrupted=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    make(online := FakeWandb()).close(interrupted=False)
    assert (wandb.mode, online.mode) == ("offline", "online")
    assert online.told[0][1]["project"] == "mine"


@pytest.mark.parametrize("place", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_given_up(make: Make, warned: list[str], place: str) -> None:
    tracker = make(FakeWandb(fails_at=place))
    for step in range(3):
        tracker.scalars(step, {"train/loss": 1.0})
    tracker.close(interrupted=False)
    assert warned == ["Weights & Biases is off: RuntimeError: no such account"]
    tracker.scalars(4, {"train/loss": 1.0})


@pytest.mark.parametrize("place", ["init", "log", "finish"])
def test_a_tracker_that_hangs_holds_nothing_up(make: Make, place: str) -> None:
    wandb = FakeWandb(hangs_at=place)
    tracker, began = make(wandb), time.monotonic()
    for step in range(20_000):
        tracker.scalars(step, {"train/loss": 1.0})
    assert time.monotonic() - began < 10 * CLOSE_S  # 20,000 calls on a busy machine
    began = time.monotonic()
    tracker.close(interrupted=True)
    assert time.monotonic() - began < 2 * CLOSE_S
    wandb.free.set()


def test_a_library_that_is_not_there(tmp_path: Path, warned: list[str]) -> None:
    def absent() -> Any:
        raise ModuleNotFoundError("No module named 'wandb'")

    WeightsAndBiases(tmp_path, "r", {}, warned.append, absent).close(interrupted=False)
    assert warned == ["Weights & Biases is off: ModuleNotFoundError: No module named 'wandb'"]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (None, {"tensorboard"}),
        ("wandb", {"wandb"}),
        (["tensorboard", "wandb"], {"tensorboard", "wandb"}),
        ("none", set()),
        ([], set()),
    ],
)
def test_what_the_job_asks_for(tmp_path: Path, given: Any, names: set[str]) -> None:
    training = {} if given is None else {"report_to": given}
    assert wanted(replace(jobs.job(tmp_path), training=training)) == names
