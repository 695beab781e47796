"""How large a checkpoint may be: what the trainable parameters need, and little beside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.contract.manifest import FileEntry

STATE_BYTES = 12
"""A trainable parameter: master copy and two moments, 32 bits each."""
COPIES = 2
"""Of the adapter in its own precision: one for PEFT, one for DeepSpeed."""
MARGIN = 1.02
FIXED_BYTES = 256_000
RANK_BYTES = 64_000


def needed(tensors: Iterable[tuple[int, int]]) -> int:
    """Bytes of the state of these trainable tensors: (elements, bytes of one)."""
    return sum(count * (STATE_BYTES + COPIES * width) for count, width in tensors)


def excess(files: Sequence[FileEntry], needed_bytes: int, ranks: int) -> str:
    """A sentence if the files take more than they should; empty if they do not.

    needed_bytes: 0 = not known
    """
    total = sum(f.size_bytes for f in files)
    limit = int(MARGIN * needed_bytes) + FIXED_BYTES + RANK_BYTES * ranks
    if not needed_bytes or total <= limit:
        return ""
    largest = sorted(files, key=lambda f: f.size_bytes, reverse=True)[:3]
    names = ", ".join(f"{f.path} {f.size_bytes}" for f in largest)
    return (
        f"the checkpoint takes {total} bytes, its trainable state needs {needed_bytes} and may "
        f"take {limit}; the largest files: {names}"
    )
