"""The job of the documentation, overrides, and how it is resolved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.config.load import load_job
from orchestrator.config.values.duration import parse_duration
from orchestrator.contract import jsonio
from orchestrator.contract.jsonio import canonical, from_json, loads, to_json
from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.errors import JobFileError
from tests.unit.config.conftest import JOB, Folder


def config_digest(job: ResolvedJob) -> str:
    """Equal jobs give equal digests."""
    return jsonio.digest(jsonio.to_json(job))


def test_the_documented_job_works_as_it_stands(folder: Folder) -> None:
    job = folder.resolve()
    assert job.name == "digits"
    assert job.backend == "local"
    assert job.model.path == str(folder.path / "model")
    assert job.data.train == str(folder.path / "train.json")
    assert job.checkpoint.uri == str(folder.path / "runs")
    assert (job.checkpoint.every_steps, job.checkpoint.every_minutes) == (10, None)
    assert job.batch == BatchPlan(micro=2, accumulation=3, world_size=2)
    assert job.zero_stage == 2
    assert job.lora["target_modules"] == "llm"
    assert job.quantization["bnb_4bit_quant_type"] == "nf4"
    assert job.training["learning_rate"] == 1e-3
    assert job.training["seed"] == job.training["data_seed"] == 7
    assert job.training["bf16"] is True
    assert job.training["logging_nan_inf_filter"] is False
    assert job.training["logging_steps"] == 1
    assert job.preemption.grace_s == 60


def test_a_resolved_job_survives_json(folder: Folder) -> None:
    job = folder.resolve()
    again = from_json(ResolvedJob, loads(canonical(to_json(job))))
    assert again == job
    assert config_digest(again) == config_digest(job)


def test_equal_jobs_have_equal_digests(folder: Folder) -> None:
    first = config_digest(folder.resolve())
    same = ["training.warmup_steps=2.0", "training.weight_decay=0", "training.seed=7.0"]
    assert config_digest(folder.resolve(*same)) == first
    assert config_digest(folder.resolve("training.seed=8")) != first


def test_only_three_fields_and_the_length_are_needed(folder: Folder) -> None:
    folder.job.write_text(
        "name: a\nmodel: {path: model}\ndata: {train: train.json}\ntraining: {max_steps: 3}\n"
    )
    job = folder.resolve("training.per_device_train_batch_size=4")
    assert job.quantization["load_in_4bit"] is True
    assert job.checkpoint.every_minutes == 30
    assert job.lora["target_modules"] == "llm"
    assert job.resources.world_size == 1
    assert job.training["seed"] == 42


def test_a_block_that_is_all_comments_is_absent(folder: Folder) -> None:
    with folder.job.open("a") as stream:
        stream.write("slurm:\n  # partition: a100\nenv:\nresume:\n")
    assert folder.resolve().slurm == {}


def test_yaml_means_what_it_shows(folder: Folder) -> None:
    folder.replaced("learning_rate: 1.0e-3", "learning_rate: 1e-3")
    with folder.job.open("a") as stream:
        stream.write("env: {A: 04, B: true, C: no, D: 1_0, E: 12:30:00}\n")
    job = folder.resolve("name=007", "training.eval_strategy=no", "training.tf32=no")
    assert job.training["learning_rate"] == 1e-3
    assert job.env == {"A": "04", "B": "true", "C": "no", "D": "1_0", "E": "12:30:00"}
    assert job.name == "007"
    assert job.training["eval_strategy"] == "no"
    assert job.training["tf32"] is False


def test_numeric_revisions_stay_text(folder: Folder) -> None:
    job = folder.resolve("model={path: Qwen/Qwen2.5-VL-7B-Instruct, revision: 12345678}")
    assert (job.model.path, job.model.revision) == ("Qwen/Qwen2.5-VL-7B-Instruct", "12345678")


def test_a_hub_model_needs_a_revision(folder: Folder) -> None:
    said = folder.said("model.path=Qwen/Qwen2.5-VL-7B-Instruct")
    assert "model.path: Qwen/Qwen2.5-VL-7B-Instruct is no folder, and a model of the hub" in said
    assert "add revision: COMMIT" in said


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_both_spellings_of_checkpointing_are_never_reentrant(folder: Folder, name: str) -> None:
    training = folder.resolve(f"training.{name}=true").training
    assert training["activation_checkpointing"] is True
    assert training["activation_checkpointing_kwargs"] == {"use_reentrant": False}
    assert not [key for key in training if key.startswith("gradient_checkpointing")]
    kept = folder.resolve(
        f"training.{name}=true", f"training.{name}_kwargs={{use_reentrant: false, x: 1}}"
    )
    assert kept.training["activation_checkpointing_kwargs"] == {"use_reentrant": False, "x": 1}


def test_precision_follows_the_compute_type(folder: Folder) -> None:
    assert folder.resolve().training["bf16"] is True
    float32 = "quantization.bnb_4bit_compute_dtype=float32"
    assert folder.resolve(float32).training["bf16"] is False
    assert folder.resolve("quantization=null").training["bf16"] is True
    half = ("quantization.bnb_4bit_compute_dtype=float16", "training.fp16=true")
    assert folder.resolve(*half).training["bf16"] is False


@pytest.mark.parametrize(
    ("given", "seconds"),
    [((), 600.0), (("training.hang_s=30",), 30.0), (("training.hang_s=0",), 0.0)],
)
def test_the_watch_for_hangs_is_no_argument_of_transformers(
    folder: Folder, given: tuple[str, ...], seconds: float
) -> None:
    job = folder.resolve(*given)
    assert job.hang_s == seconds
    assert "hang_s" not in job.training


def test_values_left_at_null_are_left_out(folder: Folder) -> None:
    training = folder.resolve("training.eval_steps=null", "training.run_name=null").training
    assert None not in training.values()


def test_addresses_with_a_scheme_stay(folder: Folder) -> None:
    assert folder.resolve("checkpoint.uri=s3://bucket/runs/").checkpoint.uri == "s3://bucket/runs"
    assert folder.resolve("checkpoint.uri=file:///a/b%20c/").checkpoint.uri == "/a/b c"
    assert folder.resolve("checkpoint.uri=~/runs").checkpoint.uri == str(Path.home() / "runs")


def test_paths_start_at_the_file(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.path.parent)
    loaded = load_job(Path(folder.path.name) / "job.yaml")
    assert loaded.base_dir == folder.path
    assert loaded.text == JOB


# --- overrides ------------------------------------------------------------------------------


def test_overrides_win_and_are_typed(folder: Folder) -> None:
    job = folder.resolve(
        "training.max_steps=12",
        "training.max_steps=20",
        "resources.time_limit=4h",
        "preemption={grace_s: 5}",
        "code=[train.json]",
        "slurm.partition=a100",
    )
    assert job.training["max_steps"] == 20
    assert job.resources.time_limit_s == 4 * 3600
    assert job.preemption.grace_s == 5
    assert job.code == (str(folder.path / "train.json"),)
    assert job.slurm == {"partition": "a100"}


def test_a_wrong_override_is_the_place(folder: Folder) -> None:
    said = folder.said("training.max_stesp=3")
    assert said.startswith("--set training.max_stesp training.max_stesp: unknown field")
    assert "did you mean max_steps?" in said


@pytest.mark.parametrize("text", ["max_steps", "=3", "a..b=3", "a b=3", ".a=1"])
def test_what_is_no_override(folder: Folder, text: str) -> None:
    assert "dotted.key=value" in folder.said(text)


def test_an_override_cannot_enter_a_plain_value(folder: Folder) -> None:
    assert "name is not a block of fields" in folder.said("name.x=1")
    assert "the value is not YAML" in folder.said("training={")


def test_an_override_corrects_a_fault_of_the_file(folder: Folder) -> None:
    folder.replaced("grace_s: 60", "grace_s: never")
    assert folder.resolve("preemption.grace_s=30").preemption.grace_s == 30


# --- files that the job names ---------------------------------------------------------------


def test_missing_files_are_refused_together(folder: Folder) -> None:
    (folder.path / "model" / "config.json").unlink()
    (folder.path / "train.json").unlink()
    said = folder.said("data.media_root=media", "code=[mine.py]", "python=./python")
    assert "job.yaml:3 model.path: model holds no config.json" in said
    assert "job.yaml:6 data.train: train.json does not exist" in said
    assert "--set data.media_root data.media_root: media is not a folder" in said
    assert "--set code code[0]: mine.py does not exist" in said
    assert "--set python python: python is not a program" in said
    assert "model.path: nowhere is not a folder" in folder.said("model.path=nowhere")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "is empty"),
        ("{}", "is not a list"),
        ("[]", "holds no samples"),
        ("[1, ", "is not JSON: "),
        ("not json", "is not JSON: "),
        ("[" * 100_000, "is not JSON: "),
        ('[{"id": 1}]', "1 samples do not fill one global batch of 12"),
    ],
)
def test_an_index_must_be_a_list_of_enough_samples(folder: Folder, content: str, what: str) -> None:
    (folder.path / "train.json").write_text(content)
    assert f"job.yaml:6 data.train: train.json {what}".replace("train.json 1", "1") in folder.said()


def test_an_index_may_have_a_sample_a_line(folder: Folder) -> None:
    rows = "\n".join(json.dumps({"id": i}) for i in range(12))
    (folder.path / "train.jsonl").write_text(rows + "\n\n")
    assert folder.resolve("data.train=train.jsonl").data.train.endswith("train.jsonl")
    (folder.path / "train.jsonl").write_text("[1]\n")
    assert "no sample in its first line" in folder.said("data.train=train.jsonl")


def test_a_save_interval_longer_than_the_epochs(folder: Folder) -> None:
    folder.replaced("max_steps: 40", "num_train_epochs: 2")
    said = folder.said()
    assert "the save interval (10 steps) is longer than the run (2 epochs of 2 steps)" in said
    assert folder.resolve("checkpoint.every_steps=4").checkpoint.every_steps == 4


def test_how_long_a_run_may_go_unsaved(folder: Folder) -> None:
    assert folder.resolve().checkpoint.max_unsaved_s is None
    assert folder.resolve("checkpoint.max_unsaved=1h").checkpoint.max_unsaved_s == 3600
    said = folder.said("checkpoint.max_unsaved=10m", "checkpoint.every_minutes=20")
    assert "600 s is shorter than the 20 minutes between two checkpoints" in said
    assert "must be a duration" in folder.said("checkpoint.max_unsaved=soon")


def test_paths_of_a_pod_are_not_looked_at(folder: Folder) -> None:
    pod = ["backend=kubernetes", "kubernetes.image=a", "model.path=/mnt/model"]
    pod.append("data.train=/mnt/train.json")
    assert folder.resolve(*pod).model.path == "/mnt/model"
    assert "nowhere is not a folder" in folder.said(*pod, "model.path=./nowhere")


def test_a_file_that_cannot_be_read(folder: Folder) -> None:
    with pytest.raises(JobFileError, match="no such file"):
        load_job(folder.path / "none.yaml")
    with pytest.raises(JobFileError, match="cannot be read: Is a directory"):
        load_job(folder.path)
    with pytest.raises(JobFileError, match="cannot be read"):
        load_job(Path("a\0b"))


# --- durations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("4h", 14400),
        ("90m", 5400),
        ("1d 12h", 129600),
        ("1-12:00:00", 129600),
        ("04:30:00", 16200),
        ("3600", 3600),
        (60, 60),
        ("45s", 45),
    ],
)
def test_durations(text: str | int, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "4x", "30:00", "h", "0h", "1.5h", 0, -1, True])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_duration(text)
