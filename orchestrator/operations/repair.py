"""`repair`: what of a run is damaged, and its log made anew from verified checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from orchestrator.clock import iso
from orchestrator.contract import layout
from orchestrator.contract.jsonio import MalformedJson, NewerSchema, loads
from orchestrator.contract.records import Commit, LogRecord, decode_record, encode_record
from orchestrator.controller.lease import Lease
from orchestrator.controller.observe import observe
from orchestrator.controller.run import Run
from orchestrator.domain.rebuild import FoundCommit, rebuild
from orchestrator.errors import CheckpointError, NewerVersion, RecordDamaged, UserError
from orchestrator.operations.actions import is_live
from orchestrator.run_directory import attempts, checkpoints, log_integrity
from orchestrator.run_directory.runlog import RunLog
from orchestrator.storage.hashing import hash_bytes, sha256
from orchestrator.storage.protocol import NotFound, Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What is wrong with a run directory, and the log that would take the place of its own."""

    log_fault: str
    """What the log lacks; empty if it is whole, and then nothing is made anew."""
    damage: str
    """What else keeps the run from being started; empty if nothing does."""
    damaged: tuple[str, ...]
    """Records that are not what was written; readers pass over them."""
    kept: int
    """Records of the log that are right in themselves."""
    found: tuple[FoundCommit, ...]
    """Checkpoints that no record names any more."""
    records: tuple[LogRecord, ...]
    """The new log."""
    copy: str | None = None
    """Folder in the run directory where the old log was put."""


def examine(run: Run) -> Findings:
    """Look at everything, reading each file of checkpoints that the log has lost."""
    storage, seen = run.storage, observe(run)
    claims = attempts.all_claims(storage)
    view = RunLog(storage, run.clock).read()
    fault = log_integrity.fault(storage, view, claims)
    damaged = (*seen.damaged, *_of_attempts(storage))
    other = "" if seen.log_fault else seen.facts.damage
    if not fault:
        kept = len(view.records)
        return Findings(
            log_fault="", damage=other, damaged=damaged, kept=kept, found=(), records=()
        )
    survivors = list(_survivors(storage))
    found = tuple(_commits(run, survivors))
    records = rebuild(
        survivors,
        _least(storage),
        found,
        done=_done(storage),
        length=max((c.log_seq for c in claims.records), default=0),
        time=iso(run.clock.now()),
    )
    return Findings(
        log_fault=fault,
        damage=other,
        damaged=damaged,
        kept=len(survivors),
        found=found,
        records=tuple(records),
    )


def repair(run: Run) -> Findings:
    """Put the log that `examine` proposes in the place of the run's own, of which a copy is kept.

    May be cut off and repeated. Raises UserError while anybody is at work on the run.
    """
    if is_live(observe(run).facts):
        raise UserError(
            f"run {run.run_id} has a job", hint="repair it when the job has ended, or cancel it"
        )
    lease = Lease(run.storage, run.clock)
    if not lease.acquire():
        raise UserError(f"a controller looks after run {run.run_id}", hint="stop it first")
    try:
        findings = examine(run)
        if findings.log_fault:
            findings = replace(findings, copy=_replace_log(run, findings.records))
    finally:
        lease.release()
    return findings


def _replace_log(run: Run, records: Sequence[LogRecord]) -> str:
    storage = run.storage
    copy = _set_aside(storage)
    before = ""
    for record in records:
        data = encode_record(replace(record, prev=before))
        storage.put(layout.log_record(record.seq), data)
        before = sha256(data)
    left = log_integrity.fault(storage, RunLog(storage, run.clock).read())
    if left:
        raise RecordDamaged(f"the log was rebuilt but is not complete: {left}")
    run.event("repaired", {"records": len(records), "old_log": copy}, writer="cli")
    return copy


def _set_aside(storage: Storage) -> str:
    taken = {e.path.split("/")[1] for e in storage.list(layout.DAMAGED, deep=True)}
    number = next(n for n in range(1, 10**6) if f"{n:03d}" not in taken)
    folder = f"{layout.DAMAGED}{number:03d}/"
    for entry in storage.list(layout.LOG):
        storage.put(folder + entry.path, storage.get(entry.path))
    return folder


def _survivors(storage: Storage) -> Iterator[LogRecord]:
    """Records that are right in themselves, whatever stands before them: in the log, or in the
    copy that spares its readers requests.
    """
    found: dict[int, bytes] = {}
    with suppress(NotFound):
        found.update(enumerate(storage.get(layout.LOG_COPY).split(b"\n"), 1))
    copied = dict(found)
    for entry in storage.list(layout.LOG):
        seq = layout.number_of(entry.path)
        if seq is not None and entry.path == layout.log_record(seq):
            found[seq] = storage.get(entry.path)
    for seq in sorted(found):
        record = _right(found[seq], seq) or _right(copied.get(seq, b""), seq)
        if record is not None:
            yield record


def _right(data: bytes, seq: int) -> LogRecord | None:
    try:
        return decode_record(loads(data), seq)
    except NewerSchema as fault:
        raise NewerVersion(f"{layout.log_record(seq)} was {fault}") from None
    except MalformedJson:
        return None


def _least(storage: Storage) -> dict[int, int]:
    """Of each attempt that was claimed, the lowest number that its fence can have had."""
    after = {s.number: s.start.after_seq for s in attempts.read_submissions(storage)}
    known = {
        c.attempt: max(c.log_seq, after.get(c.submission, 0)) + 1
        for c in attempts.read_claims(storage)
    }
    return {n: known.get(n, 1) for n in attempts.attempt_numbers(storage)}


def _commits(run: Run, survivors: Sequence[LogRecord]) -> Iterator[FoundCommit]:
    """Checkpoints with a manifest that no surviving record names, by attempt and step."""
    storage = run.storage
    named = {r.commit().directory for r in survivors if r.kind == "commit"}
    seqs = _numbers_told(storage, survivors)
    for number in attempts.attempt_numbers(storage):
        for entry in storage.list(f"{layout.attempt_dir(number)}checkpoints/", deep=True):
            directory, _, name = entry.path.rpartition("/")
            if name == layout.MANIFEST and directory.count("/") == 3 and directory not in named:
                yield _commit(run, number, directory, seqs.get(directory))


def _commit(run: Run, attempt: int, directory: str, seq: int | None) -> FoundCommit:
    storage, step = run.storage, int(directory.rpartition("-")[2].partition(".")[0])
    data = storage.get(f"{directory}/{layout.MANIFEST}")
    blank = Commit(
        directory=directory,
        step=step,
        manifest_hash=hash_bytes(data),
        trigger="interval",
        size_bytes=0,
        adapter_sha256="",
    )
    try:
        manifest = checkpoints.verify_directory(storage, directory)
    except checkpoints.Unreadable:
        raise
    except CheckpointError as fault:
        return FoundCommit(attempt=attempt, body=blank, seq=seq, fault=fault.message)
    if (manifest.run_id, manifest.attempt, manifest.step) != (run.run_id, attempt, step):
        return FoundCommit(attempt=attempt, body=blank, seq=seq, fault="of another place")
    body = replace(
        blank,
        trigger=manifest.trigger,
        size_bytes=manifest.total_bytes,
        adapter_sha256=manifest.adapter_sha256,
    )
    return FoundCommit(attempt=attempt, body=body, seq=seq)


def _numbers_told(storage: Storage, survivors: Sequence[LogRecord]) -> dict[str, int]:
    """What start points and surviving records call the commit of a directory."""
    told = {
        r.retire().directory: r.retire().commit_seq
        for r in survivors
        if r.kind in ("retire", "bad")
    }
    for number in attempts.attempt_numbers(storage):
        try:
            start = attempts.read_start(storage, number)
        except RecordDamaged:
            continue
        if start is not None and start.commit_seq is not None and start.directory is not None:
            told["/".join(start.directory.split("/")[-4:])] = start.commit_seq
    return told


def _done(storage: Storage) -> LogRecord | None:
    """The end of the run as its copy beside the log tells it."""
    try:
        value = loads(storage.get(layout.DONE))
        return decode_record(value, int(value["seq"]))
    except (NotFound, MalformedJson, KeyError, TypeError, ValueError):
        return None


def _of_attempts(storage: Storage) -> Iterator[str]:
    for number in attempts.attempt_numbers(storage):
        yield from attempts.damaged_of(storage, number)
