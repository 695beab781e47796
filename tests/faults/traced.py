"""The writer's processes under strace: what they call, and what happens at the n-th call."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CALLS = (
    "openat,open,creat,read,pread64,write,pwrite64,writev,close,fsync,fdatasync,ftruncate,fchmod,"
    "chmod,link,linkat,unlink,unlinkat,rename,renameat,renameat2,mkdir,mkdirat,rmdir,newfstatat,"
    "fstat,stat,lstat,statx,getdents64,lseek,access,faccessat2,readlink,symlink,sendto"
)
"""Those that touch files, and the one by which the writer tells the test something."""
_HEX = re.compile(r"(?:\\x[0-9a-f]{2})+")
_CALL = re.compile(r"^(?:\[pid +\d+\] |\d+ +)?(\w+)\((.*)\) += (-?\d+|\?)(.*)$")


@dataclass(frozen=True)
class Call:
    """The `number`-th call (from 1) of the system call `name` after the writer was told to go."""

    name: str
    number: int
    arguments: str
    """As strace prints them: every string, and the path behind every descriptor, in hex."""
    result: str
    rest: str
    """What follows the result: the path of a new descriptor, or the name of an error."""

    @property
    def text(self) -> str:
        """The arguments to be read by people."""
        return _HEX.sub(lambda found: decoded(found[0]).decode("latin-1"), self.arguments)

    @property
    def changes(self) -> bool:
        """Something on the disk, or what is known to be on it."""
        return self.name in _CHANGING or (self.name == "openat" and "O_CREAT" in self.arguments)

    @property
    def shows(self) -> bool:
        """A process that is killed here leaves another state than one killed a call earlier."""
        return self.changes and self.name not in ("fsync", "fchmod")

    @property
    def allocates(self) -> bool:
        """A full disk or a quota may refuse it."""
        return self.name in _ALLOCATING or (self.name == "openat" and "O_CREAT" in self.arguments)

    def __str__(self) -> str:
        return f"{self.name} #{self.number}"


_ALLOCATING = {"write", "pwrite64", "fsync", "mkdir", "link", "rename", "renameat2", "close"}
_CHANGING = _ALLOCATING | {"unlink", "rmdir", "fchmod", "ftruncate", "symlink"} - {"close"}


@dataclass(frozen=True)
class Outcome:
    """What a writer told and how it ended."""

    said: tuple[str, ...]
    error: str | None
    status: int

    @property
    def killed(self) -> bool:
        return os.WIFSIGNALED(self.status)


class Writer:
    """The process of `tests.faults.writer`."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(60.0)
        self._link = ours
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.writer", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=ROOT,
        )
        theirs.close()

    def run(
        self, work: str, root: Path, inject: Sequence[str] = (), log: Path | None = None
    ) -> Outcome:
        """Let it do its work. inject: strace's, for example `fsync:error=EIO:when=3`."""
        self._link.send(json.dumps({"work": work, "root": str(root)}).encode())
        pid = self._receive()["pid"]
        with _strace(pid, inject, log) if inject or log else _nothing() as tracer:
            self._link.send(b"go")
            outcome = self._outcome()
            tracer.wait()
        return outcome

    def calls(self, work: str, root: Path, log: Path, inject: Sequence[str] = ()) -> list[Call]:
        """Those on files of the run directory, of an undisturbed run."""
        self.run(work, root, inject, log)
        return [c for c in parse(log) if str(root) in c.text]

    def close(self) -> None:
        self._link.close()
        self._process.wait(10)

    def _outcome(self) -> Outcome:
        said, error = [], None
        while True:
            message = self._receive()
            if "said" in message:
                said.append(message["said"])
            elif "error" in message:
                error = message["error"]
            else:
                return Outcome(tuple(said), error, message["ended"])

    def _receive(self) -> Any:
        return json.loads(self._link.recv(1 << 16))


class _nothing:  # noqa: N801 - stands for a process that is not needed
    def __enter__(self) -> _nothing:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def wait(self) -> None:
        return


def _strace(pid: int, inject: Sequence[str], log: Path | None) -> subprocess.Popen[bytes]:
    """Returns once it is attached."""
    argv = ["strace", "-f", "-y", "-p", str(pid), "-o", str(log or "/dev/null")]
    argv += ["-e", f"trace={CALLS}", "-e", "signal=none"]
    if log is not None:
        argv += ["-xx", "-s", "1000000"]
    for rule in inject:
        argv += ["-e", f"inject={rule}"]
    tracer = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert tracer.stderr is not None
    if b"attached" not in (line := tracer.stderr.readline()):
        tracer.kill()
        raise RuntimeError(f"strace: {line.decode().strip()}")
    return tracer


def parse(log: Path) -> list[Call]:
    """All calls of a trace, in order, counted for each name."""
    seen: Counter[str] = Counter()
    calls = []
    for line in log.read_text().splitlines():
        if found := _CALL.match(line):
            seen[found[1]] += 1
            calls.append(Call(found[1], seen[found[1]], found[2], found[3], found[4]))
    return calls


def decoded(hexed: str) -> bytes:
    """What strace shows as \\x41\\x42."""
    return bytes.fromhex(hexed.replace("\\x", ""))


def missing() -> str | None:
    """Why nothing can be traced here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    child = subprocess.Popen(["sleep", "60"])
    try:
        tracer = _strace(child.pid, (), None)
    except RuntimeError as fault:
        return f"processes cannot be traced here ({fault})"
    finally:
        child.kill()
        child.wait()
    with tracer:
        return None
