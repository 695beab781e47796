"""What a checkpoint says of itself: one shard a rank, one manifest a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.contract.jsonio import (
    SUM,
    MalformedJson,
    digest,
    from_json,
    loads,
    pretty,
    to_json,
    without_sum,
)
from orchestrator.contract.plan import BatchPlan

CHECKPOINT_FORMAT = 1
"""Grows when an older trainer could not continue from a newer checkpoint."""

Trigger = Literal["interval", "notice", "final"]

_SAFE = re.compile(r"[A-Za-z0-9._+=@-]+(/[A-Za-z0-9._+=@-]+)*")
_HASH = re.compile(r"blake3:[0-9a-f]{64}")
MAX_FILES = 100_000
MAX_FILE_BYTES = 1 << 46


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of a checkpoint, its path relative to the checkpoint's directory."""

    path: str
    size_bytes: int
    hash: str
    """`blake3:` and 64 hex digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardManifest:
    """What one rank wrote."""

    rank: int
    files: tuple[FileEntry, ...]
    state_digest: str
    """Hash of the rank's optimizer shard and fp32 masters, compared after a load."""
    rng_digest: str
    """Hash of the rank's random states (python, numpy, torch, device)."""
    base: str | None = None
    """Digest of the frozen base at the attempt's start, by one rank a node."""
    base_again: str | None = None
    """The same after its first evaluation."""
    schema: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointManifest:
    """Everything that makes a directory a checkpoint; written last, named by the commit."""

    run_id: str
    attempt: int
    step: int
    """Optimizer steps that are contained."""
    epoch: int
    """Epoch of the next sample."""
    samples_seen: int
    """Samples of all ranks up to `step`."""
    nodes: int
    gpus_per_node: int
    zero_stage: int
    plan: BatchPlan
    trigger: Trigger
    created_at: str
    files: tuple[FileEntry, ...]
    learning_rate_hex: str
    """Learning rate that the next step will use, as float.hex()."""
    adapter_digest: str
    """Hash of all trainable tensors by name, compared after a load."""
    adapter_sha256: str
    """SHA-256 of adapter_model.safetensors."""
    rank_digests: tuple[str, ...]
    """`state_digest` of each rank."""
    rng_digests: tuple[str, ...]
    pending_eval: bool
    """An evaluation was cut off and must be run before the next step."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The resume contract's facts (see domain.resume)."""
    checkpoint_format: int = CHECKPOINT_FORMAT
    schema: int = 1

    @property
    def total_bytes(self) -> int:
        return sum(f.size_bytes for f in self.files)


def encode_manifest(manifest: CheckpointManifest) -> bytes:
    """JSON for people, with a checksum `sum` over all other fields."""
    value = to_json(manifest)
    return pretty({**value, SUM: digest(value)})


def decode_manifest(data: bytes) -> CheckpointManifest:
    """Inverse of `encode_manifest`; the files it names are checked as `check_files` does.

    The checksum tells damage from what was written, also where no commit record is at hand;
    it says nothing about who wrote it. Raises MalformedJson.
    """
    manifest = from_json(CheckpointManifest, without_sum(loads(data)))
    check_files(manifest.files)
    return manifest


def check_files(files: Iterable[FileEntry]) -> None:
    """Refuse what a hostile or broken manifest could name.

    Raises MalformedJson for absolute paths, `..`, odd characters, repeated names,
    malformed hashes and absurd sizes.
    """
    seen: set[str] = set()
    for count, entry in enumerate(files, 1):
        parts = entry.path.split("/")
        if not _SAFE.fullmatch(entry.path) or any(p in (".", "..") for p in parts):
            raise MalformedJson(f"unsafe path in manifest: {entry.path!r}")
        if entry.path in seen:
            raise MalformedJson(f"path named twice in manifest: {entry.path!r}")
        if not _HASH.fullmatch(entry.hash):
            raise MalformedJson(f"malformed hash of {entry.path!r}")
        if not 0 <= entry.size_bytes <= MAX_FILE_BYTES or count > MAX_FILES:
            raise MalformedJson(f"absurd size or number of files at {entry.path!r}")
        seen.add(entry.path)
