"""Devices of this machine, handed out by file locks (local backend).

A GPU is one lock file; without GPUs a run takes one of `max_parallel_runs` seats. The
kernel drops a lock when its holder dies, so nothing has to be cleaned up.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path


def visible_gpus(proc_root: Path = Path("/proc/driver/nvidia/gpus")) -> tuple[int, ...]:
    """Numbers of this machine's NVIDIA GPUs, restricted by CUDA_VISIBLE_DEVICES if it is set."""
    count = len(list(proc_root.iterdir())) if proc_root.is_dir() else 0
    restricted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if restricted is None:
        return tuple(range(count))
    return tuple(int(n) for n in restricted.split(",") if n.strip().isdecimal())[:count]


def acquire(folder: Path, gpus: Sequence[int], wanted: int, seats: int) -> tuple[int, ...] | None:
    """Lock `wanted` GPUs, or a seat where there are no GPUs; None if too few are free now.

    Returns the GPUs' numbers, none for a seat; the locks last as long as this process. Takes
    all or nothing, so that two waiting runs cannot block each other.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    names = [f"gpu-{n}" for n in gpus] if gpus else [f"seat-{n}" for n in range(seats)]
    needed = wanted if gpus else 1
    held: list[tuple[int, int]] = []
    for index, name in enumerate(names):
        fd = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            continue
        held.append((index, fd))
        if len(held) == needed:
            return tuple(gpus[i] for i, _ in held) if gpus else ()
    for _, fd in held:
        os.close(fd)
    return None
