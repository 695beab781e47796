"""The model to train: a frozen, usually 4-bit base with LoRA adapters; and its digests."""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from blake3 import blake3
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME
from transformers.utils import logging as transformers_logging

from orchestrator.contract.jsonio import to_json
from orchestrator.contract.regular import read_regular
from orchestrator.contract.resolved import ModelSpec, ResolvedJob
from orchestrator.errors import UserError
from trainer.state.tensorfile import pieces
from trainer.vision_language.families import Family, family_of, lora_pattern
from trainer.vision_language.families.base import DEFAULT_PRESET
from trainer.vision_language.families.processor import VisionChatProcessor

_DTYPE_FIELDS = ("bnb_4bit_compute_dtype", "bnb_4bit_quant_storage")


@dataclass(frozen=True, slots=True)
class AdaptedModule:
    """One module of the base that carries a LoRA adapter."""

    name: str
    """Its name in the base model."""
    in_features: int
    out_features: int
    parameters: int
    """Trainable parameters of its adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePlan:
    """What the base was as it was loaded: enough to write it again as it was."""

    types: Mapping[str, torch.dtype]
    """Of its parameters; an engine may have widened them since."""
    files: Mapping[str, bytes]
    """The small files that from_pretrained reads beside the weights."""

    def dtype(self, name: str, tensor: torch.Tensor) -> torch.dtype:
        """Type to store a tensor in. Raises ValueError if digits were lost since the load."""
        dtype = self.types.get(name, tensor.dtype)
        if torch.promote_types(dtype, tensor.dtype) != tensor.dtype:
            raise ValueError(f"{name} was loaded as {dtype} and is {tensor.dtype} now")
        return dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model ready to train, with what belongs to it."""

    model: PeftModel
    processor: VisionChatProcessor
    family: Family
    table: tuple[AdaptedModule, ...]
    """Matched modules, by name."""
    trainable_parameters: int
    total_parameters: int
    """All parameters, adapters included; a 4-bit weight counts as one."""
    max_positions: int | None
    """Longest sequence in tokens that the language model is made for; None = not stated."""
    base_plan: BasePlan | None
    """None where the base is not quantized to 4 bits, or is more than its parameters."""

    def summary(self) -> str:
        """Matched modules with layer numbers folded, and the counts, for people to read."""
        counts: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        for row in self.table:
            pattern = re.sub(r"\.\d+\.", ".*.", row.name)
            counts[pattern] += 1
            sizes[pattern] += row.parameters
        lines = [f"{n:5d} x {name}  {sizes[name]:,} parameters" for name, n in counts.items()]
        share = 100 * self.trainable_parameters / self.total_parameters
        lines.append(
            f"{self.family.name}: {self.trainable_parameters:,} of {self.total_parameters:,} "
            f"parameters train ({share:.2f} %)"
        )
        return "\n".join(lines)

    def listing(self) -> dict[str, Any]:
        """The same in full, to be stored: one row for each adapted module."""
        return {
            "family": self.family.name,
            "trainable_parameters": self.trainable_parameters,
            "total_parameters": self.total_parameters,
            "modules": to_json(self.table),
        }


def load_model(
    job: ResolvedJob,
    device: torch.device,
    snapshot: Path | None = None,
    base_loaded: Callable[[], object] = lambda: None,
    attention: str | None = None,
) -> Loaded:
    """Load the base as the job says, freeze it, and add fresh adapters in float32.

    snapshot: folder with the base quantized as the job says (trainer.base_model.quantization)
    base_loaded: called when the base is there, before the adapters are made
    attention: how it is computed, as transformers names it; None = its default

    The adapters' values depend on torch's global seed alone, which the caller sets first.
    Gradient checkpointing is switched on (never reentrant) only if `training` asks for it.
    Raises UserError for a missing or unknown model and for settings that a library refuses.
    """
    transformers_logging.disable_progress_bar()
    folder = model_folder(job.model)
    family = family_of(folder)
    processor = VisionChatProcessor.from_pretrained(folder, family)
    config = _lora_config(job.lora, family)
    base, plan = _load_base(job, folder, device, snapshot, attention)
    base_loaded()
    try:
        model = get_peft_model(base, config)
    except (ValueError, TypeError) as fault:
        hint = f"presets of lora.target_modules are {', '.join(family.lora_presets)}"
        raise UserError(f"lora: {fault}", hint=hint) from fault
    if not isinstance(model, PeftModel):
        raise UserError("lora: mixed adapters are not supported")
    sizes = [(p.requires_grad, _true_size(p)) for p in model.parameters()]
    return Loaded(
        model=model,
        processor=processor,
        family=family,
        table=_adapted(model),
        trainable_parameters=sum(n for trains, n in sizes if trains),
        total_parameters=sum(n for _, n in sizes),
        max_positions=getattr(base.config.get_text_config(), "max_position_embeddings", None),
        base_plan=plan,
    )


def model_folder(spec: ModelSpec) -> Path:
    """Local folder of the base model; a hub id is looked up in the cache, or downloaded.

    With HF_HUB_OFFLINE set nothing is downloaded. Raises UserError when it is not there.
    """
    folder = Path(spec.path)
    if folder.is_dir():
        return folder
    if folder.is_absolute():
        raise UserError(f"model.path: {spec.path} is not a folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(spec.path, revision=spec.revision))
    except (OSError, ValueError, HFValidationError) as fault:
        raise UserError(
            f"model.path: {spec.path} at revision {spec.revision}: {fault}",
            hint="give a local folder, or download this revision into the cache first",
        ) from fault


def base_digest(model: nn.Module) -> str:
    """BLAKE3 (`blake3:<hex>`) over the frozen parameters and their quantization state.

    Two fresh loads of one base agree, whatever the adapters. Weights in 4 bit count byte
    by byte; other floating-point values are widened to float32 first, because their
    storage type follows the engine and the last forward pass while their value does not.
    Buffers are left out: they are computed from the configuration. May run in a thread
    beside training; reading and hashing release the GIL.
    """
    digest = blake3()
    frozen = {_base_name(n): p for n, p in model.named_parameters() if not p.requires_grad}
    for name in sorted(frozen):
        parameter = frozen[name]
        state = getattr(parameter, "quant_state", None)
        if isinstance(parameter, Params4bit) and state is not None:
            _add(digest, name, parameter)
            for key, value in sorted(state.as_dict(packed=True).items()):
                _add(digest, f"{name}.{key}", value)
        else:
            _add(digest, name, parameter, widen=parameter.is_floating_point())
    return f"blake3:{digest.hexdigest()}"


def trainable_digest(model: nn.Module) -> str:
    """BLAKE3 (`blake3:<hex>`) over the trainable parameters: names, types, shapes, bytes.

    Wrapping by DDP or by a DeepSpeed engine does not change it (ZeRO-3 is not supported:
    there a rank holds only its part).
    """
    return tensors_digest(trainable_parameters(model))


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters behind `trainable_digest`, by name; on their device, by reference."""
    return {_unwrapped(n): p for n, p in model.named_parameters() if p.requires_grad}


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """`blake3:<hex>` over names (sorted), types, shapes and bytes of tensors."""
    digest = blake3()
    for name in sorted(tensors):
        _add(digest, name, tensors[name])
    return f"blake3:{digest.hexdigest()}"


def base_tensors(model: nn.Module, plan: BasePlan) -> dict[str, torch.Tensor]:
    """The base's parameters and quantization state by their names in its own state dict.

    Raises ValueError where `model` does not have all of them, frozen, in one piece.
    """
    found: dict[str, torch.Tensor] = {}
    for full, parameter in model.named_parameters():
        name = _base_name(full)
        if parameter.requires_grad or name not in plan.types:
            continue
        found[name] = parameter.detach()
        state = getattr(parameter, "quant_state", None)
        if isinstance(parameter, Params4bit) and state is not None:
            for key, value in state.as_dict(packed=True).items():
                found[f"{name}.{key}"] = value
    missing = sorted(set(plan.types) - set(found))
    if missing:
        raise ValueError(f"{len(missing)} parameters of the base train: {missing[0]}, ...")
    return found


def _load_base(
    job: ResolvedJob,
    folder: Path,
    device: torch.device,
    snapshot: Path | None,
    attention: str | None,
) -> tuple[Any, BasePlan | None]:
    quantization = _quantization(job.quantization)
    dtype = "auto"
    if quantization is not None and quantization.load_in_4bit:
        dtype = quantization.bnb_4bit_compute_dtype
    try:
        base = AutoModelForImageTextToText.from_pretrained(
            str(snapshot or folder),
            dtype=dtype,
            attn_implementation=attention,
            device_map=None if job.zero_stage == 3 else {"": device},
            # A snapshot's own stands in its config.json, and None would overrule it.
            **({} if snapshot else {"quantization_config": quantization}),
        )
    except (OSError, ValueError, ImportError, KeyError) as fault:
        raise UserError(f"model.path: {folder} cannot be loaded: {fault}") from fault
    # A snapshot is no name that an adapter could be used with later.
    base.config._name_or_path = base.name_or_path = str(folder)
    plan = _plan(base, folder)
    for module in base.modules():
        if isinstance(module, Linear4bit):
            # In evaluation bitsandbytes would repack the weights in place, with losses.
            module.support_avx512bf16_for_cpu = False
    asked = any(job.training.get(f"{kind}_checkpointing") for kind in ("activation", "gradient"))
    if quantization is None:
        base.requires_grad_(False)
        return base, plan
    prepared = prepare_model_for_kbit_training(
        base,
        use_gradient_checkpointing=asked,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    return prepared, plan


def _plan(base: Any, folder: Path) -> BasePlan | None:
    if not getattr(base, "is_loaded_in_4bit", False) or any(
        set(module._buffers) - module._non_persistent_buffers_set for module in base.modules()
    ):
        return None
    files = {CONFIG_NAME: base.config.to_json_string().encode()}
    generation = folder / GENERATION_CONFIG_NAME
    if generation.is_file():
        files[generation.name] = read_regular(generation)
    return BasePlan(types={n: p.dtype for n, p in base.named_parameters()}, files=files)


def _quantization(settings: Mapping[str, Any]) -> BitsAndBytesConfig | None:
    if not settings:
        return None
    values = dict(settings)
    for field in _DTYPE_FIELDS:
        if isinstance(values.get(field), str):
            values[field] = _dtype(field, values[field])
    try:
        return BitsAndBytesConfig(**values)
    except (TypeError, ValueError) as fault:
        raise UserError(f"quantization: {fault}") from fault


def _dtype(field: str, name: str) -> torch.dtype:
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise UserError(f"quantization.{field}: {name!r} is not a type of torch, try bfloat16")
    return dtype


def _lora_config(settings: Mapping[str, Any], family: Family) -> LoraConfig:
    values = {"task_type": "CAUSAL_LM", "target_modules": DEFAULT_PRESET} | dict(settings)
    if isinstance(values["target_modules"], str):
        values["target_modules"] = lora_pattern(family, values["target_modules"])
    try:
        return LoraConfig(**values)
    except (TypeError, ValueError) as fault:
        raise UserError(f"lora: {fault}") from fault


def _adapted(model: PeftModel) -> tuple[AdaptedModule, ...]:
    rows = []
    module: Any  # LoraLayer is a mix-in, unknown to torch's types
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            trains = sum(p.numel() for p in module.parameters() if p.requires_grad)
            layer = module.get_base_layer()
            shape = int(getattr(layer, "in_features", 0)), int(getattr(layer, "out_features", 0))
            rows.append(AdaptedModule(_base_name(name), *shape, trains))
    return tuple(sorted(rows, key=lambda row: row.name))


def _true_size(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(torch.Size(state.shape).numel())


def _unwrapped(name: str) -> str:
    """A parameter's name without the prefix that DDP or an engine puts before it."""
    return name.removeprefix("module.")


def _base_name(name: str) -> str:
    """A frozen parameter's name in the base model, without what PEFT put around it."""
    name = _unwrapped(name).removeprefix("base_model.model.")
    return name.replace(".base_layer", "").replace(".original_module", "")


def _add(digest: Any, name: str, tensor: torch.Tensor, *, widen: bool = False) -> None:
    """Add a tensor's name, type, shape and bytes to `digest`."""
    dtype = "float" if widen else str(tensor.dtype).removeprefix("torch.")
    digest.update(f"{name}\0{dtype}\0{tuple(tensor.shape)}\0".encode())
    for piece in pieces(tensor, torch.float32 if widen else tensor.dtype):
        digest.update(piece.view(torch.uint8).numpy())
