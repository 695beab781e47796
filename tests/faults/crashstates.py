"""What a power loss may leave of a run of recorded system calls.

A model of a file system that promises no more than POSIX: bytes are safe once the file was
fsynced, names once their folder was. Everything else may or may not have reached the disk, in
any order; a write may have arrived in part, or have left zeros where it grew the file. A rename
is one step, as all file systems that matter make it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.traced import Call, decoded

_FD = re.compile(r"(\d+)<((?:\\x[0-9a-f]{2})*)>")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


@dataclass
class Node:
    """A file: what is safe on the disk, and the writes since."""

    safe: bytes = b""
    writes: list[tuple[int, bytes]] = field(default_factory=list)
    lost: bool = False
    """An fsync has failed: the kernel may have dropped what was written, and forgotten it."""

    def content(self, arrived: Sequence[bool], torn: int | None) -> bytes:
        """With those of the writes that arrived; of the torn one only the first half of the
        bytes, and zeros where it grew the file.
        """
        data = bytearray(self.safe)
        for number, (offset, chunk) in enumerate(self.writes):
            if not arrived[number]:
                continue
            end = offset + len(chunk)
            data.extend(bytes(max(0, end - len(data))))
            kept = len(chunk) // 2 if number == torn else len(chunk)
            data[offset : offset + kept] = chunk[:kept]
        return bytes(data)

    def sync(self) -> None:
        if self.lost:
            return
        self.safe = self.content([True] * len(self.writes), None)
        self.writes.clear()


@dataclass(frozen=True)
class Change:
    """Of one folder's names: None is removed. Not safe before the folder is fsynced."""

    folder: str
    names: tuple[tuple[str, int | None], ...]
    """(path, number of the node; FOLDER for a folder)"""


FOLDER = -1


class Disk:
    """Replays calls and says what may be left at any moment."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self.nodes: list[Node] = []
        self._now: dict[str, int] = {}
        """Names as the running system sees them."""
        self._safe: dict[str, int] = {}
        self._pending: list[Change] = []
        self._offsets: dict[int, int] = {}
        for path in sorted(root.rglob("*")):
            self._safe[str(path)] = FOLDER if path.is_dir() else self._new(path.read_bytes())
        self._now = dict(self._safe)

    def _new(self, data: bytes = b"") -> int:
        self.nodes.append(Node(data))
        return len(self.nodes) - 1

    # --- replay

    def apply(self, call: Call) -> bool:
        """True if the call changed what may be left."""
        if call.name == "fsync" and call.result == "-1":
            self._on_failed_fsync(_descriptor(call.arguments)[1])
        if call.result.startswith("?") or int(call.result) < 0:
            return False
        act = getattr(self, f"_on_{call.name}", None)
        if act is None:
            return False
        return bool(act(call.arguments, int(call.result), _opened(call)))

    def _on_openat(self, arguments: str, result: int, opened: str) -> bool:
        self._offsets[result] = 0
        if not opened.startswith(self._root) or "O_CREAT" not in arguments:
            assert "O_TRUNC" not in arguments or not opened.startswith(self._root)
            return False
        assert "O_EXCL" in arguments, "a file is written that may exist"
        return self._change((opened, self._new()))

    def _on_write(self, arguments: str, result: int, _: str) -> bool:
        fd, path = _descriptor(arguments)
        if path not in self._now:
            return False
        chunk = decoded(_strings(arguments)[0])[:result]
        assert len(chunk) == result, "the trace is cut short"
        node = self.nodes[self._now[path]]
        node.writes.append((self._offsets[fd], chunk))
        self._offsets[fd] += result
        return True

    def _on_fsync(self, arguments: str, _: int, __: str) -> bool:
        path = _descriptor(arguments)[1]
        if self._now.get(path, FOLDER) != FOLDER:
            self.nodes[self._now[path]].sync()
            return True
        if path != self._root and path not in self._now:
            return False
        for change in [c for c in self._pending if c.folder == path]:
            _renamed(self._safe, change)
            self._pending.remove(change)
        return True

    def _on_failed_fsync(self, path: str) -> None:
        if self._now.get(path, FOLDER) != FOLDER:
            self.nodes[self._now[path]].lost = True

    def _on_mkdir(self, arguments: str, _: int, __: str) -> bool:
        return self._change((self._path(arguments, 0), FOLDER))

    def _on_rmdir(self, arguments: str, _: int, __: str) -> bool:
        return self._change((self._path(arguments, 0), None))

    _on_unlink = _on_rmdir

    def _on_link(self, arguments: str, _: int, __: str) -> bool:
        return self._change((self._path(arguments, 1), self._now[self._path(arguments, 0)]))

    def _on_rename(self, arguments: str, _: int, __: str) -> bool:
        old, new = self._path(arguments, 0), self._path(arguments, 1)
        return self._change((new, self._now[old]), (old, None))

    _on_renameat2 = _on_rename

    def _path(self, arguments: str, which: int) -> str:
        return decoded(_strings(arguments)[which]).decode()

    def _change(self, *names: tuple[str, int | None]) -> bool:
        change = Change(str(Path(names[0][0]).parent), names)
        self._pending.append(change)
        _renamed(self._now, change)
        return True

    # --- what may be left

    def states(self, chance: random.Random, draws: int) -> Iterator[dict[str, bytes | None]]:
        """Path -> content (None: a folder), as far as the folders above are there."""
        changes, writes = len(self._pending), self._unsafe_writes()
        everything, nothing = (1 << changes) - 1, 0
        masks = {everything, nothing}
        masks |= {1 << n for n in range(changes)} | {everything & ~(1 << n) for n in range(changes)}
        for mask in sorted(masks):
            yield self._state(mask, "all", None)
            if writes:
                yield self._state(mask, "none", None)
        for node, number in writes:
            yield self._state(everything, "all", (node, number))
        for _ in range(draws if changes + len(writes) else 0):
            yield self._state(chance.getrandbits(changes) if changes else 0, "random", None, chance)

    def _unsafe_writes(self) -> list[tuple[int, int]]:
        return [(i, n) for i, node in enumerate(self.nodes) for n in range(len(node.writes))]

    def _state(
        self,
        mask: int,
        arrived: str,
        torn: tuple[int, int] | None,
        chance: random.Random | None = None,
    ) -> dict[str, bytes | None]:
        names = dict(self._safe)
        for number, change in enumerate(self._pending):
            if mask >> number & 1:
                _renamed(names, change)
        found: dict[str, bytes | None] = {}
        for path, node in sorted(names.items()):
            above = str(Path(path).parent)
            if above != self._root and above not in found:
                continue
            found[path] = None if node == FOLDER else self._content(node, arrived, torn, chance)
        return found

    def _content(
        self, node: int, arrived: str, torn: tuple[int, int] | None, chance: random.Random | None
    ) -> bytes:
        writes = self.nodes[node].writes
        there = [arrived == "all" or (chance is not None and chance.random() < 0.5) for _ in writes]
        return self.nodes[node].content(there, torn[1] if torn and torn[0] == node else None)


def _renamed(names: dict[str, int], change: Change) -> None:
    for path, node in change.names:
        if node is None:
            names.pop(path, None)
        else:
            names[path] = node


def _descriptor(arguments: str) -> tuple[int, str]:
    found = _FD.match(arguments)
    assert found, arguments
    return int(found[1]), decoded(found[2]).decode()


def _opened(call: Call) -> str:
    found = _FD.match(call.result + call.rest)
    return decoded(found[2]).decode() if found else ""


def _strings(arguments: str) -> list[str]:
    found = _STRING.findall(arguments)
    assert not any(cut for _, cut in found), "the trace is cut short"
    return [text for text, _ in found]


def materialise(state: dict[str, bytes | None], old: Path, new: Path) -> None:
    """Make `state` of the folder `old` stand in the empty folder `new`."""
    for path, data in sorted(state.items()):
        target = new / Path(path).relative_to(old)
        if data is None:
            target.mkdir(mode=0o700)
        else:
            target.write_bytes(data)
