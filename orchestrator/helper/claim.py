"""Claiming: the attempt, its fence, this node's slot, and where the ranks meet."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from orchestrator.agent.identity import Identity
from orchestrator.clock import Clock, iso
from orchestrator.contract.codes import ExitCode
from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.records import ClaimRecord, SlotRecord, SubmissionRecord
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.contract.spec import TrainSpec
from orchestrator.domain.batch import RESET, PlanInForce, plan_in_force
from orchestrator.domain.starts import MayClaim, MayJoin, Stale, Starter, may_start
from orchestrator.domain.verdict import attempt_verdict
from orchestrator.errors import CheckpointError, NotOwner, RecordDamaged, StorageError
from orchestrator.helper.gather import Gathering
from orchestrator.helper.rendezvous import meeting_point
from orchestrator.run_directory import attempts
from orchestrator.run_directory.checkpoints import live_commits, read_manifest
from orchestrator.run_directory.log_integrity import require_whole
from orchestrator.run_directory.runlog import LogView, RunLog
from orchestrator.storage.protocol import Storage

POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Claimed:
    """What this agent holds."""

    claim: ClaimRecord
    slot: SlotRecord


class Claimer:
    """Carries out the start rule for one agent."""

    def __init__(  # noqa: PLR0913
        self,
        storage: Storage,
        log: RunLog,
        clock: Clock,
        spec: TrainSpec,
        identity: Identity,
        token: str,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._storage = storage
        self._log = log
        self._clock = clock
        self._spec = spec
        self._identity = identity
        self._token = token
        self._gathering = Gathering(storage, clock, spec, identity, token, interrupted)

    def claim(self, job: ResolvedJob) -> Claimed:
        """Claim or join the attempt, once all its nodes are there; fence it, take a slot.

        Raises NotOwner if stale, PeersMissing and NoticeMet while it waits for the others.
        """
        record = self._claim_attempt(job)
        self._fence(record)
        if self._log.read().is_done():
            raise NotOwner("the run was finished while this attempt was claimed")
        slot = self._take_slot(record.attempt)
        self._gathering.leave()
        return Claimed(record, slot)

    def last_words(self, reason: str, words: str) -> None:
        """Why nothing was claimed, for whoever looks at the run."""
        self._gathering.last_words(reason, words)

    def rejoin(self) -> Claimed:
        """What this agent holds already, for a restarted helper: cancelled or done since, it is
        still its own to end. Raises NotOwner if it has been replaced, or held nothing.
        """
        for claim in reversed(attempts.read_claims(self._storage)):
            for slot in attempts.read_slots(self._storage, claim.attempt):
                if slot.token == self._token:
                    self._refuse_replaced(claim)
                    return Claimed(claim, slot)
        raise NotOwner("this agent holds no slot of any attempt")

    def _claim_attempt(self, job: ResolvedJob) -> ClaimRecord:
        while True:
            view = self._log.read()
            submissions = attempts.all_submissions(self._storage)
            claims = attempts.all_claims(self._storage)
            mine = self._mine(submissions.records)
            outcome = may_start(
                self._starter(mine),
                claims.records,
                attempts.newest_number(submissions),
                tombstone=attempts.has_tombstone(self._storage),
                done=view.is_done(),
                damaged=claims.damaged_numbers(),
            )
            if isinstance(outcome, Stale):
                raise NotOwner(outcome.reason)
            if isinstance(outcome, MayJoin):
                return outcome.claim
            if self._spec.nodes > 1 and not self._gathering.complete(outcome.attempt):
                continue
            require_whole(self._storage, view)
            plan = self._plan(job, view, claims.records, mine)
            record = self._new_claim(outcome, plan, view.last_seq)
            with suppress(RecordDamaged):  # who was faster cannot be read: the rule knows of that
                if attempts.create_claim(self._storage, record) is None:
                    return record

    def _mine(self, submissions: Sequence[SubmissionRecord]) -> SubmissionRecord | None:
        return next((s for s in submissions if s.number == self._spec.submission), None)

    def _starter(self, mine: SubmissionRecord | None) -> Starter:
        me = self._identity
        before = mine.after_attempt if mine else 0
        return Starter(self._spec.submission, me.backend_id, me.restart_count, before)

    def _new_claim(self, outcome: MayClaim, plan: PlanInForce, log_seq: int) -> ClaimRecord:
        return ClaimRecord(
            attempt=outcome.attempt,
            submission=self._spec.submission,
            backend_id=self._identity.backend_id,
            restart_count=self._identity.restart_count,
            token=self._token,
            plan=plan.plan,
            plan_reason=plan.reason,
            log_seq=log_seq,
            host=self._identity.host,
            time=iso(self._clock.now()),
        )

    def _plan(
        self,
        job: ResolvedJob,
        view: LogView,
        claims: list[ClaimRecord],
        mine: SubmissionRecord | None,
    ) -> PlanInForce:
        saved, since = self._saved_plan(view)
        resets = [c for c in claims if c.plan_reason == RESET and c.attempt > since]
        if resets:
            saved, since = resets[-1].plan, resets[-1].attempt
        ooms = sum(
            1
            for c in claims
            if c.attempt >= since and self._verdict_code(c.attempt, view) == ExitCode.OUT_OF_MEMORY
        )
        first = not any(c.submission == self._spec.submission for c in claims)
        reset = mine is not None and mine.reset_batch_plan and first
        return plan_in_force(job.batch, saved, ooms, reset=reset)

    def _saved_plan(self, view: LogView) -> tuple[BatchPlan | None, int]:
        for record in reversed(live_commits(view)):
            body = record.commit()
            try:
                manifest = read_manifest(self._storage, body.directory, body.manifest_hash)
            except CheckpointError:
                continue
            return manifest.plan, record.attempt
        return None, 0

    def _verdict_code(self, attempt: int, view: LogView) -> int:
        return attempt_verdict(
            attempt,
            view.records,
            attempts.read_slots(self._storage, attempt),
            attempts.read_stops(self._storage, attempt),
            attempts.read_verdicts(self._storage, attempt),
        ).code

    def _fence(self, claim: ClaimRecord) -> None:
        """The claim's creator fences; who joins waits until the fence stands."""
        if claim.token == self._token:
            self._log.append("fence", claim.attempt, token=f"fence-{claim.token}")
            return
        deadline = self._clock.monotonic() + self._spec.node_lost_s
        while self._log.read().fence() < claim.attempt:
            if self._clock.monotonic() > deadline:
                raise StorageError(f"attempt {claim.attempt} was claimed but never fenced")
            self._clock.sleep(POLL_S)
        self._refuse_replaced(claim)

    def _refuse_replaced(self, claim: ClaimRecord) -> None:
        fence = self._log.read().fence()
        if fence > claim.attempt:
            raise NotOwner(f"attempt {claim.attempt} has been replaced by attempt {fence}")

    def _take_slot(self, attempt: int) -> SlotRecord:
        wanted = self._identity.slot
        numbers = range(self._spec.nodes) if wanted is None else [wanted]
        address, port = meeting_point(self._spec.nodes)
        for number in numbers:
            record = SlotRecord(
                attempt=attempt,
                slot=number,
                token=self._token,
                host=self._identity.host,
                address=address,
                port=port,
                pid=os.getppid(),
                backend_id=self._identity.backend_id,
                time=iso(self._clock.now()),
            )
            with suppress(RecordDamaged):  # held, by whom nobody knows
                holder = attempts.create_slot(self._storage, record)
                if holder is None:
                    return record
                if holder.token == self._token:
                    return holder
        raise NotOwner(f"every slot of attempt {attempt} is taken")

    def master(self, attempt: int) -> SlotRecord:
        """Slot 0, waited for up to `node_lost_s`."""
        deadline = self._clock.monotonic() + self._spec.node_lost_s
        while True:
            slots = attempts.read_slots(self._storage, attempt)
            if slots and slots[0].slot == 0:
                if not slots[0].address:
                    raise StorageError(f"the slot of node 0 of attempt {attempt} is damaged")
                return slots[0]
            if self._clock.monotonic() > deadline:
                raise StorageError(f"node 0 of attempt {attempt} did not appear")
            self._clock.sleep(POLL_S)
