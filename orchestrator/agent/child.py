"""Starting the helper and the ranks; the one module of the agent that starts processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from orchestrator.agent.outcome import RankEnd
from orchestrator.contract import env as names
from orchestrator.contract.wire import LineBuffer, Message, encode

NOTICES = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
SEND_LIMIT = 64 << 20
"""Bytes that may wait for a child that does not read; more is dropped with the child."""


@dataclass(slots=True)
class Child:
    """A process of ours and the socket to it."""

    name: str
    process: subprocess.Popen[bytes]
    link: socket.socket
    local_rank: int | None = None
    status: int | None = None
    """Exit status once reaped (negative = signal)."""
    ending: Message | None = None
    """Its own last words."""
    ended_at: float | None = None
    """Monotonic second of its last words or, without any, of its death."""
    incoming: LineBuffer = field(default_factory=LineBuffer)
    outgoing: bytearray = field(default_factory=bytearray)
    closed: bool = False

    @property
    def alive(self) -> bool:
        return self.status is None

    def send(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Queue a message; `pump` sends it as far as the socket takes it."""
        if not self.closed and len(self.outgoing) < SEND_LIMIT:
            self.outgoing += encode(kind, fields)
            self.pump()

    def pump(self) -> None:
        """Send what waits; a child that has gone is not an error here."""
        try:
            while self.outgoing and not self.closed:
                del self.outgoing[: self.link.send(self.outgoing)]
        except BlockingIOError:
            return
        except OSError:
            self.closed = True

    def receive(self) -> list[Message]:
        """Messages that have arrived; marks the link closed at its end."""
        messages: list[Message] = []
        try:
            while not self.closed:
                data = self.link.recv(1 << 16)
                if not data:
                    self.closed = True
                    break
                messages += self.incoming.feed(data)
        except BlockingIOError:
            return messages
        except (OSError, OverflowError):
            self.closed = True
        return messages

    def end(self) -> RankEnd:
        """How it ended, by its own words and its status."""
        words = self.ending or {}
        code = words.get("code")
        return RankEnd(
            status=self.status,
            code=code if isinstance(code, int) else None,
            reason=str(words.get("reason", "")),
            message=str(words.get("message", "")),
            at=self.ended_at or 0.0,
        )

    def kill(self) -> None:
        """SIGKILL the process.

        Not through Popen, which would reap a process that has just died, unseen by `reap`.
        """
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)


@contextmanager
def notices_blocked() -> Iterator[None]:
    """Block the notices, so that a child started inside inherits them blocked over exec."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NOTICES)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start(
    name: str,
    argv: Sequence[str],
    environ: Mapping[str, str],
    *,
    local_rank: int | None = None,
    output: int | None = None,
) -> Child:
    """Start one child with a socket pair; stdout and stderr go to fd `output` if given."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with notices_blocked():
        process = subprocess.Popen(
            list(argv),
            env={**environ, names.AGENT_FD: str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    theirs.close()
    return Child(name, process, ours, local_rank)


def rank_environment(
    base: Mapping[str, str],
    *,
    run_id: str,
    local_rank: int,
    world_size: int,
    gpus: Sequence[int],
    extra: Mapping[str, str],
) -> dict[str, str]:
    """Environment of a rank; RANK, MASTER_* and QVL_ATTEMPT follow with its assignment.

    The interpreter's folder goes first on PATH: DeepSpeed looks for tools of its own
    environment there. Each rank sees all GPUs of the run and uses the one of LOCAL_RANK.
    """
    path = os.pathsep.join(p for p in (os.path.dirname(sys.executable), base.get("PATH")) if p)
    environ = {**base, **extra, "PATH": path}
    environ[names.RUN_ID] = run_id
    environ[names.LOCAL_RANK] = str(local_rank)
    environ[names.WORLD_SIZE] = str(world_size)
    environ.setdefault("OMP_NUM_THREADS", "1")
    environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if gpus:
        environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
    return environ


def reap(children: Iterable[Child]) -> list[Child]:
    """Collect every process that has ended, orphans adopted as PID 1 too."""
    by_pid = {c.process.pid: c for c in children}
    ended: list[Child] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        child = by_pid.get(pid)
        if child is not None:
            child.status = os.waitstatus_to_exitcode(status)
            child.process.returncode = child.status
            ended.append(child)
