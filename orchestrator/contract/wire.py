"""Messages between agent, helper and ranks: JSON lines over an inherited socket pair.

    rank   -> agent   hello {rank, pid, beats}, phase {phase}, notice {signal},
                      beat {doing: step, training, evaluating or saving}, event {kind, data},
                      progress {step, total_steps, loss, ...}, ending {code, reason, message}
    agent  -> rank    assign {assignment}, stop {reason, seconds_left}
    helper -> agent   assigned {assignment}, refused {code, reason, message, verdict},
                      stop {reason, seconds_left}, peer-ended {node},
                      verdict {code, again}, beat {}
    agent  -> helper  notice {reason, seconds_left, rank}, event {rank, kind, data},
                      phase {rank, phase, seconds}, progress {..}, log {rank, line},
                      outcome {verdict fields}

Every message is an object with the key `t` naming it.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any

Message = dict[str, Any]
MAX_LINE = 8 << 20
"""A longer line is a fault of the writer; the reader drops the connection."""


def encode(kind: str, fields: Mapping[str, Any]) -> bytes:
    """One message as a line."""
    return json.dumps({**fields, "t": kind}, separators=(",", ":")).encode() + b"\n"


class LineBuffer:
    """Cuts a stream of bytes into messages; malformed lines are skipped."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Message]:
        """Messages completed by `data`. Raises OverflowError past MAX_LINE."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            raise OverflowError("a message without end")
        for line in lines:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict) and isinstance(value.get("t"), str):
                yield value


def attach(fd: int) -> socket.socket:
    """The socket behind an inherited file descriptor; not inherited further."""
    link = socket.socket(fileno=fd)
    link.set_inheritable(False)
    return link
