"""The rank's end of the socket to its agent; never blocks the training thread."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from orchestrator.contract import wire

QUEUE_LINES = 10_000
_DROPPABLE = frozenset({"progress", "event", "phase", "beat"})


class Link:
    """Sends messages from a thread of its own and hands received ones to a callback."""

    def __init__(self, fd: int) -> None:
        self._socket = wire.attach(fd)
        self._lines: deque[bytes] = deque()
        self._change = threading.Condition()
        self._busy = False
        self._closed = False

    def peer_pid(self) -> int:
        """Process that made the socket pair (the agent); 0 if it cannot be seen from here."""
        size = struct.calcsize("3i")
        data = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return int(struct.unpack("3i", data)[0])

    def start(
        self, on_message: Callable[[wire.Message], None], on_closed: Callable[[], None]
    ) -> None:
        """Begin to read and write; `on_closed` is called when the agent has gone."""
        threading.Thread(
            target=self._read, args=(on_message, on_closed), name="qvl-link-read", daemon=True
        ).start()
        threading.Thread(target=self._write, name="qvl-link-write", daemon=True).start()

    def send(self, name: str, /, **fields: Any) -> None:
        """Queue one message of kind `name`.

        Progress and events are dropped while the agent does not read.
        """
        line = wire.encode(name, fields)
        with self._change:
            if len(self._lines) < QUEUE_LINES or name not in _DROPPABLE:
                self._lines.append(line)
                self._change.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until everything queued is sent; False if that takes too long."""
        with self._change:
            return self._change.wait_for(
                lambda: self._closed or not (self._lines or self._busy), seconds
            )

    def _read(
        self, on_message: Callable[[wire.Message], None], on_closed: Callable[[], None]
    ) -> None:
        buffer = wire.LineBuffer()
        try:
            while data := self._socket.recv(1 << 16):
                for message in buffer.feed(data):
                    on_message(message)
        except (OSError, OverflowError):
            pass
        on_closed()

    def _write(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: bool(self._lines))
                line = self._lines.popleft()
                self._busy = True
            try:
                self._socket.sendall(line)
            except OSError:
                self._closed = True
            with self._change:
                self._busy = False
                self._change.notify_all()
            if self._closed:
                return


def link_fd(value: str | None) -> int:
    """The descriptor that the environment names. SystemExit without a usable one."""
    try:
        fd = int(value or "")
        os.fstat(fd)
    except (ValueError, OSError):
        raise SystemExit("a rank is started by the agent (QVL_AGENT_FD names no socket)") from None
    return fd
