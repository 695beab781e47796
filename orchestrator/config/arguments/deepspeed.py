"""The settings of a DeepSpeed configuration: which a job may give, and which are ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from orchestrator.config.arguments import deepspeed_config
from orchestrator.config.arguments.base import Arguments, Auto, Bool, Integer, Real

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


class ZeroOptimization(deepspeed_config.Zero):
    """`zero_optimization`."""

    stage: Any = None


Block = Annotated[dict[str, Any], Field(default_factory=dict)]
"""A block that DeepSpeed checks itself."""


class DeepSpeedFile(Arguments):
    """What a job may give at the top of its DeepSpeed file."""

    train_batch_size: Integer | Auto = "auto"
    train_micro_batch_size_per_gpu: Integer | Auto = "auto"
    gradient_accumulation_steps: Integer | Auto = "auto"
    zero_optimization: ZeroOptimization = ZeroOptimization()
    gradient_clipping: Real | Auto = "auto"
    optimizer: Any = None
    bf16: deepspeed_config.BFloat16 = deepspeed_config.BFloat16()
    fp16: deepspeed_config.Float16 = deepspeed_config.Float16()
    torch_autocast: Block
    zero_allow_untested_optimizer: Bool = True
    zero_force_ds_cpu_optimizer: Bool = True
    data_types: Block
    compile: deepspeed_config.Compile = deepspeed_config.Compile()
    communication_data_type: str | None = None
    seq_parallel_communication_data_type: str | None = None
    disable_allgather: Bool = False
    prescale_gradients: Bool = False
    gradient_predivide_factor: Real = 1.0
    gradient_allreduce_op: str | None = None
    sparse_gradients: Bool = False
    activation_checkpointing: Block
    aio: Block
    disable_python_gc: Bool = False
    steps_per_print: Integer | Auto | None = None
    wall_clock_breakdown: Bool = False
    memory_breakdown: Bool = False
    dump_state: Bool = False
    log_level: str | None = None
    flops_profiler: Block
    comms_logger: deepspeed_config.CommsLogger = deepspeed_config.CommsLogger()
    tensorboard: deepspeed_config.TensorBoard = deepspeed_config.TensorBoard()
    csv_monitor: deepspeed_config.Csv = deepspeed_config.Csv()
    wandb: deepspeed_config.Wandb = deepspeed_config.Wandb()
    comet: deepspeed_config.Comet = deepspeed_config.Comet()
