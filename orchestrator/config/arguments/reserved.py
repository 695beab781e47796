"""Settings that a job file must not give, each with the word to use instead."""

from __future__ import annotations

from collections.abc import Mapping

_SAVING = "checkpoints are ours: use checkpoint.every_steps, every_minutes and keep_last"
_OUTPUT = "each run has its own directory: use checkpoint.uri"
_RESUME = "a run resumes by itself; `resume` with --from chooses a checkpoint"
_HUB = "nothing is pushed while a run lasts: publish the adapter when it is finished"
_ORDER = "the order of the samples is ours, so that a resume repeats none: remove it"
_LAUNCH = "processes are started by the agent: use resources.nodes and resources.gpus_per_node"
_ZERO = "data parallelism is DeepSpeed's: use deepspeed.stage"
_BEST = "use checkpoint.keep_best, and `export` with --step for the step you choose"
_TRACKIO = "it is not written: use report_to: tensorboard, wandb or none"
_PHASE = "a run always trains, and evaluates if data.eval is set: use training.eval_strategy"
_GIVEN = "it follows from model and the run: remove it"

TRAINING: Mapping[str, str] = {
    "output_dir": _OUTPUT,
    "overwrite_output_dir": _OUTPUT,
    "logging_dir": _OUTPUT,
    "save_strategy": _SAVING,
    "save_steps": "use checkpoint.every_steps",
    "save_total_limit": "use checkpoint.keep_last",
    "save_only_model": _SAVING,
    "save_safetensors": _SAVING,
    "save_on_each_node": "one checkpoint is written for all nodes: use checkpoint.uri",
    "enable_jit_checkpoint": "notices are served by the agent: use preemption.grace_s",
    "resume_from_checkpoint": _RESUME,
    "restore_callback_states_from_checkpoint": _RESUME,
    "load_best_model_at_end": _BEST,
    "auto_find_batch_size": "the batch plan shrinks after an out-of-memory by itself: remove it",
    "push_to_hub": _HUB,
    "push_to_hub_model_id": _HUB,
    "push_to_hub_organization": _HUB,
    "push_to_hub_token": _HUB,
    "hub_token": _HUB,
    "hub_private_repo": _HUB,
    "hub_model_id": _HUB,
    "hub_strategy": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
    "ignore_data_skip": _ORDER,
    "group_by_length": _ORDER,
    "train_sampling_strategy": _ORDER,
    "length_column_name": _ORDER,
    "dataloader_in_order": _ORDER,
    "dataloader_drop_last": "the incomplete last global batch of an epoch is always dropped",
    "remove_unused_columns": "the collator needs every column: remove it",
    "include_num_input_tokens_seen": "tokens are not counted: remove it",
    "local_rank": _LAUNCH,
    "use_cpu": "the device is found at the start: remove it",
    "no_cuda": "the device is found at the start: remove it",
    "ddp_backend": _LAUNCH,
    "ddp_timeout": _LAUNCH,
    "ddp_bucket_cap_mb": _ZERO,
    "ddp_broadcast_buffers": _ZERO,
    "ddp_find_unused_parameters": _ZERO,
    "ddp_static_graph": _ZERO,
    "fsdp": _ZERO,
    "fsdp_config": _ZERO,
    "parallelism_config": _ZERO,
    "accelerator_config": _LAUNCH,
    "deepspeed": "use the deepspeed block: {stage: 2} or {config: file.json}",
    "do_train": _PHASE,
    "do_eval": _PHASE,
    "do_predict": _PHASE,
    "project": _TRACKIO,
    "trackio_space_id": _TRACKIO,
    "trackio_bucket_id": _TRACKIO,
    "trackio_static_space_id": _TRACKIO,
    "train_batch_size": "use per_device_train_batch_size and gradient_accumulation_steps",
}
"""Fields of TrainingArguments, present or past, that belong to this program."""

RENAMED: Mapping[str, str] = {
    "evaluation_strategy": "use eval_strategy",
    "warmup_ratio": "use warmup_steps: a value below 1 is the share of all steps",
    "per_gpu_train_batch_size": "use per_device_train_batch_size",
    "per_gpu_eval_batch_size": "use per_device_eval_batch_size",
    "fp16_backend": "use fp16",
    "half_precision_backend": "use bf16 or fp16",
    "adafactor": "use optim: adafactor",
    "torchdynamo": "use torch_compile",
    "use_reentrant": "checkpointing is never reentrant: use activation_checkpointing",
    "max_seq_length": "use max_length at the top of the file",
    "max_length": "it stands at the top of the file, not under training",
}
"""Fields that no longer exist, or stand elsewhere, and what to write now."""

LORA: Mapping[str, str] = {
    "peft_type": "it is always LORA: remove it",
    "task_type": _GIVEN,
    "auto_mapping": _GIVEN,
    "peft_version": _GIVEN,
    "base_model_name_or_path": "use model.path",
    "revision": "use model.revision",
    "inference_mode": "adapters are always trained: remove it",
}
"""The same for LoraConfig."""

LORA_RENAMED: Mapping[str, str] = {
    "rank": "use r",
    "lora_rank": "use r",
    "alpha": "use lora_alpha",
    "dropout": "use lora_dropout",
}

QUANTIZATION: Mapping[str, str] = {
    "llm_int8_enable_fp32_cpu_offload": "the model stays on its GPU: remove it",
    "llm_int8_has_fp16_weight": "the base is frozen: remove it",
}
"""The same for BitsAndBytesConfig."""

QUANTIZATION_RENAMED: Mapping[str, str] = {
    "quant_method": "it is always bitsandbytes: remove it",
    "load_in_4_bit": "use load_in_4bit",
}

BASE_CHANGING_INITS = frozenset({"eva", "olora", "pissa", "corda", "loftq", "mica"})
"""Values of LoraConfig.init_lora_weights that read data or change the frozen base."""


_RESERVED = {"training": TRAINING, "lora": LORA, "quantization": QUANTIZATION}
_RENAMED = {"training": RENAMED, "lora": LORA_RENAMED, "quantization": QUANTIZATION_RENAMED}


def reserved(block: str, name: str) -> str | None:
    """What to use instead of an argument of the library that is ours; None = it is the job's."""
    return _RESERVED[block].get(name)


def renamed(block: str, name: str) -> str | None:
    """What to write instead of a name that the library does not know (any more)."""
    return _RENAMED[block].get(name)
