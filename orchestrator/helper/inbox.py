"""What a helper hears: from its agent, and from threads of its own, in the order it came."""

from __future__ import annotations

import queue
import socket
import threading

from orchestrator.contract.wire import LineBuffer, Message


class Inbox:
    """Messages of the agent at the other end of `link`; None once it is gone."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._messages: queue.Queue[Message | None] = queue.Queue()
        self._told_to_stop = threading.Event()

    def listen(self) -> None:
        """Begin to read, in a thread."""
        threading.Thread(target=self._listen, name="inbox", daemon=True).start()

    def told_to_stop(self) -> bool:
        """Whether the agent has had a notice, or is at its end, however much is still unread."""
        return self._told_to_stop.is_set()

    def put(self, message: Message | None) -> None:
        self._messages.put(message)

    def get(self, timeout: float | None = None) -> Message | None:
        """The next message, a `tick` if none comes in time."""
        try:
            return self._messages.get(timeout=timeout)
        except queue.Empty:
            return {"t": "tick"}

    def rest(self) -> list[Message]:
        """What is there already."""
        found = []
        while not self._messages.empty():
            message = self._messages.get()
            if message is not None:
                found.append(message)
        return found

    def _listen(self) -> None:
        buffer = LineBuffer()
        while True:
            try:
                data = self._link.recv(1 << 16)
            except OSError:
                data = b""
            if not data:
                self._told_to_stop.set()
                self._messages.put(None)
                return
            for message in buffer.feed(data):
                if message["t"] in ("notice", "outcome"):
                    self._told_to_stop.set()
                self._messages.put(message)
