"""The life of a rank, whatever it trains: attach, load, be assigned, work, leave.

Standard library and contract only, so that the handlers stand within milliseconds.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import math
import os
import queue
import signal
import sys
import time
import traceback
from typing import Any, NoReturn, Protocol

from orchestrator.contract import env, wire
from orchestrator.contract.codes import CRASH, ExitCode
from orchestrator.contract.jsonio import MalformedJson, from_json
from orchestrator.contract.spec import Assignment
from orchestrator.errors import InternalError
from trainer.process.link import Link, link_fd
from trainer.process.notice import NoticeBoard, watch_signals
from trainer.process.outcome import Ending, Leave, ending_of

_PR_SET_PDEATHSIG = 1
PEER_PATIENCE_S = 2.0
"""A peer that leaves at a notice breaks our collective before the notice reaches us."""
FLUSH_S = 1.0
WAY_OUT_LIMIT_S = 5.0
"""The kernel ends a rank whose way out hangs: without memory not even a thread starts."""


class Work(Protocol):
    """What a rank does between its start and its end."""

    def prepare(self, rank: Rank) -> None:
        """Load everything that needs no assignment."""

    def train(self, rank: Rank, assignment: Assignment) -> Ending:
        """Do the work; leave by returning or raising (see outcome.ending_of)."""

    def close(self) -> None:
        """Give up what is held, within about 2 s; called after the verdict is known."""


class Rank:
    """This process as its agent sees it."""

    def __init__(self) -> None:
        self.local_rank = int(os.environ.get(env.LOCAL_RANK, "0"))
        self.world_size = int(os.environ.get(env.WORLD_SIZE, "1"))
        self.number = int(os.environ.get(env.RANK, str(self.local_rank)))
        self.board = NoticeBoard()
        self._link = Link(link_fd(os.environ.get(env.AGENT_FD)))
        self._assignments: queue.SimpleQueue[Assignment] = queue.SimpleQueue()
        self._grace_s: float | None = None
        self._phase_start = time.monotonic()
        self._warned: set[str] = set()

    def attach(self) -> None:
        """Die with the agent, listen to it, and let signals in."""
        die_with(self._link.peer_pid())
        self._link.start(self._on_message, lambda: os._exit(CRASH))
        watch_signals(self._on_signal)
        # The agent asks for the stacks of a rank that hangs: in C, or with the interpreter's lock.
        faulthandler.register(signal.SIGQUIT, file=2, all_threads=True)
        self._link.send("hello", local_rank=self.local_rank, pid=os.getpid(), beats=True)

    def wait_assignment(self) -> Assignment:
        """Block until the agent says what to train; puts the layout into the environment."""
        assignment = self._assignments.get()
        self._grace_s = assignment.grace_s
        self.number = assignment.slot * assignment.job.resources.gpus_per_node + self.local_rank
        os.environ[env.RANK] = str(self.number)
        os.environ[env.MASTER_ADDR] = assignment.master_addr
        os.environ[env.MASTER_PORT] = str(assignment.master_port)
        os.environ[env.ATTEMPT] = str(assignment.attempt)
        self.phase("assigned")
        return assignment

    def phase(self, name: str) -> None:
        """Report that stage `name` has been reached, with the seconds since the last one."""
        now = time.monotonic()
        self._link.send("phase", phase=name, seconds=round(now - self._phase_start, 4))
        self._phase_start = now

    def beat(self, doing: str) -> None:
        """Tell the agent's clock that this rank gets on: `step` when one has ended, else with what
        it is busy (`training`, `evaluating`, `saving`).
        """
        self._link.send("beat", doing=doing)

    def event(self, kind: str, **data: Any) -> None:
        """Report an event (contract.event.KINDS)."""
        self._link.send("event", kind=kind, data=data)

    def warn(self, key: str, text: str) -> None:
        """Report a warning, once for each `key`."""
        if key not in self._warned:
            self._warned.add(key)
            self.event("warning", message=text)
            logging.getLogger("qvl").warning(text)

    def progress(self, step: int, total_steps: int, loss: float, **more: float) -> None:
        """Report one finished step."""
        self._link.send(
            "progress",
            step=step,
            total_steps=total_steps,
            loss=loss if math.isfinite(loss) else None,
            **more,
        )

    def say(self, ending: Ending) -> None:
        """Last words: from now on they count, whatever becomes of this process."""
        self.board.enter_loop()
        self._last_words(ending)

    def _last_words(self, ending: Ending) -> None:
        self._link.send(
            "ending", code=int(ending.code), reason=ending.reason, message=ending.message[:4000]
        )
        self._link.flush(FLUSH_S)

    def leave(self, code: int) -> NoReturn:
        """Leave at once: interpreter shutdown may hang or abort."""
        self._link.flush(FLUSH_S)
        _flush_output()
        os._exit(code)

    def _on_signal(self, name: str) -> None:
        self._link.send("notice", signal=name, rank=self.number)
        self.board.post(name, self._grace_s, self._leave_loading)

    def _on_message(self, message: wire.Message) -> None:
        if message["t"] == "stop":
            reason, left = str(message.get("reason", "stop")), message.get("seconds_left")
            self.board.post(reason, None if left is None else float(left), self._leave_loading)
        elif message["t"] == "assign":
            try:
                self._assignments.put(from_json(Assignment, message.get("assignment")))
            except MalformedJson as fault:
                fault_of_ours = InternalError(f"the assignment cannot be read: {fault}")
                ending = ending_of(fault_of_ours, noticed=False)
                self.say(ending)
                self.leave(ending.code)

    def _leave_loading(self) -> None:
        self._last_words(
            Ending(ExitCode.PREEMPTED_NOTHING_NEW, "preempted", "stopped while loading")
        )
        os._exit(ExitCode.PREEMPTED_NOTHING_NEW)


def run(work: Work) -> NoReturn:
    """Run `work` as a rank; ends the process."""
    rank = Rank()
    rank.attach()
    try:
        work.prepare(rank)
        ending = work.train(rank, rank.wait_assignment())
    except BaseException as fault:  # noqa: BLE001 - every way out becomes a verdict
        ending = _judge(rank, fault)
    rank.say(ending)
    signal.setitimer(signal.ITIMER_REAL, WAY_OUT_LIMIT_S)
    try:
        work.close()
    except Exception:  # noqa: BLE001 - the verdict stands
        traceback.print_exc()
    rank.leave(ending.code)


def _judge(rank: Rank, fault: BaseException) -> Ending:
    ending = ending_of(fault, noticed=rank.board.raised)
    if ending.code == CRASH and rank.board.wait(PEER_PATIENCE_S):
        ending = ending_of(fault, noticed=True)
    if not isinstance(fault, Leave):
        traceback.print_exception(fault)
    return ending


def die_with(parent: int) -> None:
    """Have the kernel kill this process with its parent; leave if it is gone already.

    parent: process id that must still be our parent; 0 = not known.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent and os.getppid() != parent:
        os._exit(CRASH)


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # noqa: BLE001, S112 - a full disk must not change the exit code
            continue
