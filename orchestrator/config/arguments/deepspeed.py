"""The settings of a DeepSpeed configuration: which are known, and which are ours."""

from __future__ import annotations

from collections.abc import Mapping

_SAVING = "checkpoints are ours: use checkpoint in the job file"
_SAMPLES = "the order of the samples is ours: remove it"
_SHAPE = "the shape of a run never changes: remove it"
_MODEL = "the model is trained as it is: remove it"

OURS: Mapping[str, str] = {
    "checkpoint": _SAVING,
    "nebula": _SAVING,
    "datastates": _SAVING,
    "elasticity": _SHAPE,
    "tensor_parallel": _SHAPE,
    "expert_parallel": _SHAPE,
    "sequence_parallel_size": _SHAPE,
    "pipeline": _SHAPE,
    "autotuning": "the batch plan is fixed for a run: remove it",
    "curriculum_learning": _SAMPLES,
    "data_efficiency": _SAMPLES,
    "compression_training": _MODEL,
    "progressive_layer_drop": _MODEL,
    "hybrid_engine": _MODEL,
    "amp": "use training.bf16 or training.fp16",
    "bfloat16": "use bf16",
    "scheduler": "use training.lr_scheduler_type, which every checkpoint restores",
    "dataloader_drop_last": "the incomplete last global batch is always dropped: remove it",
}
"""Settings that a job must not give, each with what to do instead."""

KNOWN = (
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
    *("zero_optimization", "gradient_clipping", "optimizer", "bf16", "fp16", "torch_autocast"),
    *("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "data_types", "compile"),
    *("communication_data_type", "seq_parallel_communication_data_type", "disable_allgather"),
    *("prescale_gradients", "gradient_predivide_factor", "gradient_allreduce_op"),
    *("sparse_gradients", "activation_checkpointing", "aio", "disable_python_gc"),
    *("steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "log_level"),
    *("flops_profiler", "comms_logger", "tensorboard", "csv_monitor", "wandb", "comet"),
)
"""Settings that a job may give at the top of its DeepSpeed file."""

ZERO = (
    *("stage", "contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "overlap_comm"),
    *("use_multi_rank_bucket_allreduce", "allgather_partitions", "allgather_bucket_size"),
    *("compute_grad_norm", "load_from_fp32_weights", "elastic_checkpoint", "offload_param"),
    *("offload_optimizer", "zenflow", "sub_group_size", "cpu_offload_param", "cpu_offload"),
    *("cpu_offload_use_pin_memory", "prefetch_bucket_size", "stage3_prefetch_bucket_size"),
    *("param_persistence_threshold", "stage3_param_persistence_threshold"),
    *("model_persistence_threshold", "stage3_model_persistence_threshold"),
    *("max_live_parameters", "stage3_max_live_parameters"),
    *("max_reuse_distance", "stage3_max_reuse_distance"),
    *("gather_16bit_weights_on_model_save", "stage3_gather_16bit_weights_on_model_save"),
    *("module_granularity_threshold", "stage3_module_granularity_threshold"),
    *("use_all_reduce_for_fetch_params", "stage3_use_all_reduce_for_fetch_params"),
    *("allgather_sequential", "stage3_allgather_sequential"),
    *("stage3_gather_fp16_weights_on_model_save", "ignore_unused_parameters", "legacy_stage1"),
    *("round_robin_gradients", "parameter_alignment", "zero_hpz_partition_size"),
    *("zero_quantized_weights", "zero_quantized_nontrainable_weights"),
    *("zero_quantized_gradients", "memory_efficient_linear", "pipeline_loading_checkpoint"),
    *("override_module_apply", "log_trace_cache_warnings", "enable_sanity_checks"),
    *("save_muon_momentum_buffer_in_memory", "leaf_module"),
)
"""The fields of DeepSpeedZeroConfig, aliases too (a test compares them)."""
