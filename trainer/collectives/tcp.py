"""Ranks that agree over plain TCP through rank 0: the fake trainer's process group."""

from __future__ import annotations

import json
import socket
import time
from typing import BinaryIO, cast

from orchestrator.contract.jsonio import Json
from trainer.collectives.group import Group

_RETRY_S = 0.02


class TcpGroup(Group):
    """Rank 0 listens; each collective is one line from everyone and one answer to everyone."""

    def __init__(self, rank: int, size: int, address: str, port: int, timeout_s: float) -> None:
        super().__init__(rank, size)
        self._files: list[BinaryIO] = []
        deadline = time.monotonic() + timeout_s
        if rank == 0:
            self._listen(address, port, timeout_s)
        else:
            self._files = [_connect(address, port, deadline)]
            _write(self._files[0], rank)

    def gather(self, value: Json) -> list[Json]:
        if self.rank > 0:
            _write(self._files[0], value)
            answer: list[Json] = _read(self._files[0])
            return answer
        values = [value, *(_read(file) for file in self._files)]
        for file in self._files:
            _write(file, values)
        return values

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _listen(self, address: str, port: int, timeout_s: float) -> None:
        found: dict[int, BinaryIO] = {}
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.create_server((address, port), family=family, backlog=self.size) as server:
            server.settimeout(timeout_s)
            while len(found) < self.size - 1:
                file = _stream(server.accept()[0])
                found[_read(file)] = file
        self._files = [found[rank] for rank in sorted(found)]


def _connect(address: str, port: int, deadline: float) -> BinaryIO:
    while True:
        try:
            return _stream(socket.create_connection((address, port), timeout=5.0))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_S)


def _stream(connection: socket.socket) -> BinaryIO:
    # The file keeps the connection open, and closes it.
    with connection:
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cast(BinaryIO, connection.makefile("rwb"))


def _write(file: BinaryIO, value: Json) -> None:
    file.write(json.dumps(value).encode() + b"\n")
    file.flush()


def _read(file: BinaryIO) -> Json:
    line = file.readline()
    if not line:
        raise ConnectionError("a rank has left")
    return json.loads(line)
