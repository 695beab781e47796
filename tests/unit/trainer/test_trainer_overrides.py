"""What our overrides of Transformers' Trainer rely on. A new version of Transformers that fails
one of these tests wants `trainer/loop/training.py` to be looked at there.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def theirs() -> Any:
    from transformers import Trainer

    return Trainer


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)[1:]


def source(function: Callable[..., Any]) -> str:
    return ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(function))))


def loop(theirs: Any) -> str:
    return source(theirs._inner_training_loop)


def test_preparing_builds_the_engine_and_loads_only_what_it_is_given(theirs: Any) -> None:
    """We pass None for the checkpoint, and load into the engine that stands afterwards."""
    assert parameters(theirs._prepare_for_training) == [
        "max_steps", "train_dataloader", "resume_from_checkpoint",
    ]  # fmt: skip
    text = source(theirs._prepare_for_training)
    guard = text.index("if resume_from_checkpoint is not None")
    assert text.index("self.deepspeed = self.model_wrapped") < guard
    for load in ("deepspeed_load_checkpoint", "_load_optimizer_and_scheduler", "_load_scaler"):
        assert text.index(load) > guard
    called = "self._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)"
    assert called in loop(theirs)


def test_random_states_are_loaded_by_the_resumed_epoch_alone(theirs: Any) -> None:
    """Ours takes the checkpoint's directory, and is called before the epoch's first sample."""
    assert parameters(theirs._load_rng_state) == ["checkpoint"]
    text = source(theirs._run_epoch)
    assert text.index("self._load_rng_state(resume_from_checkpoint)") < text.index(
        "epoch_iterator = iter(train_dataloader)"
    )


def test_an_epoch_is_told_its_number_and_the_checkpoint_by_name(theirs: Any) -> None:
    """Ours reads both from the keywords, sets the sampler's epoch, and calls theirs."""
    assert {"epoch", "resume_from_checkpoint"} <= set(parameters(theirs._run_epoch))
    (call,) = [
        node
        for node in ast.walk(ast.parse(loop(theirs)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "self._run_epoch"
    ]
    assert call.args == []
    assert {"epoch", "resume_from_checkpoint"} <= {word.arg for word in call.keywords}


def test_the_end_of_training_comes_after_the_last_epoch_alone(theirs: Any) -> None:
    """Ours is reached only if no step was left: every other attempt has left before."""
    text = loop(theirs)
    assert text.count("self._finalize_training(") == 1
    assert text.index("self._run_epoch(") < text.index("return self._finalize_training(")


def test_a_window_is_fetched_by_one_call_before_anything_is_computed(theirs: Any) -> None:
    """Ours returns the batches and the number of items, as theirs does."""
    assert parameters(theirs.get_batch_samples) == ["epoch_iterator", "num_batches", "device"]
    text = source(theirs._run_epoch)
    fetched = text.index("self.get_batch_samples(epoch_iterator, num_batches, self.args.device)")
    assert fetched < text.index("self.training_step(")
    assert parameters(theirs._get_num_items_in_batch) == ["batch_samples", "device"]


def test_the_boundary_of_a_step_comes_once_a_step_and_once_an_epoch(theirs: Any) -> None:
    """Ours sees the step counted, steers by `control`, and passes the rest on unread."""
    assert parameters(theirs._maybe_log_save_evaluate) == [
        "tr_loss", "grad_norm", "model", "trial", "epoch", "ignore_keys_for_eval", "start_time",
        "learning_rate",
    ]  # fmt: skip
    text = source(theirs._run_epoch)
    assert text.count("self._maybe_log_save_evaluate(") == 2
    assert text.index("self.state.global_step += 1") < text.index("self._maybe_log_save_evaluate(")
    boundary = source(theirs._maybe_log_save_evaluate)
    for steered in ("should_log", "should_evaluate", "should_save"):
        assert f"self.control.{steered}" in boundary
