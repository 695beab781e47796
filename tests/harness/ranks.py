"""Plays the agent of one node: claims, fences, starts ranks, assigns, spreads notices."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.contract import env, wire
from orchestrator.contract.event import StepMetrics
from orchestrator.contract.jsonio import from_json, to_json
from orchestrator.contract.layout import metrics as metrics_folder
from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.records import ClaimRecord, Commit
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.contract.spec import Assignment, StartPoint
from orchestrator.helper.rendezvous import free_port
from orchestrator.run_directory import attempts, checkpoints
from orchestrator.run_directory.runlog import LogView, RunLog
from orchestrator.run_directory.segments import read_segments
from orchestrator.storage.opening import open_storage

ROOT = Path(__file__).resolve().parents[2]
BLOCKED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
FRESH = StartPoint(kind="fresh")
PATIENCE_S = 240.0
"""For one attempt of real training on a machine with other work."""


@dataclass
class Attempt:
    """Ranks of one attempt while they run and after."""

    number: int
    processes: list[subprocess.Popen[bytes]]
    links: list[socket.socket]
    messages: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    change: threading.Condition = field(default_factory=threading.Condition)
    spread: bool = True

    def send(self, rank: int, kind: str, **fields: Any) -> None:
        with suppress(OSError):
            self.links[rank].sendall(wire.encode(kind, fields))

    def stop(self, reason: str = "test", seconds_left: float = 60.0) -> None:
        """What the agent says to all ranks at a notice."""
        for rank in range(len(self.links)):
            self.send(rank, "stop", reason=reason, seconds_left=seconds_left)

    def signal(self, number: int, *ranks: int) -> None:
        for rank in ranks or range(len(self.processes)):
            if self.processes[rank].poll() is None:
                self.processes[rank].send_signal(number)

    def wait_for(
        self, what: Callable[[int, dict[str, Any]], bool], seconds: float = PATIENCE_S
    ) -> dict[str, Any]:
        """The first message that `what` accepts; AssertionError if none comes."""
        deadline = time.monotonic() + seconds
        with self.change:
            while True:
                for rank, message in self.messages:
                    if what(rank, message):
                        return message
                left = deadline - time.monotonic()
                assert left > 0, f"no such message; {self.messages[-5:]}"
                self.change.wait(left)

    def wait_phase(self, name: str, rank: int = 0) -> None:
        self.wait_for(lambda r, m: r == rank and m["t"] == "phase" and m["phase"] == name)

    def wait_step(self, step: int) -> None:
        self.wait_for(lambda _, m: m["t"] == "progress" and m["step"] >= step)

    def wait_event(self, kind: str, **data: Any) -> dict[str, Any]:
        return self.wait_for(
            lambda _, m: (
                m["t"] == "event"
                and m["kind"] == kind
                and all(m["data"].get(k) == v for k, v in data.items())
            )
        )

    def wait(self, seconds: float = PATIENCE_S) -> list[int]:
        """Exit codes of all ranks."""
        deadline = time.monotonic() + seconds
        try:
            codes = [p.wait(max(0.1, deadline - time.monotonic())) for p in self.processes]
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        for reader in self.readers:
            reader.join(5.0)
        for link in self.links:
            link.close()
        return codes

    def children(self, rank: int) -> list[int]:
        """Process ids of a rank's children."""
        pid = self.processes[rank].pid
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    readers: list[threading.Thread] = field(default_factory=list)

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [m["data"] for _, m in self.messages if m["t"] == "event" and m["kind"] == kind]

    def endings(self) -> list[dict[str, Any]]:
        return [m for _, m in self.messages if m["t"] == "ending"]

    def phases(self, rank: int = 0) -> list[tuple[str, float]]:
        return [
            (m["phase"], m["seconds"]) for r, m in self.messages if r == rank and m["t"] == "phase"
        ]

    def _read(self, rank: int) -> None:
        buffer = wire.LineBuffer()
        link = self.links[rank]
        while True:
            try:
                data = link.recv(1 << 16)
            except OSError:
                data = b""
            if not data:
                return
            for message in buffer.feed(data):
                with self.change:
                    self.messages.append((rank, message))
                    self.change.notify_all()
                if message["t"] == "notice" and self.spread:
                    self.stop(message["signal"])


class Run:
    """One run directory and the attempts on it."""

    def __init__(
        self, folder: Path, job: ResolvedJob, module: str = "trainer.testing.fake"
    ) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.storage = open_storage(str(folder))
        self.log = RunLog(self.storage)
        self.job = job
        self.module = module

    def start(
        self,
        start: StartPoint | None = None,
        *,
        assign: bool = True,
        extra_env: Mapping[str, str] | None = None,
        facts: Mapping[str, Any] | None = None,
        plan: BatchPlan | None = None,
        job: ResolvedJob | None = None,
    ) -> Attempt:
        """Claim and fence the next attempt and start its ranks."""
        number = len(attempts.read_claims(self.storage)) + 1
        claim = ClaimRecord(
            attempt=number,
            submission=1,
            backend_id="test",
            restart_count=number,
            token=f"t{number}",
            plan=self.job.batch,
        )
        assert attempts.create_claim(self.storage, claim) is None
        self.log.append("fence", number)
        job = job or self.job
        attempt = self._spawn(number, dict(extra_env or {}))
        self.assignment = Assignment(
            run_id="test-run",
            attempt=number,
            slot=0,
            master_addr="127.0.0.1",
            master_port=free_port(),
            storage=str(self.folder),
            job=job,
            plan=plan or job.batch,
            start=start or self.latest(),
            grace_s=job.preemption.grace_s,
            facts=dict(facts or {}),
            log_seq=self.log.read().last_seq,
        )
        if assign:
            self.assign(attempt)
        return attempt

    def assign(self, attempt: Attempt) -> None:
        for rank in range(len(attempt.links)):
            attempt.send(rank, "assign", assignment=to_json(self.assignment))

    def latest(self) -> StartPoint:
        """Start from the newest commit, verified; fresh if there is none."""
        live = checkpoints.live_commits(self.log.read())
        if not live:
            return FRESH
        checkpoints.verify(self.storage, live[-1])
        body = live[-1].commit()
        return StartPoint(
            kind="checkpoint",
            step=body.step,
            directory=str(self.folder / body.directory),
            commit_seq=live[-1].seq,
        )

    def view(self) -> LogView:
        return RunLog(self.storage).read()

    def commits(self) -> list[Commit]:
        return [r.commit() for r in self.view().records if r.kind == "commit"]

    def curve(self, rank: int = 0) -> list[StepMetrics]:
        """Metrics of one rank over all attempts; a replayed step counts as last computed."""
        found: dict[int, StepMetrics] = {}
        for claim in attempts.read_claims(self.storage):
            lines = read_segments(self.storage, metrics_folder(claim.attempt, rank))
            for _, line in lines:
                row = from_json(StepMetrics, line)
                found[row.step] = row
        return [found[step] for step in sorted(found)]

    def _spawn(self, number: int, extra: dict[str, str]) -> Attempt:
        size = self.job.resources.world_size
        attempt = Attempt(number, [], [])
        scratch = self.folder.with_name(f"{self.folder.name}-scratch-{number}")
        scratch.mkdir()
        for rank in range(size):
            ours, theirs = socket.socketpair()
            variables = {
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                env.LOCAL_RANK: str(rank),
                env.WORLD_SIZE: str(size),
                env.RUN_ID: "test-run",
                env.AGENT_FD: str(theirs.fileno()),
                env.SCRATCH: str(scratch),
                **extra,
            }
            log = self.folder / f"log-{number}-{rank}.txt"
            attempt.processes.append(self.popen(variables, log, theirs.fileno()))
            theirs.close()
            attempt.links.append(ours)
            reader = threading.Thread(target=attempt._read, args=(rank,), daemon=True)
            attempt.readers.append(reader)
        for reader in attempt.readers:
            reader.start()
        return attempt

    def popen(self, variables: dict[str, str], log: Path, keep: int) -> subprocess.Popen[bytes]:
        """Start one rank, which inherits the descriptor `keep`."""
        with log.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", self.module],
                env=variables,
                cwd=ROOT,
                pass_fds=[keep],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED),
            )
