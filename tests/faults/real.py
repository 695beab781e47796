"""Run directories with checkpoints whose files are real ones."""

from __future__ import annotations

from pathlib import Path

from orchestrator.contract import layout
from orchestrator.run_directory.runlog import RunLog
from orchestrator.storage.hashing import sha256
from orchestrator.storage.posix import PosixStorage
from tests.faults import scene
from trainer.checkpoint.save_result import Committed, Digests, Head
from trainer.checkpoint.shards import Place, ShardWriter

STEPS = (10, 20)


def of_tensors(root: Path) -> None:
    """Two checkpoints of two ranks with files as torch and safetensors write them."""
    import torch
    from safetensors.torch import save_file

    storage = PosixStorage(root)
    RunLog(storage).append("fence", 1)
    for step in STEPS:
        torch.manual_seed(step)
        files = root.parent / f"files-{step}"
        (files / f"global_step{step}").mkdir(parents=True)
        tensors = {f"lora_{n}": torch.randn(8, 64) for n in range(4)}
        save_file(tensors, files / "adapter_model.safetensors")
        (files / "latest").write_text(f"global_step{step}")
        (files / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
        for rank in range(2):
            state = {n: {"exp_avg": torch.randn(8, 32), "step": step} for n in tensors}
            torch.save(state, files / f"global_step{step}/zero_{rank}_optim_states.pt")
            torch.save({"cpu": torch.get_rng_state()}, files / f"rng_state_{rank}.pth")
        _commit(storage, root, files, step)


def _commit(storage: PosixStorage, root: Path, files: Path, step: int) -> None:
    directory, shards = layout.checkpoint_dir(1, step), []
    names = sorted(p.relative_to(files).as_posix() for p in files.rglob("*") if p.is_file())
    for rank in range(2):
        writer = ShardWriter(Place(storage), directory)
        for name in names[rank::2]:
            writer.put(name, (files / name).read_bytes())
        shards.append(writer.finish(rank, Digests(state="s", rng="r")))
        assert writer.error is None
    head = Head(
        step=step,
        epoch=0,
        samples_seen=step,
        trigger="interval",
        learning_rate_hex="0x1p-10",
        pending_eval=False,
        adapter_digest="d",
        adapter_sha256=sha256((files / "adapter_model.safetensors").read_bytes()),
    )
    outcome = scene.committer(root, 1).commit(directory, shards, head, Place(storage))
    assert isinstance(outcome, Committed)


def of_training(folder: Path) -> Path:
    """The run directory of a real Q-LoRA training of a tiny model on two ranks."""
    from tests.harness import jobs
    from tests.harness.training import TrainingBench

    (folder / "bench").mkdir()
    jobs.write_data(folder / "data")
    jobs.make_model(folder / "data")
    bench = TrainingBench(folder / "bench", data=folder / "data")
    try:
        run = bench.probed(bench.job(), [])
        assert run.finish().state == "SUCCEEDED"
        said = [e["data"]["message"] for e in run.events("warning")]
        assert not [text for text in said if "trainable state needs" in text], said
        return Path(run.storage.uri)
    finally:
        bench.close()
