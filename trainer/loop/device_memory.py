"""How much memory a rank has held at most."""

from __future__ import annotations

import resource

import torch


def peak() -> dict[str, int]:
    """Bytes: of this process on the host, and of torch's allocator on its GPU."""
    found = {"host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if torch.cuda.is_available():
        found["device_bytes"] = torch.cuda.max_memory_allocated()
        found["device_reserved_bytes"] = torch.cuda.max_memory_reserved()
    return found
