"""What a checkpoint recorded and what an attempt found after loading it, short enough to compare.

Digests of several ranks are folded into one; equal folds mean equal on every rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.contract.jsonio import digest
from orchestrator.contract.manifest import CheckpointManifest

NAMES = {
    "learning_rate": "learning rate",
    "adapter": "adapter",
    "optimizer": "optimizer state",
    "random": "random states",
}
"""Keys of both mappings, and how a person calls them."""


def of_manifest(manifest: CheckpointManifest) -> dict[str, str]:
    """What was recorded when the checkpoint was made."""
    return {
        "learning_rate": manifest.learning_rate_hex,
        "adapter": manifest.adapter_digest,
        "optimizer": digest(list(manifest.rank_digests)),
        "random": digest(list(manifest.rng_digests)),
    }


def of_ranks(found: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What the ranks found, by rank; a value that must be alike and is not is shown as such."""
    return {
        "learning_rate": _alike([f["learning_rate_hex"] for f in found]),
        "adapter": _alike([f["adapter_digest"] for f in found]),
        "optimizer": digest([f["state_digest"] for f in found]),
        "random": digest([f["rng_digest"] for f in found]),
    }


def _alike(values: Sequence[str]) -> str:
    return values[0] if len(set(values)) == 1 else f"differs: {', '.join(values)}"
