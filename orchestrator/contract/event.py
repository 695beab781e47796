"""Events: what happened to a run, one JSON line each, in segments of one writer each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KINDS: Mapping[str, str] = {
    "submitted": "a submission was handed to the backend",
    "queued": "the agent waits for a free device",
    "claimed": "the agent claimed the attempt and its slot",
    "resuming": "the checkpoint to start from was chosen and verified",
    "checkpoint_bad": "a checkpoint failed its verification and was passed over",
    "contract_warning": "something differs from the checkpoint and is allowed",
    "stage": "a rank reached a stage of its start-up (data.stage, data.seconds)",
    "resumed": "state was restored and compared (recorded and found: learning rate, hashes)",
    "interrupted": "micro-batches that a stop gave up, with their losses (one event a rank)",
    "reproduced": "the next attempt has computed the same losses again, or why it was not asked to",
    "step": "an optimizer step ended (carried by metrics; not stored as an event)",
    "notice": "a stop request was seen (reason, seconds left)",
    "cause": "why the notice came, as the scheduler says (cause, seconds left if it knows)",
    "stop_agreed": "all ranks agreed to stop (step, micro-batch, seconds since the notice)",
    "base": "the quantized base was loaded from a snapshot, or stored as one (how, seconds)",
    "save_started": "a checkpoint is being written (stall_s: what training waited for it)",
    "save_superseded": "a save beside training was given up for a newer one",
    "committed": "a checkpoint is durable",
    "save_skipped": "the step was committed already, or nothing to save",
    "salvaged": "the adapter alone was stored before a save that may not end in time",
    "uploaded": "a checkpoint of the local tier has reached the durable storage",
    "save_failed": "a checkpoint could not be committed",
    "verified": "a committed checkpoint was read back and found right",
    "retired": "a checkpoint was given up and its files removed",
    "evaluated": "an evaluation ended (step, metrics)",
    "eval_interrupted": "an evaluation was cut off and will be repeated",
    "data": "what the sampler sees: samples, steps an epoch, dropped samples",
    "replaced": "a broken sample was replaced by another (record, reason, count)",
    "trainable": "matched modules and parameter counts",
    "memory": "the most memory that a rank has held (bytes on the host and the device)",
    "rank_exit": "a rank ended (rank, code)",
    "error": "an error in words",
    "warning": "something a person may want to know",
    "verdict": "how the attempt ended on this node",
    "finished": "the run is done",
    "requeued": "the controller submitted the next attempt",
    "held": "the run waits for a person (reason, next)",
    "failed": "the run ended without success",
    "cancelling": "a cancel was asked for",
    "cancelled": "the run was cancelled",
    "nodes_excluded": "a new job keeps away from nodes on which attempts died",
    "preempt_requested": "a person asked for a notice",
    "resume_requested": "a person asked to go on",
}
"""Kind and meaning; nothing else is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event. Order: (attempt, writer, seq) for one writer, time between writers."""

    time: str
    kind: str
    writer: str
    """`node-<k>`, `controller` or `cli`."""
    attempt: int | None = None
    rank: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    seq: int = 0
    schema: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """One optimizer step as one rank saw it; rank 0's lines are the run's curve."""

    step: int
    attempt: int
    loss: float | None
    """Mean over the step, of all ranks; null where it is not finite."""
    loss_hex: str
    """The same as float.hex(); `nan` and `inf` are kept here."""
    learning_rate: float
    """The rate that this step used."""
    grad_norm: float | None
    time: str
    samples: tuple[int, ...] = ()
    """Indices of the samples that this rank consumed, in order."""
    micro_losses: tuple[str, ...] = ()
    """float.hex() of this rank's loss of each micro-batch."""
