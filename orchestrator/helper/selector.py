"""Choosing what to start from: newest good checkpoint, contract checked, bad ones marked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.contract.manifest import CheckpointManifest
from orchestrator.contract.records import LogRecord
from orchestrator.contract.spec import StartFrom, StartPoint
from orchestrator.domain.resume import Facts, compare, notes, refusal
from orchestrator.domain.selection import candidates
from orchestrator.errors import CheckpointError, ContractRefused, StorageError
from orchestrator.run_directory import attempts, checkpoints
from orchestrator.run_directory.node_copies import NodeCopies, check_adapter
from orchestrator.run_directory.runlog import RunLog
from orchestrator.run_directory.tiers import LocalTier
from orchestrator.storage.posix import PosixStorage
from orchestrator.storage.protocol import Storage

Report = Callable[[str, dict[str, Any]], None]
"""Takes an event kind and its data."""


@dataclass(frozen=True, slots=True)
class Selector:
    """Everything a choice needs; `report` gets the events."""

    storage: Storage
    log: RunLog
    attempt: int
    facts: Facts
    versions: str
    allowed: tuple[str, ...]
    report: Report
    copies: NodeCopies
    tier: LocalTier | None = None

    def choose(self, start: StartFrom) -> StartPoint:
        """The verified start. Raises CheckpointError (all bad) or ContractRefused.

        One whose files give an input/output error is passed over, and not marked: it may be
        read again later. StorageError if nothing else is left.

        Of a remote storage it names the place there: see NodeCopies.localize.
        """
        view = self.log.read()
        if view.unreadable:
            numbers = ", ".join(map(str, view.unreadable))
            self.report("warning", {"message": f"unreadable records of the run's log: {numbers}"})
        options = candidates(checkpoints.live_commits(view), start)
        unreadable: list[str] = []
        for record in options.commits:
            try:
                point = self._try(record)
            except checkpoints.Unreadable as fault:
                unreadable.append(fault.message)
                self.report("warning", {"message": f"passed over for now: {fault.message}"})
                continue
            if point is not None:
                return point
        if unreadable:
            raise StorageError(f"no checkpoint can be read now: {unreadable[0]}")
        if options.explicit is not None and options.explicit.kind != "latest":
            return self._explicit(options.explicit)
        if view.unreadable or any(r.kind == "commit" for r in view.records):
            raise CheckpointError(
                "no checkpoint of this run can be trusted any more; each fault is in `events`",
                hint=f"`{self._resume} --restart-from weights` takes adapter weights only, "
                f"`{self._resume} --restart-from scratch` starts anew",
            )
        return StartPoint(kind="fresh")

    def _try(self, record: LogRecord) -> StartPoint | None:
        directory = record.commit().directory
        found = self._try_here(record)
        if found is not None:
            return found
        if self._elsewhere(record):
            return None
        try:
            manifest = self._verified(record)
        except checkpoints.Unreadable:
            raise
        except CheckpointError:
            return None
        return self._accept(directory, self._place(directory), manifest, record.seq)

    def _verified(self, record: LogRecord) -> CheckpointManifest:
        """Its manifest. Raises CheckpointError; one that is damaged is marked bad before."""
        try:
            return self.copies.verify(record).manifest
        except checkpoints.Unreadable:
            raise
        except CheckpointError as fault:
            body = record.commit()
            told = {"directory": body.directory, "step": body.step, "reason": fault.message}
            self.report("checkpoint_bad", told)
            checkpoints.mark_bad(self.log, self.attempt, record, fault.message)
            raise

    def _try_here(self, record: LogRecord) -> StartPoint | None:
        """From this node's own copy, if it is good; a bad one says nothing of the checkpoint."""
        if self.tier is None or not self.tier.holds(record):
            return None
        directory = record.commit().directory
        try:
            verified = checkpoints.verify(self.tier.storage, record)
        except (CheckpointError, StorageError) as fault:
            message = f"the copy of {directory} on this node is no good: {fault.message}"
            self.report("warning", {"message": message})
            return None
        place = str(self.tier.storage.local_path(directory))
        return self._accept(directory, place, verified.manifest, record.seq)

    def _elsewhere(self, record: LogRecord) -> bool:
        """The checkpoint lies on another node's disk only, or is lost with it."""
        body = record.commit()
        if body.tier != "local":
            return False
        if checkpoints.is_there(self.storage, body.directory):
            return False
        message = f"{body.directory} is on node {body.node} only and cannot be read here"
        self.report("warning", {"message": message})
        return True

    def _place(self, directory: str) -> str:
        """Where ranks find a checkpoint of this run, or a node finds it to copy."""
        local = self.storage.local_path(directory)
        return directory if local is None else str(local)

    def _accept(
        self, directory: str, place: str, manifest: CheckpointManifest, seq: int | None
    ) -> StartPoint:
        self._check_contract(manifest, directory)
        self.report(
            "resuming",
            {
                "step": manifest.step,
                "directory": directory,
                "attempt": manifest.attempt,
                "size_bytes": manifest.total_bytes,
            },
        )
        return StartPoint(kind="checkpoint", step=manifest.step, directory=place, commit_seq=seq)

    def _check_contract(self, manifest: CheckpointManifest, name: str) -> None:
        found = compare(manifest.facts, self.facts, versions=self.versions, allowed=self.allowed)
        text = refusal(found, name)
        if text is not None:
            raise ContractRefused(text)
        for note in notes(found):
            self.report("contract_warning", {"difference": note})

    def _explicit(self, start: StartFrom) -> StartPoint:
        if start.kind == "scratch":
            return StartPoint(kind="fresh")
        if start.kind == "weights":
            return self._weights(start.ref)
        if start.ref is None:
            raise CheckpointError("no checkpoint was named to start from")
        if start.ref.startswith("/"):
            path = Path(start.ref)
            manifest = checkpoints.verify_directory(PosixStorage(path.parent), path.name)
            return self._accept(path.name, start.ref, manifest, None)
        if "://" in start.ref:
            manifest = self.copies.verify_elsewhere(start.ref)
            return self._accept(start.ref, start.ref, manifest, None)
        record = self._named(start.ref)
        manifest = self._verified(record)
        return self._accept(start.ref, self._place(start.ref), manifest, record.seq)

    @property
    def _resume(self) -> str:
        return f"qvl-orchestrate resume {self.copies.run_id}"

    def _named(self, directory: str) -> LogRecord:
        for record in reversed(checkpoints.live_commits(self.log.read())):
            if record.commit().directory == directory:
                return record
        raise CheckpointError(f"{directory} is not a checkpoint of this run any more")

    def _adapters(self) -> list[tuple[int, int, str, str]]:
        """(attempt, step, directory, SHA-256) of every adapter ever stored, newest first."""
        commits = [r for r in self.log.read().records if r.kind == "commit"]
        found = [
            (r.attempt, body.step, body.directory, body.adapter_sha256)
            for r in commits
            if (body := r.commit())
        ]
        found += [
            (s.attempt, s.step, s.directory, s.adapter_sha256)
            for s in attempts.read_salvages(self.storage)
        ]
        return sorted(found, reverse=True)

    def _weights(self, ref: str | None) -> StartPoint:
        """The newest adapter whose bytes are those committed, even if the rest is damaged."""
        if ref is not None and ref.startswith("/"):
            check_adapter(Path(ref))
            return StartPoint(kind="weights", directory=ref)
        if ref is not None and "://" in ref:
            self.copies.fetch_weights(ref, None)
            return StartPoint(kind="weights", directory=ref)
        for _, step, directory, digest in self._adapters():
            if ref and directory != ref:
                continue
            try:
                self.copies.check_weights(directory, digest)
            except (CheckpointError, StorageError):
                continue
            self.report("resuming", {"weights_of": directory, "step": step})
            return StartPoint(kind="weights", directory=self._place(directory))
        raise CheckpointError(
            "no adapter of this run can be read any more",
            hint=f"`{self._resume} --restart-from scratch` starts anew",
        )
