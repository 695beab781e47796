"""`python -m trainer.testing.fake`: a rank without torch, for tests of everything around it.

Same life, messages, votes, commits and data order as the real trainer. The "model" is one
integer that every sample and every random draw changes, so that a repeated, skipped or
reordered sample, or a wrong random state, changes every later loss.

Set by the environment: QVL_FAKE_STEP_S, QVL_FAKE_LOAD_S, QVL_FAKE_SAVE_S, QVL_FAKE_EVAL_S
(seconds a step, the loading, a save, an evaluation batch takes), QVL_FAKE_SAMPLES,
QVL_FAKE_BALLAST (bytes that each rank adds to a checkpoint), and
QVL_FAKE_{OOM,CRASH,HANG,SAVEFAIL}_AT ("step:rank", the step being computed or saved).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from orchestrator.clock import SystemClock, iso
from orchestrator.contract import layout
from orchestrator.contract.dataset import read_index
from orchestrator.contract.event import StepMetrics
from orchestrator.contract.interrupted import MicroBatch
from orchestrator.contract.jsonio import Json, canonical, digest, loads, pretty
from orchestrator.contract.manifest import CheckpointManifest, Trigger, decode_manifest
from orchestrator.contract.regular import read_regular
from orchestrator.contract.spec import Assignment
from orchestrator.errors import ContractRefused, StorageError, UserError
from orchestrator.storage.hashing import hash_bytes, sha256
from orchestrator.storage.opening import open_storage
from trainer.checkpoint.async_saver import Describe
from trainer.checkpoint.coordinator import CheckpointCoordinator
from trainer.checkpoint.save_result import Digests, Head
from trainer.checkpoint.shards import FileWriter, ShardWriter
from trainer.collectives.group import Group, Solo
from trainer.collectives.tcp import TcpGroup
from trainer.data import sampler
from trainer.loop.continuity import Continuity
from trainer.process.outcome import Ending
from trainer.process.rank import Rank, run
from trainer.tracking.metrics import MetricsLog

_MODULUS = (1 << 61) - 1
_EVAL_BATCHES = 4
_CONNECT_S = 60.0


@dataclass(slots=True)
class FakeState:
    """Weights (alike on every rank) and this rank's random state."""

    weight: int
    draws: random.Random

    def copy(self) -> FakeState:
        other = random.Random()  # noqa: S311
        other.setstate(self.draws.getstate())
        return FakeState(self.weight, other)

    def loss(self, sample: int) -> int:
        """An integer that depends on everything; consumes one random number."""
        noise = self.draws.getrandbits(32)
        return (self.weight * 6364136223846793005 + sample * 1442695040888963407 + noise) % _MODULUS

    def to_json(self) -> Json:
        version, words, gauss = self.draws.getstate()
        return {"weight": self.weight, "draws": [version, list(words), gauss]}

    @classmethod
    def from_json(cls, value: Json) -> FakeState:
        draws = random.Random()  # noqa: S311
        version, words, gauss = value["draws"]
        draws.setstate((version, tuple(words), gauss))
        return cls(value["weight"], draws)


class FakeWork:
    """One attempt of a fake training."""

    def __init__(self) -> None:
        self._closers: list[Callable[[], object]] = []

    def prepare(self, rank: Rank) -> None:
        time.sleep(seconds("LOAD"))
        rank.phase("imports")

    def train(self, rank: Rank, assignment: Assignment) -> Ending:
        training = _FakeTraining(rank, assignment, self._closers)
        training.run()

    def close(self) -> None:
        for closer in self._closers:
            with suppress(Exception):
                closer()


class _FakeTraining:
    def __init__(
        self, rank: Rank, assignment: Assignment, closers: list[Callable[[], object]]
    ) -> None:
        self._rank = rank
        self._number = rank.number
        self._job = assignment
        self._plan = assignment.plan
        self._seed = int(assignment.job.training.get("seed", 42))
        self._samples = _count_samples(assignment)
        self._per_epoch = sampler.steps_per_epoch(self._samples, self._plan.global_batch)
        self._total = self._total_steps()
        self._continuity = Continuity(rank, assignment, tolerance=0.0)
        self._group = self._connect()
        closers.append(self._group.close)
        self._storage = open_storage(assignment.storage, seconds_left=rank.board.seconds_left)
        self._metrics = MetricsLog(
            self._storage, assignment.attempt, self._number, lambda t: rank.warn("metrics", t)
        )
        closers.insert(0, self._metrics.close)
        self._step, self._state, manifest = self._start()
        self._pending_eval = manifest is not None and manifest.pending_eval
        self._coordinator = CheckpointCoordinator(
            rank,
            self._group,
            assignment,
            self,
            self._metrics,
            manifest=manifest,
            saver="trainer.testing.fake_saver",
        )
        closers.insert(0, self._coordinator.close)

    def run(self) -> NoReturn:
        """Train until an exception of outcome.py leaves."""
        self._coordinator.tell(
            "data",
            samples=self._samples,
            steps_per_epoch=self._per_epoch,
            dropped_per_epoch=sampler.dropped_per_epoch(self._samples, self._plan.global_batch),
        )
        if self._job.start.kind == "checkpoint":
            self._coordinator.tell("resumed", step=self._step)
        if self._pending_eval:
            self._evaluate()
        while self._step < self._total:
            self._one_step()
            self._boundary()
        self._coordinator.finish(self._step)

    def _one_step(self) -> None:
        epoch, position = divmod(self._step, self._per_epoch)
        indices = sampler.step_indices(
            self._seed, epoch, position, self._samples, self._plan.global_batch
        )
        block = sampler.rank_block(indices, self._number, self._plan.world_size)
        batches = sampler.micro_batches(block, self._plan.micro)
        if self._coordinator.poll().stop:
            self._coordinator.stop(self._step, micro=0)
        if self._step == self._job.start.step:
            self._rank.phase("training")
        window = self._state.copy()
        losses = []
        for count, batch in enumerate(batches, 1):
            self._misfortune(self._step + 1)
            time.sleep(seconds("STEP") / len(batches))
            losses.append([self._state.loss(sample) for sample in batch])
            self._continuity.check(self._step, count - 1, batch, sum(losses[-1]) / _MODULUS)
            if count < len(batches) and self._coordinator.poll().stop:
                self._state = window
                self._continuity.interrupted(self._step, _micro_batches(batches, losses))
                self._coordinator.stop(self._step, micro=count)
        self._finish_step(block, losses)

    def _finish_step(self, samples: tuple[int, ...], losses: list[list[int]]) -> None:
        rate = self._rate()
        total = sum(self._group.gather(sum(map(sum, losses))))
        loss = total / _MODULUS / self._plan.global_batch
        self._state.weight = (self._state.weight + total + int(rate * 1e9)) % _MODULUS
        self._step += 1
        self._metrics.add(
            StepMetrics(
                step=self._step,
                attempt=self._job.attempt,
                loss=loss,
                loss_hex=loss.hex(),
                learning_rate=rate,
                grad_norm=None,
                time=iso(SystemClock().now()),
                samples=samples,
                micro_losses=tuple((sum(m) / _MODULUS).hex() for m in losses),
            )
        )
        self._rank.beat("step")
        if self._number == 0:
            self._rank.progress(
                self._step, self._total, loss, learning_rate=rate, step_seconds=seconds("STEP")
            )

    def _boundary(self) -> None:
        every = int(self._job.job.training.get("eval_steps", 0))
        asked = every > 0 and self._job.job.data.eval is not None
        evaluate = asked and (self._step % every == 0 or self._step == self._total)
        vote = self._coordinator.poll(self._step)
        if vote.stop:
            self._coordinator.stop(self._step, pending_eval=evaluate)
        if vote.save_due and self._step < self._total:
            self._coordinator.begin_save(self._step, pending_eval=evaluate)
        if evaluate:
            self._evaluate()

    def _evaluate(self) -> None:
        self._rank.phase("evaluating")
        for _ in range(_EVAL_BATCHES):
            if self._coordinator.poll().stop:
                self._coordinator.tell("eval_interrupted", step=self._step)
                self._coordinator.stop(self._step, pending_eval=True)
            self._evaluate_batch()
        metrics = {"eval_loss": self._state.weight / _MODULUS}
        self._coordinator.tell("evaluated", step=self._step, metrics=metrics)
        self._rank.phase("training")

    def _evaluate_batch(self) -> None:
        self._rank.beat("evaluating")
        time.sleep(seconds("EVAL"))

    # --- a collective_save.Source

    def adapter_files(self) -> dict[str, bytes]:
        return {"adapter_model.safetensors": canonical({"weight": self._state.weight})}

    def capture(
        self, writer: FileWriter, step: int, trigger: Trigger, *, pending_eval: bool
    ) -> Describe:
        if isinstance(writer, ShardWriter):
            # Else it is the saver process that takes so long.
            time.sleep(seconds("SAVE"))
        adapter = canonical({"weight": self._state.weight})
        head = Head(
            step=step,
            epoch=step // self._per_epoch,
            trigger=trigger,
            pending_eval=pending_eval,
            samples_seen=step * self._plan.global_batch,
            learning_rate_hex=self._rate().hex(),
            adapter_digest=hash_bytes(adapter),
            adapter_sha256=sha256(adapter),
        )
        if _is_at("SAVEFAIL", step, self._number):
            writer.error = StorageError("No space left on device (asked for)")
        if self._number == 0:
            writer.put("adapter_model.safetensors", adapter)
            writer.put("trainer_state.json", pretty({"global_step": step}))
        if ballast := int(os.environ.get("QVL_FAKE_BALLAST", "0")):
            writer.put(f"ballast_{self._number}.bin", bytes(ballast))
        state = self._state.to_json()
        writer.put(f"rank_{self._number}.json", pretty(state))
        digests = Digests(state=digest(state["weight"]), rng=digest(state["draws"]))
        return lambda: (digests, head)

    # --- the start

    def _start(self) -> tuple[int, FakeState, CheckpointManifest | None]:
        start, fresh = self._job.start, FakeState(self._seed, self._fresh_draws())
        if start.directory is None:
            return 0, fresh, None
        folder = Path(start.directory)
        try:
            if start.kind == "weights":
                adapter = loads(read_regular(folder / "adapter_model.safetensors"))
                return 0, FakeState(adapter["weight"], fresh.draws), None
            manifest = decode_manifest(read_regular(folder / layout.MANIFEST))
            value = loads(read_regular(folder / f"rank_{self._number}.json"))
        except (OSError, ValueError) as fault:
            raise ContractRefused(f"the checkpoint cannot be read: {fault}") from None
        recorded = manifest.rank_digests[self._number], manifest.rng_digests[self._number]
        if (digest(value["weight"]), digest(value["draws"])) != recorded:
            raise ContractRefused(f"state of rank {self._number} differs from what was recorded")
        return manifest.step, FakeState.from_json(value), manifest

    def _fresh_draws(self) -> random.Random:
        return random.Random(self._seed * 1000 + self._number)  # noqa: S311

    def _total_steps(self) -> int:
        training = self._job.job.training
        steps = int(training.get("max_steps", -1))
        epochs = float(training.get("num_train_epochs", 3))
        return steps if steps > 0 else -int(-epochs * self._per_epoch // 1)

    def _rate(self) -> float:
        """Of the next step."""
        full = float(self._job.job.training.get("learning_rate", 5e-5))
        return full * max(0.0, 1 - self._step / self._total)

    def _connect(self) -> Group:
        if self._plan.world_size == 1:
            return Solo()
        address, port = self._job.master_addr, self._job.master_port
        return TcpGroup(self._number, self._plan.world_size, address, port, _CONNECT_S)

    def _misfortune(self, step: int) -> None:
        if _is_at("OOM", step, self._number):
            raise MemoryError("out of memory (asked for)")
        if _is_at("CRASH", step, self._number):
            raise RuntimeError("crash (asked for)")
        while _is_at("HANG", step, self._number):
            time.sleep(60.0)


def _micro_batches(
    batches: Sequence[tuple[int, ...]], losses: Sequence[Sequence[int]]
) -> list[MicroBatch]:
    """Those that have their losses already."""
    return [
        MicroBatch(samples=batch, loss=(sum(own) / _MODULUS).hex())
        for batch, own in zip(batches, losses, strict=False)
    ]


def _count_samples(assignment: Assignment) -> int:
    given = os.environ.get("QVL_FAKE_SAMPLES")
    if given is not None:
        return int(given)
    file = Path(assignment.job.data.train)
    try:
        return len(read_index(read_regular(file)))
    except (OSError, ValueError) as fault:
        raise UserError(f"data.train: {file}: {fault}") from None


def seconds(name: str) -> float:
    return float(os.environ.get(f"QVL_FAKE_{name}_S", "0"))


def _is_at(name: str, step: int, rank: int) -> bool:
    return os.environ.get(f"QVL_FAKE_{name}_AT") == f"{step}:{rank}"


if __name__ == "__main__":
    run(FakeWork())
