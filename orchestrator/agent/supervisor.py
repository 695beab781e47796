"""The agent's event loop: one thread, one selector, no blocking call."""

from __future__ import annotations

import os
import secrets
import selectors
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.agent import child as children
from orchestrator.agent import devices, scratch
from orchestrator.agent.child import Child
from orchestrator.agent.hang import Hang
from orchestrator.agent.identity import process_id
from orchestrator.agent.memory import oom_kills
from orchestrator.agent.outcome import node_outcome, verdict_fields
from orchestrator.agent.start import end_step, leave_state, leave_word, read_secrets
from orchestrator.agent.watchdog import Watch
from orchestrator.clock import Clock
from orchestrator.contract import env as names
from orchestrator.contract.codes import CRASH, PEERS, PREEMPTIONS, ExitCode, normalize
from orchestrator.contract.spec import TrainSpec
from orchestrator.contract.wire import Message

TICK_S = 0.2
SETTLE_S = 10.0
"""How long the other ranks may go on after one has failed, to leave their own words."""
VERDICT_S = 15.0
"""How long the helper may take to store the verdict when no deadline is near."""
WORD_S = 10.0
"""How long the other nodes leave node 0 to end by itself."""
OTHERS_RESERVE_S = 3.0
"""Of that, what is kept for telling the verdict after having waited for the other nodes'."""
UNKILLABLE_S = 20.0
"""A rank that waits in the kernel outlives even SIGKILL; the attempt ends without it."""
HELPER_RESTARTS = 3


@dataclass(frozen=True, slots=True)
class Notice:
    """The stop request that is being served."""

    reason: str
    seen: float
    deadline: float
    """Monotonic second of the kill."""

    def reserve(self) -> float:
        """Seconds before the deadline at which ranks are killed, to leave time for the verdict."""
        return max(0.5, min(3.0, 0.1 * (self.deadline - self.seen)))


class Supervisor:
    """Runs one start of one node: queue for devices, start, watch, stop, settle."""

    def __init__(
        self, spec: TrainSpec, clock: Clock, spec_file: str, state_file: Path | None
    ) -> None:
        self._spec = spec
        self._clock = clock
        self._spec_file = spec_file
        self._state_file = state_file
        self._selector = selectors.DefaultSelector()
        self._helper: Child | None = None
        self._ranks: list[Child] = []
        self._notice: Notice | None = None
        self._oom_kills = oom_kills()
        self._first_failure: float | None = None
        self._refusal: Message | None = None
        self._assigned = False
        self._first_rank = 0
        self._watch = Watch(spec.hang_s)
        self._hang: Hang | None = None
        self._killed_at: float | None = None
        self._verdict: int | None = None
        self._again: bool | None = None
        """Whether the helper wants this job started again at once."""
        self._helper_starts = 0
        self._log_rests: dict[int, bytes] = {}
        self._token = secrets.token_hex(16)
        self._wakeup = self._install_handlers()

    def run(self) -> int:
        """The whole life of this agent; returns its exit code."""
        code = self._live()
        word = code if self._verdict is None else self._verdict
        again = code in PREEMPTIONS if self._again is None else self._again
        leave_word(os.environ, word, again=again)
        if self._refusal is not None and self._refusal.get("reason") == PEERS:
            if os.environ.get("SLURM_NODEID", "0") != "0":
                # Node 0 may be there, and has its word to leave.
                self._clock.sleep(WORD_S)
            end_step(os.environ)
        self._say_state("ended", code)
        return code

    def _live(self) -> int:
        gpus = self._wait_for_devices()
        if gpus is None:
            return ExitCode.PREEMPTED_NOTHING_NEW
        self._start_helper()
        # Ranks may be killed at any moment: what they leave on this node's disk is the agent's.
        with scratch.folder(self._spec.run_id) as place:
            self._start_ranks(gpus, str(place))
            threading.Thread(
                target=scratch.collect, args=(self._spec.scratch_dir,), daemon=True
            ).start()
            self._say_state("started")
            while any(r.alive for r in self._ranks) and not self._unkillable():
                self._turn(TICK_S)
                self._enforce()
        return self._settle()

    # --- signals

    def _install_handlers(self) -> int:
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (*children.NOTICES, signal.SIGCHLD):
            signal.signal(number, _noted)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, _noted)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, children.NOTICES)
        self._selector.register(read, selectors.EVENT_READ, self._on_wakeup)
        return read

    def _on_wakeup(self) -> None:
        with suppress(BlockingIOError):
            for number in os.read(self._wakeup, 4096):
                if number != signal.SIGCHLD:
                    self._on_notice(signal.Signals(number).name, self._spec.grace_s, None)

    def _on_notice(self, reason: str, seconds_left: float, rank: int | None) -> None:
        """Take a notice; of several the earliest deadline counts, the first reason is kept."""
        now = self._clock.monotonic()
        deadline = now + seconds_left
        known = self._notice
        if known is None or deadline < known.deadline:
            self._notice = Notice(
                known.reason if known else reason, known.seen if known else now, deadline
            )
            self._say(f"notice {reason}, {seconds_left:.0f} s left")
            for rank_child in self._ranks:
                rank_child.send("stop", {"reason": reason, "seconds_left": seconds_left})
        if self._helper is not None:
            self._helper.send(
                "notice", {"reason": reason, "seconds_left": seconds_left, "rank": rank}
            )

    # --- starting

    def _wait_for_devices(self) -> tuple[int, ...] | None:
        if self._spec.devices_dir is None:
            return ()
        gpus = devices.visible_gpus()
        waiting = False
        while self._notice is None:
            taken = devices.acquire(
                Path(self._spec.devices_dir),
                gpus,
                self._spec.gpus_per_node,
                self._spec.max_parallel_runs,
            )
            if taken is not None:
                return taken
            if not waiting:
                waiting = True
                self._say_state("queued")
                self._say("waiting for a free device")
            self._turn(0.5)
        return None

    def _start_helper(self) -> None:
        self._helper_starts += 1
        argv = [self._spec.python, "-m", "orchestrator.helper", self._spec_file]
        if self._assigned:
            argv.append("--rejoin")
        credentials = read_secrets(self._spec.secrets_file)
        environ = {**os.environ, **credentials, names.AGENT_TOKEN: self._token}
        self._helper = children.start("helper", argv, environ)
        self._watch_link(self._helper)

    def _start_ranks(self, gpus: tuple[int, ...], scratch: str) -> None:
        spec = self._spec
        extra = {**spec.env, **read_secrets(spec.secrets_file), names.SCRATCH: scratch}
        for local_rank in range(spec.gpus_per_node):
            environ = children.rank_environment(
                os.environ,
                run_id=spec.run_id,
                local_rank=local_rank,
                world_size=spec.nodes * spec.gpus_per_node,
                gpus=gpus,
                extra=extra,
            )
            read, write = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(read, False)
            rank = children.start(
                f"rank-{local_rank}",
                [spec.python, "-m", spec.trainer_module],
                environ,
                local_rank=local_rank,
                output=write,
            )
            os.close(write)
            self._ranks.append(rank)
            self._watch_link(rank)
            self._selector.register(
                read, selectors.EVENT_READ, lambda r=rank, fd=read: self._on_output(r, fd)
            )

    def _watch_link(self, child: Child) -> None:
        self._selector.register(child.link, selectors.EVENT_READ, lambda: self._on_messages(child))

    # --- one turn of the loop

    def _turn(self, timeout: float) -> None:
        for child in (*self._ranks, *([self._helper] if self._helper else [])):
            child.pump()
        for key, _ in self._selector.select(timeout):
            handler: Callable[[], None] = key.data
            handler()
        for ended in children.reap([*self._ranks, *([self._helper] if self._helper else [])]):
            self._on_end(ended)

    def _on_output(self, rank: Child, fd: int) -> None:
        """Pass a rank's output on: to our own output for the scheduler's log, and to the helper."""
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return
        if not data:
            self._selector.unregister(fd)
            os.close(fd)
        rest = self._log_rests.get(fd, b"") + data
        *lines, rest = rest.split(b"\n") if data else ([*rest.split(b"\n"), b""] if rest else [b""])
        self._log_rests[fd] = rest[-65536:]
        for line in lines:
            text = line.decode(errors="replace").rsplit("\r", 1)[-1]
            if self._hang is not None:
                self._hang.line(self._ranks.index(rank), text)
            self._log(self._ranks.index(rank), text)

    def _log(self, local_rank: int, text: str) -> None:
        self._say(text, prefix=self._ranks[local_rank].name)
        if self._helper is not None:
            self._helper.send("log", {"rank": local_rank, "line": text})

    def _on_messages(self, child: Child) -> None:
        for message in child.receive():
            if child is self._helper:
                self._on_helper(message)
            else:
                self._on_rank(child, message)
        if child.closed:
            with suppress(KeyError, ValueError):
                self._selector.unregister(child.link)

    def _on_rank(self, rank: Child, message: Message) -> None:
        kind = message["t"]
        self._watch.heard(rank.local_rank or 0, message, self._clock.monotonic())
        if kind == "notice":
            self._on_notice(str(message.get("signal")), self._spec.grace_s, rank.local_rank)
        elif kind == "ending":
            rank.ending = message
            rank.ended_at = rank.ended_at or self._clock.monotonic()
            self._note_failure(message.get("code"))
        elif kind in ("event", "phase", "progress") and self._helper is not None:
            self._helper.send(kind, {**message, "rank": rank.local_rank})

    def _on_helper(self, message: Message) -> None:
        kind = message["t"]
        if kind == "assigned":
            self._assigned = True
            slot = int(message["assignment"]["slot"])
            self._first_rank = slot * self._spec.gpus_per_node
            self._watch.begin(self._clock.monotonic())
            for rank in self._ranks:
                rank.send("assign", {"assignment": message["assignment"]})
        elif kind == "refused":
            self._refusal = message
            self._verdict = int(message["verdict"])
            self._again = bool(message.get("again"))
            self._say(str(message.get("message", "refused")))
            self._kill_ranks()
        elif kind == "stop":
            self._on_notice(str(message["reason"]), float(message["seconds_left"]), None)
        elif kind == "peer-ended" and self._first_failure is None:
            # Its ranks will never answer again: ours get the time to say so, and no more.
            self._say(f"node {message['node']} has ended")
            self._first_failure = self._clock.monotonic()
        elif kind == "verdict":
            self._verdict = int(message["code"])
            self._again = bool(message.get("again"))

    def _on_end(self, child: Child) -> None:
        if child is self._helper:
            self._on_helper_end(child)
            return
        child.ended_at = child.ended_at or self._clock.monotonic()
        code = child.ending["code"] if child.ending else child.status
        self._note_failure(code)

    def _note_failure(self, code: object) -> None:
        """From its last words or its death on, a failed rank leaves the others SETTLE_S."""
        failed = isinstance(code, int) and normalize(code) != ExitCode.DONE
        if failed and self._first_failure is None:
            self._first_failure = self._clock.monotonic()

    def _on_helper_end(self, child: Child) -> None:
        """A dead helper is restarted and takes the attempt up again (same key: it joins)."""
        if self._verdict is not None or self._refusal is not None:
            return
        self._say(f"helper ended with {child.status}")
        self._helper = None
        if self._helper_starts <= HELPER_RESTARTS and any(r.alive for r in self._ranks):
            self._start_helper()
            return
        if not self._assigned:
            self._kill_ranks()

    # --- deadlines

    def _enforce(self) -> None:
        now = self._clock.monotonic()
        if self._notice is not None and now >= self._notice.deadline - self._notice.reserve():
            self._kill_ranks()
        if self._first_failure is not None and now >= self._first_failure + SETTLE_S:
            self._kill_ranks()
        if self._notice is None and self._first_failure is None:
            self._look_for_a_hang(now)

    def _look_for_a_hang(self, now: float) -> None:
        words = self._watch.overdue(now)
        if self._hang is None and words:
            self._say(words)
            pids = {n: r.process.pid for n, r in enumerate(self._ranks) if r.alive}
            self._hang = Hang(words, pids, self._first_rank, self._log, now)
        if self._hang is not None and self._hang.turn(now):
            self._kill_ranks()

    def _unkillable(self) -> bool:
        killed = self._killed_at
        return killed is not None and self._clock.monotonic() >= killed + UNKILLABLE_S

    def _kill_ranks(self) -> None:
        self._killed_at = self._killed_at or self._clock.monotonic()
        for rank in self._ranks:
            rank.kill()

    # --- the end

    def _settle(self) -> int:
        """Last words of all ranks, the outcome to the helper, its verdict as our exit code."""
        self._turn(0)
        ends = [rank.end() for rank in self._ranks]
        notice = self._notice
        if self._refusal is not None:
            return self._after_refusal()
        waited = self._clock.monotonic() - notice.seen if notice else None
        reason = notice.reason if notice else None
        outcome = node_outcome(
            ends,
            notice=reason,
            oom_kills=oom_kills() - self._oom_kills,
            hang=self._hang.sentence if self._hang else "",
        )
        fields = verdict_fields(outcome, ends, notice=reason, notice_to_exit_s=waited)
        if outcome.code == CRASH:
            self._say(f"failed: {outcome.message}")
        code = self._store_outcome(fields)
        return outcome.code if code is None else code

    def _after_refusal(self) -> int:
        self._wait_for_helper(VERDICT_S)
        message = self._refusal or {}
        return int(message.get("code", ExitCode.REFUSED))

    def _store_outcome(self, fields: Mapping[str, object]) -> int | None:
        if self._helper is None or not self._helper.alive:
            return None
        limit = VERDICT_S * 2
        if self._notice is not None:
            left = self._notice.deadline - self._clock.monotonic() - 0.2
            limit = min(limit, max(0.5, left))
        elif self._spec.nodes == 1:
            limit = VERDICT_S
        others = max(0.0, limit - OTHERS_RESERVE_S) if self._spec.nodes > 1 else 0.0
        self._helper.send("outcome", {**fields, "seconds": others})
        self._wait_for_helper(limit)
        return self._verdict

    def _wait_for_helper(self, seconds: float) -> None:
        end = self._clock.monotonic() + seconds
        while self._helper is not None and self._helper.alive and self._clock.monotonic() < end:
            self._turn(min(TICK_S, max(0.0, end - self._clock.monotonic())))
        if self._helper is not None:
            self._helper.kill()

    # --- words

    def _say(self, text: str, prefix: str = "agent") -> None:
        # The job's output may lie on a full disk: that costs words, never the attempt.
        with suppress(OSError):
            sys.stdout.write(f"[{prefix}] {text}\n")
            sys.stdout.flush()

    def _say_state(self, state: str, code: int | None = None) -> None:
        """For the local backend: whether this agent still waits, the pids of its ranks, and how
        it ended; lost where its disk is full.
        """
        if self._state_file is None:
            return
        ranks = [process_id(r.process.pid, ended=True) for r in self._ranks]
        leave_state(self._state_file, state, ranks, code)


def _noted(_number: int, _frame: object) -> None:
    """The wakeup fd carries the signal; the handler itself has nothing to do."""
