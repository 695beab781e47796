"""Choosing what to start from: newest good checkpoint, contract checked, bad ones marked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.contract.manifest import CheckpointManifest
from orchestrator.contract.records import LogRecord
from orchestrator.contract.spec import StartFrom, StartPoint
from orchestrator.domain.choose import candidates
from orchestrator.domain.resume import Facts, compare, notes, refusal
from orchestrator.errors import CheckpointError, ContractRefused, StorageError
from orchestrator.storage import checkpoints
from orchestrator.storage.hashing import sha256
from orchestrator.storage.posix import PosixStorage
from orchestrator.storage.protocol import Storage
from orchestrator.storage.runlog import RunLog

Report = Callable[[str, dict[str, Any]], None]
"""Takes an event kind and its data."""

ADAPTER = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Chooser:
    """Everything a choice needs; `report` gets the events."""

    storage: Storage
    log: RunLog
    attempt: int
    facts: Facts
    versions: str
    allowed: tuple[str, ...]
    report: Report

    def choose(self, start: StartFrom) -> StartPoint:
        """The verified start. Raises CheckpointError (all bad) or ContractRefused."""
        view = self.log.read()
        if view.unreadable:
            numbers = ", ".join(map(str, view.unreadable))
            self.report("warning", {"message": f"unreadable records of the run's log: {numbers}"})
        options = candidates(checkpoints.live_commits(view), start)
        for record in options.commits:
            point = self._try(record)
            if point is not None:
                return point
        if options.explicit is not None and options.explicit.kind != "latest":
            return self._explicit(options.explicit)
        if view.unreadable or any(r.kind == "commit" for r in view.records):
            raise CheckpointError(
                "no checkpoint of this run can be trusted any more; each fault is in `events`",
                hint="`resume --restart-from weights` takes adapter weights only, "
                "`--restart-from scratch` starts anew",
            )
        return StartPoint(kind="fresh")

    def _try(self, record: LogRecord) -> StartPoint | None:
        directory = record.commit().directory
        try:
            verified = checkpoints.verify(self.storage, record)
        except CheckpointError as fault:
            self.report(
                "checkpoint_bad",
                {
                    "directory": directory,
                    "step": record.commit().step,
                    "reason": fault.message,
                },
            )
            checkpoints.mark_bad(self.log, self.attempt, record, fault.message)
            return None
        return self._accept(self.storage, directory, verified.manifest, record.seq)

    def _accept(
        self, storage: Storage, directory: str, manifest: CheckpointManifest, seq: int | None
    ) -> StartPoint:
        self._check_contract(manifest, directory)
        local = storage.local_path(directory)
        if local is None:
            raise CheckpointError(f"{directory} is on a storage that ranks cannot read from")
        self.report(
            "resuming",
            {
                "step": manifest.step,
                "directory": directory,
                "attempt": manifest.attempt,
                "size_bytes": manifest.total_bytes,
            },
        )
        return StartPoint(
            kind="checkpoint", step=manifest.step, directory=str(local), commit_seq=seq
        )

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
            storage: Storage = PosixStorage(path.parent)
            return self._accept(
                storage, path.name, checkpoints.verify_directory(storage, path.name), None
            )
        record = self._named(start.ref)
        verified = checkpoints.verify(self.storage, record)
        return self._accept(self.storage, start.ref, verified.manifest, record.seq)

    def _named(self, directory: str) -> LogRecord:
        for record in reversed(checkpoints.live_commits(self.log.read())):
            if record.commit().directory == directory:
                return record
        raise CheckpointError(f"{directory} is not a checkpoint of this run any more")

    def _weights(self, ref: str | None) -> StartPoint:
        """The newest adapter whose bytes are those committed, even if the rest is damaged."""
        if ref is not None and ref.startswith("/"):
            if not (Path(ref) / ADAPTER).is_file():
                raise CheckpointError(f"{ref}/{ADAPTER} is missing")
            return StartPoint(kind="weights", directory=ref)
        for record in reversed(self.log.read().records):
            if record.kind != "commit" or (ref and record.commit().directory != ref):
                continue
            body = record.commit()
            try:
                data = self.storage.get(f"{body.directory}/{ADAPTER}")
            except StorageError:
                continue
            local = self.storage.local_path(body.directory)
            if sha256(data) == body.adapter_sha256 and local is not None:
                self.report("resuming", {"weights_of": body.directory, "step": body.step})
                return StartPoint(kind="weights", directory=str(local))
        raise CheckpointError(
            "no adapter of this run can be read any more",
            hint="`resume --restart-from scratch` starts anew",
        )
