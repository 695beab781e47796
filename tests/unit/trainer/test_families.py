"""All families on their tiny models: what is adapted, what is frozen, what is hashed."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.contract.resolved import ModelSpec, ResolvedJob
from orchestrator.errors import UserError

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("default")]

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
JobMaker = Callable[..., ResolvedJob]

LANGUAGE = {
    f"model.language_model.layers.{n}.{part}"
    for n in range(2)
    for part in (
        *(f"self_attn.{x}_proj" for x in "qkvo"),
        *(f"mlp.{x}_proj" for x in ("gate", "up", "down")),
    )
}
MERGER = {
    "qwen2_vl": {"merger.mlp.0", "merger.mlp.2"},
    "qwen2_5_vl": {"merger.mlp.0", "merger.mlp.2"},
    "qwen3_vl": {
        f"{m}.linear_fc{n}" for m in ("merger", "deepstack_merger_list.0") for n in (1, 2)
    },
}


@pytest.fixture(scope="module")
def load(job: JobMaker) -> Callable[..., Any]:
    """A fresh model with the seed set."""

    def fresh(family: str = "qwen2_5_vl", **changes: Any) -> Any:
        import torch

        from trainer.base_model.modeling import load_model

        torch.manual_seed(7)
        return load_model(job(family, **changes), torch.device("cpu"))

    return fresh


def batch_of(loaded: Any, job: ResolvedJob) -> dict[str, Any]:
    from trainer.data.dataset import Collator, load_dataset

    data = load_dataset(job.data, "train", loaded.processor, None)
    batch = Collator(loaded.processor.pad_token_id)([data[i] for i in range(4)])
    del batch["sample_index"]
    return batch


def linears(folder: Path) -> set[str]:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    return {name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}


@pytest.mark.parametrize("name", FAMILIES)
def test_presets_match_what_they_say(name: str, tiny: Callable[[str], Path]) -> None:
    from trainer.vision_language.families import family_of

    family = family_of(tiny(name))
    everything = linears(tiny(name))
    merger = {f"model.visual.{part}" for part in MERGER[name]}
    vision = {linear for linear in everything if linear.startswith("model.visual.")}

    def matched(preset: str) -> set[str]:
        return {m for m in everything if re.fullmatch(family.lora_presets[preset], m)}

    assert merger < vision
    assert matched("llm") == LANGUAGE
    assert matched("llm+merger") == LANGUAGE | merger
    assert matched("llm+vision") == LANGUAGE | vision
    assert everything == LANGUAGE | vision | {"lm_head"}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_markup_is_that_of_the_chat_template(
    name: str, tiny: Callable[[str], Path], digits: Path
) -> None:
    from trainer.data.dataset import ChatDataset
    from trainer.vision_language.families import family_of
    from trainer.vision_language.families.processor import VisionChatProcessor

    family = family_of(tiny(name))
    processor = VisionChatProcessor.from_pretrained(tiny(name), family)
    picture = {"type": "image", "image": "images/0007.png"}
    messages = [
        {"role": "user", "content": [picture, {"type": "text", "text": "Which digit?"}]},
        {"role": "assistant", "content": "seven"},
    ]
    data = ChatDataset([{"messages": messages}], processor, media_root=digits, max_length=None)
    text = processor.tokenizer.apply_chat_template(messages, tokenize=False)
    text = text.replace("<|image_pad|>", 4 * "<|image_pad|>")
    assert data[0]["input_ids"].tolist() == processor.tokenizer.encode(text)
    system = f"<|im_start|>system\n{family.default_system}<|im_end|>\n"
    assert text.startswith(system) == (family.default_system is not None)
    assert text.endswith("<|im_start|>assistant\nseven<|im_end|>\n")


@pytest.mark.parametrize("name", FAMILIES)
def test_one_step_reaches_every_adapter_and_nothing_else(
    name: str, load: Callable[..., Any], job: JobMaker
) -> None:
    import torch

    from trainer.base_model.modeling import base_digest, trainable_digest

    loaded = load(name, lora={"r": 4, "target_modules": "llm+vision"})
    before = base_digest(loaded.model), trainable_digest(loaded.model)
    trainable = {n: p for n, p in loaded.model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2)
    loaded.model.train()
    losses = []
    for _ in range(6):
        loss = loaded.model(**batch_of(loaded, job(name))).loss
        loss.backward()
        assert all(p.grad is not None for p in trainable.values())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    assert all("lora_" in n and p.dtype == torch.float32 for n, p in trainable.items())
    assert base_digest(loaded.model) == before[0]
    assert trainable_digest(loaded.model) != before[1]
    assert sum(row.parameters for row in loaded.table) == loaded.trainable_parameters
    assert loaded.max_positions == 2048
    assert f"{loaded.trainable_parameters:,} of" in loaded.summary()


def test_an_evaluation_leaves_the_base_as_it_is(load: Callable[..., Any], job: JobMaker) -> None:
    import torch
    from bitsandbytes.nn.modules import Linear4bit

    from trainer.base_model.modeling import base_digest

    loaded = load()
    before = base_digest(loaded.model)
    loaded.model.eval()
    with torch.no_grad():
        loaded.model(**batch_of(loaded, job()))
    assert base_digest(loaded.model) == before
    quantised = [m for m in loaded.model.modules() if isinstance(m, Linear4bit)]
    assert quantised
    assert not any(m.support_avx512bf16_for_cpu for m in quantised)


def test_digests_are_those_of_the_values(load: Callable[..., Any]) -> None:
    import torch

    from trainer.base_model.modeling import base_digest, trainable_digest

    one, two = load(), load()
    other = load(lora={"r": 2, "target_modules": "llm+vision"})
    base = base_digest(one.model)
    assert base == base_digest(two.model) == base_digest(other.model)
    assert trainable_digest(one.model) == trainable_digest(two.model)
    assert trainable_digest(one.model) != trainable_digest(other.model)
    wrapped = torch.nn.ModuleDict({"module": two.model})
    assert (base_digest(wrapped), trainable_digest(wrapped)) == (base, trainable_digest(one.model))
    two.model.bfloat16()
    assert base_digest(two.model) == base


@pytest.mark.parametrize("what", ["weight", "absmax", "nested", "norm"])
def test_one_changed_value_changes_the_digest(load: Callable[..., Any], what: str) -> None:
    from trainer.base_model.modeling import base_digest

    loaded = load()
    base = base_digest(loaded.model)
    frozen = dict(loaded.model.named_parameters())
    name = next(n for n in frozen if n.endswith("layers.0.self_attn.q_proj.base_layer.weight"))
    norm = next(n for n in frozen if n.endswith("layers.0.input_layernorm.weight"))
    state = frozen[name].quant_state
    tensor = {
        "weight": frozen[name].data,
        "absmax": state.absmax,
        "nested": state.state2.absmax,
        "norm": frozen[norm].data,
    }[what]
    tensor.view(-1)[0] += 1
    assert base_digest(loaded.model) != base


def test_a_digest_can_run_beside_training(load: Callable[..., Any], job: JobMaker) -> None:
    from trainer.base_model.modeling import base_digest

    loaded = load()
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(base_digest(loaded.model)))
    thread.start()
    loaded.model(**batch_of(loaded, job())).loss.backward()
    thread.join()
    assert found == [base_digest(loaded.model)]


def test_the_adapters_depend_on_the_seed_alone(load: Callable[..., Any], job: JobMaker) -> None:
    import torch

    from trainer.base_model.modeling import load_model, trainable_digest

    first = trainable_digest(load().model)
    torch.manual_seed(8)
    other = load_model(job(), torch.device("cpu"))
    assert trainable_digest(other.model) != first == trainable_digest(load().model)


def test_checkpointing_is_off_unless_asked_for(load: Callable[..., Any]) -> None:
    def checkpoints(loaded: Any) -> bool:
        return any(getattr(m, "gradient_checkpointing", False) for m in loaded.model.modules())

    assert not checkpoints(load())
    assert checkpoints(load(training={"activation_checkpointing": True}))
    assert checkpoints(load(training={"gradient_checkpointing": True}))


def test_an_unquantised_base_is_frozen_too(load: Callable[..., Any]) -> None:
    loaded = load(quantization={})
    trainable = [n for n, p in loaded.model.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in n for n in trainable)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"r": 4, "target_modules": "nothing"}}, "lora: "),
        ({"lora": {"rank": 4}}, "lora: .*rank"),
        ({"quantization": {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bf17"}}, "bf17"),
        ({"quantization": {"load_in_4bit": "x"}}, "quantization: "),
        ({"model": ModelSpec(path="/does/not/exist")}, "is not a folder"),
    ],
)
def test_settings_that_cannot_work_are_the_users(
    load: Callable[..., Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load(**changes)


def test_a_hub_model_that_is_not_there(
    load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="nobody/nothing at revision v1") as caught:
        load(model=ModelSpec(path="nobody/nothing", revision="v1"))
    assert "local folder" in str(caught.value.hint)


def test_unknown_families_name_the_known_ones(tmp_path: Path) -> None:
    from trainer.vision_language.families import family_of

    with pytest.raises(UserError, match="not a model folder"):
        family_of(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(UserError, match=r"'llava'.*qwen2_vl, qwen2_5_vl, qwen3_vl"):
        family_of(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="not a model folder"):
        family_of(tmp_path)


def test_tiny_models_are_made_once_and_never_over_something(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    from trainer.testing.tiny import make_tiny

    folder = tiny("qwen2_5_vl")
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert make_tiny("qwen2_5_vl", folder) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    (tmp_path / "mine").touch()
    with pytest.raises(UserError, match="holds no model"):
        make_tiny("qwen2_5_vl", tmp_path)
    with pytest.raises(UserError, match="unknown family"):
        make_tiny("qwen", tmp_path / "x")


def test_tiny_models_have_the_same_bytes(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    from trainer.testing.tiny import make_tiny

    again = make_tiny("qwen3_vl", tmp_path / "again")
    first = {p.name: p.read_bytes() for p in tiny("qwen3_vl").iterdir()}
    assert {p.name: p.read_bytes() for p in again.iterdir()} == first
    assert not [p for p in tmp_path.iterdir() if p != again]
