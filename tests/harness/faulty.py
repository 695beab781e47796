"""A storage before another one, that fails when it is told to and counts what is asked of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from orchestrator.storage.protocol import Created, Entry, Sink, Storage, Taken

Plan = Callable[[str, str], Exception | None]
"""Takes verb and path; what it gives is raised before the storage is asked."""


class Faulty:
    """Passes every verb on, unless `plan` names a fault; `lose` has the storage do it first."""

    def __init__(self, inner: Storage) -> None:
        self.inner = inner
        self.plan: Plan = lambda _verb, _path: None
        self.lose: Plan = lambda _verb, _path: None
        self.asked: Counter[str] = Counter()

    @property
    def uri(self) -> str:
        return self.inner.uri

    def get(self, path: str) -> bytes:
        self._ask("get", path)
        return self.inner.get(path)

    def read(self, path: str, chunk_bytes: int = 1 << 20) -> Iterator[memoryview]:
        self._ask("read", path)
        return self.inner.read(path, chunk_bytes)

    def put(self, path: str, data: bytes) -> None:
        self._ask("put", path)
        self.inner.put(path, data)
        self._answer("put", path)

    def create(self, path: str, data: bytes) -> Created | Taken:
        self._ask("create", path)
        outcome = self.inner.create(path, data)
        self._answer("create", path)
        return outcome

    def list(self, prefix: str, *, deep: bool = False) -> list[Entry]:
        self._ask("list", prefix)
        return self.inner.list(prefix, deep=deep)

    def delete(self, path: str) -> None:
        self._ask("delete", path)
        self.inner.delete(path)

    def write_stream(self, path: str) -> AbstractContextManager[Sink]:
        self._ask("write_stream", path)
        return self.inner.write_stream(path)

    def local_path(self, path: str) -> Path | None:
        return self.inner.local_path(path)

    def _ask(self, verb: str, path: str) -> None:
        self.asked[verb] += 1
        if (fault := self.plan(verb, path)) is not None:
            raise fault

    def _answer(self, verb: str, path: str) -> None:
        if (fault := self.lose(verb, path)) is not None:
            raise fault


def until(clock_now: Callable[[], float], end: float, fault: Exception, *verbs: str) -> Plan:
    """`fault` for those verbs (none = all) until the clock says `end`."""
    return lambda verb, _: fault if clock_now() < end and (not verbs or verb in verbs) else None
