"""What tensor files hold, whatever Python wrote them; what a load refuses, a verify does too."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from transformers.trainer_pt_utils import safe_globals

from orchestrator.contract import pickles
from orchestrator.errors import CheckpointError, ContractRefused
from orchestrator.run_directory import checkpoints
from orchestrator.storage.hashing import ContentHash
from orchestrator.storage.posix import PosixStorage
from tests.unit.run_directory.fakes import entry, manifest
from trainer.checkpoint import engine, restore
from trainer.state import rng

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("default")]

OPTIM = "global_step6/zero_pp_rank_0_mp_rank_00_optim_states.pt"
GETATTR = "builtins.getattr"


class ByGetattr:
    """Pickles as an enum does where enums are pickled by name: as Python 3.11.2 does it."""

    def __init__(self, owner: object, name: str) -> None:
        self._of = owner, name

    def __reduce__(self) -> Any:
        return getattr, self._of


def optimizer_state(stage: object) -> dict[str, Any]:
    """The types that DeepSpeed's optimizer files have."""
    return {
        "optimizer_state_dict": {
            "loss_scaler": LossScaler(scale=1.0),
            "zero_stage": stage,
            "fp32": [torch.arange(3.0), torch.ones(2, dtype=torch.bfloat16)],
            "slices": [OrderedDict(one=fragment_address(numel=3, start=0))],
        },
        "ds_version": "0.19.8",
    }


def dumped(value: object) -> bytes:
    buffer = io.BytesIO()
    engine.dump_tensors(value, buffer)  # type: ignore[arg-type]
    return buffer.getvalue()


def written(path: Path, data: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def old_file(stage: object) -> bytes:
    """As `torch.save` alone writes it."""
    buffer = io.BytesIO()
    torch.save(optimizer_state(stage), buffer)
    return buffer.getvalue()


def test_enums_are_written_as_plain_numbers(tmp_path: Path) -> None:
    data = dumped(optimizer_state(ZeroStageEnum.gradients))
    assert pickles.refused(OPTIM, data) == ()
    assert b"ZeroStageEnum" not in data
    assert b"getattr" not in data
    state = engine.StreamingEngine().load(written(tmp_path / OPTIM, data))["optimizer_state_dict"]
    assert (type(state["zero_stage"]), state["zero_stage"]) == (int, 2)
    assert state["zero_stage"] == ZeroStageEnum.gradients
    assert type(state["loss_scaler"]) is LossScaler
    assert torch.equal(state["fp32"][0], torch.arange(3.0))
    assert state["slices"][0]["one"].numel == 3


def test_plain_changes_nothing_else() -> None:
    shared: Mapping[str, int] = {"a": 1}
    value = {"stage": ZeroStageEnum.weights, "x": shared, "y": [shared, (ZeroStageEnum.weights,)]}
    plain = engine.plain(value)
    assert plain == {"stage": 3, "x": shared, "y": [shared, (3,)]}
    assert plain["x"] is shared
    assert plain["y"][0] is shared
    assert value["stage"] is ZeroStageEnum.weights, "the state itself stays as it is"
    module = OrderedDict(weight=torch.zeros(1))
    assert engine.plain(module) is module


@pytest.mark.parametrize(
    "stage", [ByGetattr(ZeroStageEnum, "gradients"), ZeroStageEnum.gradients], ids=["old", "this"]
)
def test_files_with_enums_are_still_read(tmp_path: Path, stage: object) -> None:
    data = old_file(stage)
    assert pickles.refused(OPTIM, data) == ()
    state = engine.StreamingEngine().load(written(tmp_path / OPTIM, data))
    assert state["optimizer_state_dict"]["zero_stage"] is ZeroStageEnum.gradients


@pytest.mark.parametrize(
    ("owner", "name"),
    [(ZeroStageEnum, "__class__"), (ZeroStageEnum, "mro"), (LossScaler, "gradients")],
)
def test_getattr_reads_deepspeeds_enum_and_nothing_else(
    tmp_path: Path, owner: object, name: str
) -> None:
    path = written(tmp_path / OPTIM, old_file(ByGetattr(owner, name)))
    with pytest.raises(pickle.UnpicklingError, match="getattr of"):
        engine.StreamingEngine().load(path)


def test_the_list_of_the_contract_is_the_loaders() -> None:
    from torch._weights_only_unpickler import _get_allowed_globals, _get_user_allowed_globals

    before = set(_get_user_allowed_globals())
    with torch.serialization.safe_globals(list(engine._ALLOWED)):
        assert set(_get_user_allowed_globals()) - before == pickles.ENGINE
    with safe_globals():
        assert set(_get_user_allowed_globals()) - before - {"_codecs.encode"} <= pickles.RANDOM
    assert [n for n in _get_allowed_globals() if not pickles._TORCH.match(n)] == []


VALUES: dict[str, tuple[object, str]] = {
    "tensors": ({"a": torch.ones(2), "b": [1, 2.5, None, True, "x", b"y", {3}]}, ""),
    "a type of torch": ({"dtype": torch.bfloat16, "size": torch.Size([1])}, ""),
    "numpy's number": ({"best": np.float64(1.5)}, "numpy"),
    "a class": ({"x": Fraction(1, 2)}, "fractions.Fraction"),
    "a function": ({"x": print}, "builtins.print"),
}


@pytest.mark.parametrize(("value", "named"), VALUES.values(), ids=VALUES.keys())
def test_a_verify_refuses_what_a_load_refuses(tmp_path: Path, value: object, named: str) -> None:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    path = written(tmp_path / OPTIM, buffer.getvalue())
    refused = pickles.refused(OPTIM, buffer.getvalue())
    if not named:
        assert refused == ()
        engine.StreamingEngine().load(path)
        return
    assert named in ", ".join(refused)
    with pytest.raises(pickle.UnpicklingError):
        engine.StreamingEngine().load(path)


def test_torch_reads_no_newer_protocol(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer, pickle_protocol=4)
    assert pickles.refused(OPTIM, buffer.getvalue()) != ()
    with pytest.raises(pickle.UnpicklingError):
        engine.StreamingEngine().load(written(tmp_path / OPTIM, buffer.getvalue()))


def test_random_states_may_hold_numpys_arrays_and_the_others_not() -> None:
    data = dumped(rng.capture(distributed=True))
    assert pickles.refused("rng_state_0.pth", data) == ()
    assert pickles.refused("scheduler.pt", data) != ()


def test_what_is_no_file_of_torch_names_nothing() -> None:
    for data in (b"", b"PK\3\4", b"{}" * 100, b"PK\3\4" + bytes(40)):
        assert pickles.refused("rng_state.pth", data) == ()


def test_a_checkpoint_that_no_load_accepts_is_not_verified(tmp_path: Path) -> None:
    storage = PosixStorage(tmp_path)
    data = dumped({"x": Fraction(1, 2)})
    storage.put(f"c/{OPTIM}", data)
    content = ContentHash()
    content.update(memoryview(data))
    checkpoints.write_manifest(storage, "c", manifest(files=(content.entry(OPTIM),)))
    with pytest.raises(CheckpointError, match=r"no load accepts: fractions\.Fraction"):
        checkpoints.verify_directory(storage, "c")


def test_a_refused_load_is_said_in_one_line(tmp_path: Path) -> None:
    name = rng.file_name(0, 1)
    written(tmp_path / name, dumped({"python": Fraction(1, 2)}))
    whole = manifest(files=(entry(name),))
    with pytest.raises(ContractRefused, match=r"rng_state\.pth holds the type fractions.Fraction"):
        restore.load_rng(str(tmp_path), whole, 0, 1)
