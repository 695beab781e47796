"""What a run has brought forth: its adapter, and how it came about."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.contract import layout
from orchestrator.contract.event import StepMetrics
from orchestrator.contract.jsonio import MalformedJson, loads, pretty, to_json
from orchestrator.contract.manifest import CheckpointManifest
from orchestrator.contract.records import Commit
from orchestrator.contract.regular import read_regular
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.domain.verdict import PREEMPTED, attempt_verdict
from orchestrator.errors import CheckpointError, UserError
from orchestrator.run_directory import attempts, checkpoints
from orchestrator.run_directory.curve import read_curve
from orchestrator.run_directory.runlog import LogView, RunLog
from orchestrator.run_directory.segments import read_events
from orchestrator.storage.hashing import hash_bytes
from orchestrator.storage.protocol import NotFound, Storage

if TYPE_CHECKING:
    from orchestrator.controller.run import Run

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt of the run."""

    number: int
    reason: str
    """How it ended: done, preempted, killed, ...; empty while it lives."""
    notice: str | None
    committed_step: int | None
    """Newest step that it committed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One checkpoint of a run with the run's history."""

    run_id: str
    job: ResolvedJob
    commit: Commit
    manifest: CheckpointManifest
    finished: bool
    attempts: tuple[Attempt, ...]
    curve: tuple[StepMetrics, ...]
    evaluations: tuple[tuple[int, float], ...]
    """(step, loss) on the held-out data."""
    trainable: Mapping[str, Any]
    """The event that tells of matched modules and parameters."""
    replaced: Mapping[str, int]
    """Samples that were broken and replaced, by index file."""

    @property
    def preemptions(self) -> int:
        return sum(a.reason == PREEMPTED for a in self.attempts)


def gather(run: Run, step: int | None = None) -> Result:
    """The newest checkpoint of a run, or that of `step`.

    Raises UserError if there is none, and CheckpointError if its manifest is damaged.
    """
    storage = run.storage
    view = RunLog(storage).read()
    live = checkpoints.live_commits(view)
    chosen = [r for r in live if step is None or r.commit().step == step]
    if not chosen:
        have = ", ".join(str(r.commit().step) for r in live) or "none yet"
        wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise UserError(f"{run.run_id} has {wanted}; steps that are kept: {have}")
    commit = chosen[-1].commit()
    events = list(_events(storage, ("evaluated", "trainable")))
    return Result(
        run_id=run.run_id,
        job=run.job(attempt=chosen[-1].attempt),
        commit=commit,
        manifest=checkpoints.read_manifest(storage, commit.directory, commit.manifest_hash),
        finished=view.is_done(),
        attempts=tuple(_attempts(storage, view)),
        curve=tuple(row for row in read_curve(storage) if row.step <= commit.step),
        evaluations=tuple(_evaluations(events, commit.step)),
        trainable=next((e["data"] for e in events if e["kind"] == "trainable"), {}),
        replaced=replaced_counts(storage),
    )


def adapter(storage: Storage, result: Result) -> dict[str, bytes]:
    """The adapter's files in PEFT's format, as they were committed.

    A base of the hub is named by its id and revision; PEFT writes the path of a local copy.
    Raises CheckpointError where they are missing or damaged.
    """
    entries = {entry.path: entry for entry in result.manifest.files}
    found = {}
    for name in ADAPTER_FILES:
        path = f"{result.commit.directory}/{name}"
        if name not in entries:
            raise CheckpointError(f"{path}: the checkpoint has no such file")
        try:
            data = storage.get(path)
        except NotFound:
            raise CheckpointError(f"{path} is missing") from None
        if hash_bytes(data) != entries[name].hash:
            raise CheckpointError(
                f"{path} is damaged",
                hint="take another checkpoint by --step: "
                f"`qvl-orchestrate checkpoints verify {result.run_id}` says which are good",
            )
        found[name] = data
    model = result.job.model
    if not Path(model.path).is_absolute():
        config = loads(found[ADAPTER_FILES[0]])
        config.update(base_model_name_or_path=model.path, revision=model.revision)
        found[ADAPTER_FILES[0]] = pretty(config)
    return found


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder that becomes `target` at the end, whole or not at all.

    Raises UserError if `target` exists and is not an empty folder, or cannot be made.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} exists", hint="give a folder that is new or empty")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as fault:
        raise UserError(f"{target} cannot be made: {fault.strerror}") from None
    try:
        yield scratch
        scratch.chmod(0o755)
        for file in scratch.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _attempts(storage: Storage, view: LogView) -> Iterator[Attempt]:
    committed: dict[int, int] = {}
    for record in view.records:
        if record.kind == "commit":
            step = record.commit().step
            committed[record.attempt] = max(committed.get(record.attempt, 0), step)
    claims = attempts.attempt_numbers(storage)
    for number in claims:
        verdicts = attempts.read_verdicts(storage, number)
        stops = attempts.read_stops(storage, number)
        slots = attempts.read_slots(storage, number)
        lives = number == claims[-1] and not verdicts and not view.is_done()
        verdict = attempt_verdict(number, view.records, slots, stops, verdicts)
        yield Attempt(
            number=number,
            reason="" if lives else verdict.reason,
            notice=stops[0].reason if stops else None,
            committed_step=committed.get(number),
        )


def _evaluations(events: list[dict[str, Any]], last: int) -> Iterator[tuple[int, float]]:
    """One for each step: a repeated evaluation gives the same."""
    found = {}
    for event in events:
        loss = event["data"].get("metrics", {}).get("eval_loss")
        if event["kind"] == "evaluated" and loss is not None:
            found[int(event["data"]["step"])] = float(loss)
    yield from sorted((step, loss) for step, loss in found.items() if step <= last)


def _events(storage: Storage, kinds: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Events of the attempts' agents, by attempt."""
    for number in attempts.attempt_numbers(storage):
        yield from read_events(storage, number, kinds)


def replaced_counts(storage: Storage) -> dict[str, int]:
    """Broken samples that were replaced, by index file (train, eval)."""
    names = (entry.path.rpartition("/")[2] for entry in storage.list(layout.REPLACED))
    return dict(Counter(name.partition("-")[0] for name in names))


def base_type(job: ResolvedJob) -> str | None:
    """`model_type` of a base model that lies in a folder of this machine."""
    try:
        config = loads(read_regular(Path(job.model.path) / "config.json"))
    except (OSError, MalformedJson):
        return None
    found = config.get("model_type") if isinstance(config, dict) else None
    return found if isinstance(found, str) else None


@contextmanager
def adapter_request(run: Run, result: Result) -> Iterator[dict[str, Any]]:
    """The `job` and `adapter` of a request; the adapter lies in a folder until the end."""
    with tempfile.TemporaryDirectory(prefix="qvl-adapter-") as folder:
        for name, data in adapter(run.storage, result).items():
            (Path(folder) / name).write_bytes(data)
        yield {"job": to_json(result.job), "adapter": folder}
