"""What `data check` is asked, as the command line writes it to our standard input."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Absolute paths; the settings are those that decide lengths and memory."""

    train: str
    model: str
    eval: str | None = None
    revision: str | None = None
    media_root: str | None = None
    max_length: int | None = None
    micro: int = 1
    quantized: bool = True
    checkpointing: bool = False
    lora_rank: int = 8
    processes: int = 1
    decode: bool = False
