"""The helper's life: claim, check, choose, assign; then report, watch and keep; then settle."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping
from typing import Any

from orchestrator.agent.identity import Identity
from orchestrator.clock import Clock, iso
from orchestrator.contract.codes import ExitCode
from orchestrator.contract.jsonio import to_json
from orchestrator.contract.records import VerdictRecord
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.contract.spec import Assignment, StartPoint, TrainSpec
from orchestrator.contract.summary import RunSummary
from orchestrator.contract.wire import Message, encode
from orchestrator.domain.recompute import conditions
from orchestrator.errors import CheckpointError, NotOwner, QvlError, StorageError
from orchestrator.helper import ending, history, inputs
from orchestrator.helper.cause import Cause, Witness
from orchestrator.helper.claim import Claimed, Claimer
from orchestrator.helper.expected_losses import Lookup
from orchestrator.helper.gather import NoticeMet
from orchestrator.helper.inbox import Inbox
from orchestrator.helper.journal import Journal, SummaryWriter
from orchestrator.helper.retention import Retention
from orchestrator.helper.retry import START_S, patiently
from orchestrator.helper.selector import Selector
from orchestrator.helper.startup import AT_WORK, LAST, Startup
from orchestrator.helper.watcher import PeerEnded, Watcher
from orchestrator.run_directory import attempts
from orchestrator.run_directory import resume_facts as fact_sheet
from orchestrator.run_directory.node_copies import NodeCopies
from orchestrator.run_directory.runlog import RunLog
from orchestrator.run_directory.tiers import local_tier
from orchestrator.storage.protocol import HasReserve, Storage

TICK_S = 0.2
FINISH_S = 10.0


class Session:
    """One helper process. The agent at the other end of `link` outlives it."""

    def __init__(
        self,
        storage: Storage,
        clock: Clock,
        spec: TrainSpec,
        identity: Identity,
        token: str,
        link: socket.socket,
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._spec = spec
        self._link = link
        self._log = RunLog(storage, clock)
        self._inbox = Inbox(link)
        self._claimer = Claimer(
            storage, self._log, clock, spec, identity, token, self._inbox.told_to_stop
        )
        self._claimed: Claimed | None = None
        self._journal: Journal | None = None
        self._summary: SummaryWriter | None = None
        self._watcher: Watcher | None = None
        self._retention: Retention | None = None
        self._copies: NodeCopies | None = None
        self._cause = ""
        self._before: RunSummary | None = None
        """summary.json as the attempt before has left it."""
        self._save_fault = ""
        """What the storage said of the newest save, if that failed."""
        self._unstored: VerdictRecord | None = None
        """This node's verdict, if the storage did not take it."""
        self._warned = ""
        self._startup = Startup(clock, self._event, self._started)
        self._witness = Witness(os.environ, spec.key, clock, self._from_witness)

    def run(self, *, rejoin: bool) -> int:
        """Start (or take up again) the attempt and serve until the agent is done."""
        self._inbox.listen()
        try:
            # An attempt that trains already waits for its restarted helper as long as it takes.
            limit_s = math.inf if rejoin else START_S
            job = patiently(self._clock, lambda: self._begin(rejoin=rejoin), limit_s)
            self._startup.done("claim")
            if not rejoin:
                self._assign(job)
            else:
                self._startup.skip()
                self._event("warning", {"message": "the storage helper was restarted"})
            self._make_reserve()
        except NoticeMet:
            self._wait_for_outcome()
            return 0
        except QvlError as fault:
            return self._refuse(fault)
        self._serve()
        return 0

    def _wait_for_outcome(self) -> None:
        """Nothing was claimed, so that there is nothing to settle; the agent ends by itself."""
        while (message := self._inbox.get()) is not None and message["t"] != "outcome":
            pass

    # --- start

    def _begin(self, *, rejoin: bool) -> ResolvedJob:
        """The attempt, claimed and opened. May be repeated: what is claimed already stays."""
        job = inputs.job(self._storage, self._spec.resolved)
        self._claimed = self._claimer.rejoin() if rejoin else self._claimer.claim(job)
        self._open(job)
        return job

    def _open(self, job: ResolvedJob) -> None:
        claimed = self._held()
        attempt, slot = claimed.claim.attempt, claimed.slot.slot
        spec = self._spec
        self._journal = Journal(self._storage, self._clock, attempt, slot, spec.gpus_per_node)
        self._watcher = Watcher(
            self._storage,
            self._clock,
            attempt=attempt,
            slot=slot,
            nodes=spec.nodes,
            grace_s=spec.grace_s,
            node_lost_s=spec.node_lost_s,
        )
        self._copies = NodeCopies(self._storage, spec.run_id, attempt, slot, spec.scratch_dir)
        self._event(
            "claimed",
            {
                "submission": claimed.claim.submission,
                "backend_id": claimed.claim.backend_id,
                "host": claimed.slot.host,
                "micro": claimed.claim.plan.micro,
                "accumulation": claimed.claim.plan.accumulation,
                "plan": claimed.claim.plan_reason,
            },
        )
        if slot == 0:
            self._before = self._before or attempts.read_summary(self._storage)
            first = history.first_summary(
                self._storage, self._log.read(), spec.run_id, attempt, self._before
            )
            self._summary = SummaryWriter(self._storage, self._clock, first, spec.report_s)
            self._summary.write(force=True)
            self._retention = Retention(
                self._storage,
                attempt,
                job.checkpoint.keep_last,
                self._from_retention,
                local_tier(job.checkpoint, spec.run_id),
                job.checkpoint.keep_best,
            )

    def _assign(self, job: ResolvedJob) -> None:
        clock = self._clock
        facts = patiently(clock, lambda: fact_sheet.collect(job, self._storage))
        self._startup.done("contract")
        chosen = patiently(clock, lambda: self._start_point(job, facts))
        point = patiently(clock, lambda: self._own_copies().localize(chosen, self._log))
        self._startup.done("checkpoint")
        assignment = patiently(clock, lambda: self._assignment(job, facts, chosen, point))
        self._send("assigned", {"assignment": to_json(assignment)})

    def _assignment(
        self, job: ResolvedJob, facts: Mapping[str, Any], chosen: StartPoint, point: StartPoint
    ) -> Assignment:
        claimed = self._held()
        binding = conditions(facts, claimed.claim.plan)
        look = Lookup(self._storage, self._log, claimed.claim.attempt, claimed.slot.slot)
        master = self._claimer.master(claimed.claim.attempt)
        return Assignment(
            run_id=self._spec.run_id,
            attempt=claimed.claim.attempt,
            slot=claimed.slot.slot,
            master_addr=master.address,
            master_port=master.port,
            storage=self._storage.uri,
            job=job,
            plan=claimed.claim.plan,
            start=point,
            grace_s=self._spec.grace_s,
            facts=facts,
            log_seq=self._log.read().last_seq,
            save_seconds=self._summary.now.save_seconds if self._summary else None,
            allow_change=self._spec.allow_change,
            conditions=binding,
            expected=look.expected(chosen, binding, self._spec.allow_change, self._event),
        )

    def _start_point(self, job: ResolvedJob, facts: Mapping[str, Any]) -> StartPoint:
        claimed = self._held()
        if claimed.slot.slot != 0:
            seconds = self._spec.node_lost_s * 5
            number = claimed.claim.attempt
            return inputs.start_point(self._storage, self._clock, number, seconds)
        selector = Selector(
            self._storage,
            self._log,
            claimed.claim.attempt,
            facts,
            job.resume_versions,
            self._spec.allow_change,
            self._event,
            self._own_copies(),
            local_tier(job.checkpoint, self._spec.run_id),
        )
        point = selector.choose(inputs.submission(self._storage, self._spec.submission).start)
        attempts.write_start(self._storage, claimed.claim.attempt, point)
        if self._summary is not None:
            lost, exact = history.lost_steps(
                self._storage, claimed.claim.attempt, point.step, self._before
            )
            self._summary.change(
                step=point.step,
                lost_steps=self._summary.now.lost_steps + lost,
                lost_exact=self._summary.now.lost_exact and exact,
                checkpoint_verified=point.kind == "checkpoint",
            )
        if self._retention is not None:
            self._retention.start(point.commit_seq)
        return point

    def _refuse(self, fault: QvlError) -> int:
        """Say no: to the agent, and in the run directory if the attempt is ours."""
        code, reason = ending.refusal_code(fault)
        # A start that finds the run finished is, for the batch script, a job that is done.
        word = ExitCode.DONE if isinstance(fault, NotOwner) and ending.is_done(self._log) else code
        if self._claimed is not None:
            self._event("error", {"message": str(fault), "reason": reason})
            self._store_verdict({"code": code, "reason": reason, "message": str(fault)})
            self._close()
        elif not isinstance(fault, NotOwner):
            self._claimer.last_words(reason, fault.message)
        said = {"code": code, "reason": reason, "message": str(fault), "verdict": int(word)}
        self._send("refused", said)
        return 0

    # --- serve

    def _serve(self) -> None:
        while True:
            message = self._inbox.get(TICK_S)
            if message is None:
                self._close()
                return
            if message["t"] == "outcome":
                self._settle(message)
                return
            self._take(message)
            self._look_around()

    def _take(self, message: Message) -> None:
        kind = message["t"]
        rank = message.get("rank")
        if kind == "log" and self._journal is not None:
            self._journal.log(int(rank or 0), str(message.get("line")))
        elif kind == "event":
            self._take_event(str(message.get("kind")), message.get("data") or {}, rank)
        elif kind == "progress" and self._summary is not None and rank == 0:
            self._summary.progress(message)
        elif kind == "phase":
            self._take_phase(str(message.get("phase")), message, rank)
        elif kind == "notice":
            self._take_notice(message)
        elif kind == "cause":
            self._take_cause(message)

    def _take_event(self, kind: str, data: Mapping[str, Any], rank: int | None) -> None:
        self._event(kind, data, rank)
        if kind == "save_failed":
            self._take_save_fault(str(data.get("message")), storage=bool(data.get("storage")))
        elif kind == "committed":
            self._take_save_fault("", storage=True)
            self._make_reserve()
        if kind == "committed" and self._summary is not None:
            self._summary.change(
                checkpoint_step=data.get("step"),
                checkpoint_time=iso(self._clock.now()),
                checkpoint_verified=False,
                save_seconds=data.get("seconds"),
            )
        if kind == "verified" and self._summary is not None:
            self._summary.change(checkpoint_verified=True)
        if self._retention is not None:
            self._retention.heard(kind, data)

    def _take_save_fault(self, words: str, *, storage: bool) -> None:
        """What `status` says while saves fail; nothing once one has succeeded."""
        self._save_fault = words if storage else ""
        if self._summary is not None:
            since = self._summary.now.save_fault_since or iso(self._clock.now())
            self._summary.change(save_fault=words, save_fault_since=since if words else "")

    def _make_reserve(self) -> None:
        if isinstance(self._storage, HasReserve) and self._held().slot.slot == 0:
            self._storage.make_reserve()

    def _take_phase(self, phase: str, message: Message, rank: int | None) -> None:
        seconds = float(message.get("seconds") or 0.0)
        self._event("stage", {"stage": phase, "seconds": seconds}, rank)
        if rank == 0:
            self._startup.count(phase, seconds)
        if rank == 0 and self._summary is not None and phase != LAST:
            self._summary.change(phase=phase if phase in AT_WORK else "starting")

    def _started(self, stages: dict[str, float]) -> None:
        if self._summary is not None:
            self._summary.change(startup=stages)

    def _take_notice(self, message: Message) -> None:
        reason, left = str(message["reason"]), float(message["seconds_left"])
        self._event("notice", {"reason": reason, "seconds_left": left}, message.get("rank"))
        if self._summary is not None:
            self._summary.change(phase="stopping")
        if self._spec.backend == "slurm" and self._held().slot.slot == 0:
            self._witness.ask()
        try:
            if self._watcher is not None:
                self._watcher.request(reason, left, message.get("rank"))
        except StorageError as fault:
            self._event("warning", {"message": f"stop request not stored: {fault.message}"})

    def _take_cause(self, message: Message) -> None:
        """What the scheduler says of the notice; it may know better when the kill will come."""
        self._cause = str(message["cause"])
        left = message.get("seconds_left")
        self._event("cause", {"cause": self._cause, "seconds_left": left})
        if left is not None and left < self._spec.grace_s:
            self._send("stop", {"reason": self._cause, "seconds_left": max(0.0, left)})

    def _look_around(self) -> None:
        """Flush what is due, and pass on what others want of us."""
        if self._journal is not None:
            self._journal.flush()
        if self._summary is not None:
            self._summary.write()
        try:
            for news in self._watcher.poll() if self._watcher else ():
                if isinstance(news, PeerEnded):
                    self._send("peer-ended", {"node": news.node})
                else:
                    self._send("stop", {"reason": news.reason, "seconds_left": news.seconds_left})
        except (StorageError, CheckpointError) as fault:
            self._warn(f"stop requests unread: {fault.message}")
        else:
            self._warned = ""

    # --- the end

    def _settle(self, message: Message) -> None:
        """Store this node's verdict; the attempt's code goes back to the agent."""
        self._witness.wait()
        for waiting in self._inbox.rest():
            self._take(waiting)
        self._store_verdict(message)
        attempt = self._held().claim.attempt
        if self._held().slot.slot == 0:
            seconds = float(message.get("seconds") or 0.0)
            ending.await_others(self._storage, self._clock, attempt, seconds)
        own = int(message["code"])
        code = ending.attempt_code(self._storage, self._log, attempt, own, self._unstored)
        if self._retention is not None and self._save_fault:
            ending.sweep(self._storage, self._retention, attempt, self._spec.nodes)
        again = ending.starts_again(self._storage, self._log, self._spec, self._unstored, code)
        if self._journal is not None:
            # Whoever sees the job gone may read all that it had to tell.
            self._journal.flush(force=True)
        self._send("verdict", {"code": code, "again": again})
        if self._retention is not None:
            patience = float(message.get("seconds") or FINISH_S)
            waits = code == ExitCode.DONE or self._retention.uploads
            self._retention.finish(patience if waits else 0.0)
            for waiting in self._inbox.rest():  # the last checkpoint, verified meanwhile
                self._take(waiting)
        self._close()

    def _store_verdict(self, fields: Mapping[str, Any]) -> None:
        claimed = self._held()
        record = VerdictRecord(
            attempt=claimed.claim.attempt,
            slot=claimed.slot.slot,
            code=int(fields["code"]),
            reason=str(fields["reason"]),
            message=str(fields.get("message") or ""),
            rank_codes=tuple(fields.get("rank_codes") or ()),
            notice=ending.notice(self._storage, fields.get("notice")),
            cause=self._cause,
            notice_to_exit_s=fields.get("notice_to_exit_s"),
            unsaved=self._save_fault,
            time=iso(self._clock.now()),
        )
        self._event("verdict", ending.told(record))
        # Of one node: elsewhere ranks may still be at work on what would be swept.
        sweep = self._retention.sweep_ended if self._retention and self._spec.nodes == 1 else None
        try:
            ending.write_verdict(self._storage, record, sweep)
        except (StorageError, CheckpointError) as fault:
            self._unstored = record
            self._event("warning", {"message": f"verdict not stored: {fault.message}"})

    def _close(self) -> None:
        if self._summary is not None:
            self._summary.change(phase="ended", eta_s=None)
            self._summary.write(force=True)
        if self._journal is not None:
            self._journal.flush(force=True)
        if self._copies is not None:
            self._copies.remove()

    # --- links

    def _own_copies(self) -> NodeCopies:
        assert self._copies is not None, "nothing was claimed yet"
        return self._copies

    def _held(self) -> Claimed:
        assert self._claimed is not None, "nothing was claimed yet"
        return self._claimed

    def _event(self, kind: str, data: Mapping[str, Any], rank: int | None = None) -> None:
        if self._journal is not None:
            self._journal.event(kind, data, rank)

    def _warn(self, words: str) -> None:
        """What may be true at every look is told once."""
        if words != self._warned:
            self._warned = words
            self._event("warning", {"message": words})

    def _from_retention(self, kind: str, data: dict[str, Any]) -> None:
        """Called by retention's thread: a change of the summary from here would undo another."""
        self._inbox.put({"t": "event", "kind": kind, "data": data})

    def _from_witness(self, cause: Cause) -> None:
        """Called by the witness's thread."""
        self._inbox.put({"t": "cause", "cause": cause.kind, "seconds_left": cause.seconds_left})

    def _send(self, kind: str, fields: Mapping[str, Any]) -> None:
        try:
            self._link.sendall(encode(kind, fields))
        except OSError:
            self._inbox.put(None)
