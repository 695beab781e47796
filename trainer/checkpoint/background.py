"""Saves beside training: the rank's side of its saver process (`trainer.checkpoint.saver`).

One save at a time. The loop copies the state and goes on; a thread makes files of the copy, in
memory that the saver process reads, which stores and commits them. What became of it is learned
by all ranks at a later boundary (`trainer.checkpoint.coordinator`). No collectives here.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Literal

from orchestrator.contract import wire
from orchestrator.contract.jsonio import Json, from_json, to_json
from orchestrator.contract.spec import Assignment
from trainer.checkpoint import staging
from trainer.checkpoint.shards import Digests, Failed, Head, Places, failed
from trainer.checkpoint.staging import StagedWriter

_NOTICES = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

Phase = Literal["idle", "storing", "written", "failed", "ended"]
"""storing: the saver is at work; written: this part is durable; ended: rank 0 has a reply."""


class Background:
    """This rank's saver process and the one save that it may have in hand."""

    def __init__(
        self,
        assignment: Assignment,
        rank: int,
        places: Places,
        *,
        recorded_base: str | None = None,
        base_facts: Mapping[str, Any] | None = None,
        module: str = "trainer.checkpoint.saver",
    ) -> None:
        self.step: int | None = None
        """Step of the save in hand."""
        self._places = places
        self._rank = rank
        self._module = module
        self._opening = wire.encode(
            "open",
            {
                "rank": rank,
                "assignment": to_json(assignment),
                "recorded_base": recorded_base,
                "base_facts": dict(base_facts or {}),
            },
        )
        self._tiered = True
        """The saver uses the local tier, if there is one; until a save has failed."""
        self.directory = ""
        self._memory = staging.memory()
        self._change = threading.Condition()
        self._sending = threading.Lock()
        self._aside = ThreadPoolExecutor(1, "qvl-stage")
        self._writer: StagedWriter | None = None
        self._preparing: Future[None] | None = None
        self._phase: Phase = "idle"
        self._error: Json = None
        """For `failed`: a shards.Failed."""
        self._reply: Json = None
        self._seconds = 0.0
        self._start()

    # --- a save

    def stage(self) -> StagedWriter:
        """Takes this rank's files; only while nothing is in hand."""
        self._prepared()
        self._writer = StagedWriter(self._memory)
        return self._writer

    def submit(
        self, step: int, writer: StagedWriter, prepare: Callable[[], tuple[Digests, Head]]
    ) -> None:
        """Hand over what was staged, once `prepare` has completed it; returns at once."""
        with self._change:
            self.step, self._phase, self._reply, self._error = step, "storing", None, None
        self.directory = self._places.next(step)
        self._preparing = self._aside.submit(self._hand_over, step, self.directory, writer, prepare)

    def _hand_over(
        self,
        step: int,
        directory: str,
        writer: StagedWriter,
        prepare: Callable[[], tuple[Digests, Head]],
    ) -> None:
        fields: dict[str, Any] = {"directory": directory, "tiered": self._tiered}
        with writer.guard():
            digests, head = prepare()
            fields |= {"digests": to_json(digests), "head": to_json(head)}
            fields["files"] = [asdict(file) for file in writer.files]
        if writer.error is None:
            self._send("save", **fields)
        else:
            self._set(step, "failed", error=failed(writer.error))

    def metrics_are_durable(self, step: int) -> None:
        """The rank's metrics up to `step` are stored; its part may follow."""
        self._send("metrics", step=step)

    # --- what became of it

    @property
    def alive(self) -> bool:
        """The saver process lives."""
        return self._process.poll() is None

    @property
    def busy(self) -> bool:
        """A save is in hand, whose end this rank has not cleared."""
        return self.step is not None

    @property
    def news(self) -> bool:
        """Something that all ranks should learn."""
        return self._phase in ("failed", "ended")

    def report(self) -> Json:
        """What this rank knows of the save in hand."""
        with self._change:
            return {
                "step": self.step,
                "phase": self._phase,
                "error": self._error,
                "reply": self._reply,
                "seconds": self._seconds,
            }

    def wait(self, phases: tuple[Phase, ...], seconds: float) -> None:
        """Until the save has come to one of `phases`, or has failed, or time is up."""
        with self._change:
            self._change.wait_for(lambda: self._phase in (*phases, "failed"), max(0.0, seconds))

    def after_failure(self, *, discard: bool) -> None:
        """Keep away from the local tier from now on; `discard`: free what the save has written
        (one rank does that, once no saver is at work on it any more).
        """
        if discard:
            self._send("discard", directory=self.directory, tiered=self._tiered)
        self._tiered = False

    def clear(self) -> None:
        """All ranks know what became of the save: the next one may begin."""
        with self._change:
            self.step, self._phase, self._reply = None, "idle", None

    def give_up(self) -> None:
        """End the save in hand wherever it stands, by ending the process."""
        self._give_up()
        self._process.kill()
        self._process.wait()
        self.clear()

    def renew(self) -> None:
        """Another saver process after one has died or was given up."""
        self._give_up()
        self._prepared()
        self._process.kill()
        self._process.wait()
        self._link.close()
        self._start()

    def close(self) -> None:
        """End the process."""
        self._give_up()
        self._process.kill()

    # --- the process

    def _give_up(self) -> None:
        """Nobody waits for what is being prepared."""
        if self._writer is not None:
            self._writer.given_up.set()

    def _prepared(self) -> None:
        """Waits until nothing is being prepared."""
        if self._preparing is not None:
            self._preparing.result()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
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
                    self._on_message(message)
        if process is self._process:
            status = process.wait()
            self._set(self.step, "failed", error=_died(status))

    def _on_message(self, message: wire.Message) -> None:
        step = int(message["step"])
        if message["t"] == "outcome":
            self._set(step, "ended", reply=message["reply"], seconds=float(message["seconds"]))
        elif message["error"] is not None:
            self._set(step, "failed", error=from_json(Failed, message["error"]))
        else:
            self._set(step, "written")

    def _set(
        self,
        step: int | None,
        phase: Phase,
        *,
        error: Failed | None = None,
        reply: Json = None,
        seconds: float = 0.0,
    ) -> None:
        with self._change:
            if step != self.step or step is None or self._phase == "ended":
                return
            self._phase, self._error, self._reply = phase, error and to_json(error), reply
            self._seconds = seconds
            self._change.notify_all()


def _died(status: int) -> Failed:
    return Failed(f"the saver process ended with {status}", uncertain=True)
