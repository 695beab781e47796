"""What a tensor file of torch may name: a load creates nothing but these types.

A checkpoint whose bytes are right may still hold a type that every load refuses; who verifies
one asks here, without torch.
"""

from __future__ import annotations

import io
import re
import struct
from contextlib import suppress

HEAD_BYTES = 4 << 20
"""So far a pickle is looked at; those of checkpoints take about 150 bytes a tensor."""
ENGINE = frozenset(
    {
        "builtins.getattr",
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
    }
)
"""In DeepSpeed's files. `getattr` is read as DeepSpeed's enum by name, and as nothing else."""
RANDOM = frozenset(
    {
        "numpy._core.multiarray._reconstruct",
        "numpy.core.multiarray._reconstruct",
        "numpy.dtype",
        "numpy.dtypes.UInt32DType",
        "numpy.ndarray",
    }
)
"""In the files of random states."""
_TORCH = re.compile(
    r"torch\..*|collections\.(OrderedDict|Counter)|_codecs\.encode"
    r"|builtins\.(bytearray|set|complex)"
)
"""What torch allows by itself. Of its own names all: which those are, its next release decides."""
_LOCAL_HEADER = struct.Struct("<4s22xHH")


def is_tensor_file(path: str) -> bool:
    """By its name, a file that torch reads."""
    return path.endswith((".pt", ".pth"))


def refused(path: str, head: bytes) -> tuple[str, ...]:
    """Names of types in a tensor file that a load would refuse.

    head: the file's first bytes, up to HEAD_BYTES; torch puts the pickle first. What does not
    begin like a file of torch names nothing.
    """
    pickled = _pickle(head)
    if pickled is None:
        return ()
    name = path.rpartition("/")[2]
    allowed = RANDOM if name.startswith("rng_state") else ENGINE
    return tuple(sorted(n for n in _globals(pickled) if n not in allowed and not _TORCH.match(n)))


def _pickle(head: bytes) -> bytes | None:
    """What begins with the record `data.pkl`, which is stored as it is; None without one."""
    if len(head) < _LOCAL_HEADER.size:
        return None
    magic, name, extra = _LOCAL_HEADER.unpack_from(head)
    start = _LOCAL_HEADER.size + name
    if magic != b"PK\3\4" or not head[_LOCAL_HEADER.size : start].endswith(b"/data.pkl"):
        return None
    return head[start + extra :]


def _globals(pickled: bytes) -> set[str]:
    import pickletools

    found: set[str] = set()
    with suppress(ValueError):  # longer than what is looked at
        for opcode, argument, _ in pickletools.genops(io.BytesIO(pickled)):
            if opcode.name == "GLOBAL":
                module, _, name = str(argument).partition(" ")
                found.add(f"{_module(module)}.{name}")
            elif opcode.name in ("INST", "STACK_GLOBAL"):
                found.add(f"(a type named by {opcode.name})")  # torch reads neither
    return found


def _module(name: str) -> str:
    """Pickles of protocol 2 call it by its name in Python 2."""
    return {"__builtin__": "builtins"}.get(name, name)
