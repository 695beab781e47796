"""Saves beside training: a rank's side of its saver process (`trainer.checkpoint.saver_process`).

One save at a time. The loop copies the state and goes on; a thread makes files of the copy, in
memory that the saver process reads, which stores and commits them. What became of it is learned
by all ranks at a later boundary (`trainer.checkpoint.collective_save`). No collectives here.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Literal

from orchestrator.contract import wire
from orchestrator.contract.jsonio import Json, to_json
from orchestrator.contract.spec import Assignment
from trainer.checkpoint.commit import BaseFacts
from trainer.checkpoint.save_result import Digests, Failed, Head, encode, failed
from trainer.checkpoint.shards import StagedWriter, shared_memory

_NOTICES = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

Phase = Literal["idle", "storing", "written", "failed", "ended"]
"""storing: the saver is at work; written: this shard is durable; ended: rank 0 has a result."""

Describe = Callable[[], tuple[Digests, Head]]
"""What the manifests say of a state, once its files are complete; from any thread."""


class AsyncSaver:
    """This rank's saver process and the one save that it may have in hand."""

    def __init__(
        self,
        assignment: Assignment,
        rank: int,
        base: BaseFacts | None = None,
        module: str = "trainer.checkpoint.saver_process",
    ) -> None:
        self.step: int | None = None
        """Step of the save in hand; the same on every rank."""
        self._module = module
        self._opening = wire.encode(
            "open",
            {
                "rank": rank,
                "assignment": to_json(assignment),
                "base": to_json(base or BaseFacts()),
            },
        )
        self._memory = shared_memory()
        self._change = threading.Condition()
        self._sending = threading.Lock()
        self._aside = ThreadPoolExecutor(1, "qvl-stage")
        self._writer: StagedWriter | None = None
        self._preparing: Future[None] | None = None
        self._phase: Phase = "idle"
        self._result: Json = None
        """Of rank 0 once the save has ended; of any rank where it has failed."""
        self._seconds = 0.0
        self._start()

    # --- a save

    def writer(self) -> StagedWriter:
        """Takes this rank's files; only while nothing is in hand."""
        self._prepared()
        self._writer = StagedWriter(self._memory)
        return self._writer

    def submit(
        self, step: int, directory: str, writer: StagedWriter, describe: Describe, *, tiered: bool
    ) -> None:
        """Hand over what was staged; returns at once.

        tiered: as in Tiers.place
        """
        with self._change:
            self.step, self._phase, self._result = step, "storing", None

        def hand_over() -> None:
            fields: dict[str, Any] = {"directory": directory, "tiered": tiered}
            with writer.guard():
                writer.complete()
                digests, head = describe()
                fields |= {"digests": to_json(digests), "head": to_json(head)}
                fields["files"] = [asdict(file) for file in writer.files]
            if writer.error is None:
                self._send("save", **fields)
            else:
                self._set(step, "failed", encode(failed(writer.error)))

        self._preparing = self._aside.submit(hand_over)

    def metrics_are_durable(self, step: int) -> None:
        """The rank's metrics up to `step` are stored; its shard may follow."""
        self._send("metrics", step=step)

    def discard(self, directory: str, *, tiered: bool) -> None:
        """Free what a failed save has written, once no saver is at work on it any more."""
        self._send("discard", directory=directory, tiered=tiered)

    # --- what became of it

    @property
    def alive(self) -> bool:
        """The saver process lives."""
        return self._process.poll() is None

    @property
    def news(self) -> bool:
        """Something that all ranks should learn."""
        return self._phase in ("failed", "ended")

    def report(self) -> Json:
        """What this rank knows of the save in hand."""
        with self._change:
            return {"phase": self._phase, "result": self._result, "seconds": self._seconds}

    def wait(self, phases: tuple[Phase, ...], seconds: float) -> None:
        """Until the save has come to one of `phases`, or has failed, or time is up."""
        with self._change:
            self._change.wait_for(lambda: self._phase in (*phases, "failed"), max(0.0, seconds))

    def clear(self) -> None:
        """All ranks know what became of the save: the next one may begin."""
        with self._change:
            self.step, self._phase, self._result = None, "idle", None

    def give_up(self) -> None:
        """End the save in hand wherever it stands, by ending the process."""
        self.close()
        self._process.wait()
        self.clear()

    def renew(self) -> None:
        """Another saver process after one has died or was given up."""
        self.close()
        self._prepared()
        self._process.wait()
        self._link.close()
        self._start()

    def close(self) -> None:
        """End the process; nobody waits for what is being prepared."""
        if self._writer is not None:
            self._writer.given_up.set()
        self._process.kill()

    # --- the process

    def _prepared(self) -> None:
        """Waits until nothing is being prepared."""
        if self._preparing is not None:
            self._preparing.result()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        # The child ignores the notice signals only once it runs Python: one that comes before
        # would kill it. Blocked here, it is blocked over fork and exec, and pending at worst.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOTICES)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module, str(theirs.fileno()), str(self._memory)],
                pass_fds=[theirs.fileno(), self._memory],
                stdin=subprocess.DEVNULL,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self._link = ours
        self._link.sendall(self._opening)
        threading.Thread(
            target=self._listen, args=(ours, self._process), name="qvl-saver", daemon=True
        ).start()

    def _send(self, kind: str, **fields: Any) -> None:
        """A saver that has died is noticed by its listener."""
        with self._sending, suppress(OSError):
            self._link.sendall(wire.encode(kind, fields))

    def _listen(self, link: socket.socket, process: subprocess.Popen[bytes]) -> None:
        buffer = wire.LineBuffer()
        with suppress(OSError):
            while data := link.recv(1 << 16):
                for message in buffer.feed(data):
                    self._set(
                        int(message["step"]),
                        message["phase"],
                        message["result"],
                        float(message["seconds"]),
                    )
        if process is self._process:
            died = Failed(f"the saver process ended with {process.wait()}", uncertain=True)
            self._set(self.step, "failed", encode(died))

    def _set(self, step: int | None, phase: Phase, result: Json, seconds: float = 0.0) -> None:
        with self._change:
            if step != self.step or step is None or self._phase == "ended":
                return
            self._phase, self._result, self._seconds = phase, result, seconds
            self._change.notify_all()
