"""Each refusal, with the text that a user sees: place, path, what is wrong, what to do."""

from __future__ import annotations

import pytest

from tests.unit.config.conftest import Folder

REFUSALS = [
    # --set, what is said
    ("name=Bad_Name", "'Bad_Name' is not a name: 1 to 40 of a-z, 0-9 and -", "bad-name"),
    ("name=" + "a" * 41, "is not a name", "a" * 40),
    ("backend=slrum", "must be local, slurm or kubernetes", "did you mean slurm?"),
    ("trainin={}", "unknown field", "did you mean training?"),
    ("learning_rate=1", "unknown field", "it belongs under training"),
    ("every_steps=5", "unknown field", "it belongs under checkpoint"),
    ("model.revison=x", "unknown field", "did you mean revision?"),
    ("training.learning_rte=1", "unknown field", "did you mean learning_rate?"),
    ("training.lora_alpha=1", "unknown field", "it belongs under lora"),
    ("training.zzz=1", "unknown field", "TrainingArguments (transformers "),
    ("lora.lora_alhpa=1", "unknown field", "did you mean lora_alpha?"),
    ("lora.rank=8", "unknown field", "use r"),
    ("quantization.load_in_4bits=true", "unknown field", "did you mean load_in_4bit?"),
    ("deepspeed.zero_optimization={}", "unknown field", "put it in a JSON file"),
    ("training.learning_rate='1e-3'", "must be a number, not the text '1e-3'", "quotation"),
    ("training.learning_rate=-1", "must be more than 0, not -1", ""),
    ("training.max_steps=0", "must be at least 1, not 0", ""),
    ("training.max_steps=1.5", "must be a whole number, not 1.5", ""),
    ("training.max_steps=true", "must be a whole number, not true", ""),
    ("training.gradient_accumulation_steps=0", "must be at least 1, not 0", ""),
    ("training.weight_decay=-0.1", "must be at least 0, not -0.1", ""),
    ("training.adam_beta1=1.0", "must be less than 1, not 1.0", ""),
    ("training.lr_scheduler_type=cosin", "'cosin' is not a choice", "did you mean cosine?"),
    ("training.optim=zz", "'zz' is not a choice", "one of adamw_torch, "),
    ("training.optim=null", "must be text, not null", "remove the line"),
    ("training.bf16=3", "must be true or false, not 3", ""),
    ("training.optim=3", "must be text, not 3", "put it in quotation marks"),
    ("training.parallelism_config={}", "cannot be set here", "use deepspeed.stage"),
    ("lora.eva_config={}", "takes a Python object", "remove it"),
    ("training.max_steps=1e20", "must be at most 1e+09, not 1", ""),
    ("training.learning_rate=100", "must be at most 10, not 100", ""),
    ("training.report_to=[1]", "training.report_to[0]: must be text, not 1", "quotation marks"),
    ("training.lr_scheduler_kwargs=3", "must be text or a mapping, not 3", ""),
    ("training.lr_scheduler_type=3", "must be text, not 3", "put it in quotation marks"),
    ("lora.init_lora_weights=gausian", "must be true or false, gaussian", "did you mean gaussian?"),
    ("quantization.load_in_4bit='true'", "must be true or false", "remove the quotation marks"),
    ("lora.r=1000000", "must be at most 65536, not 1000000", ""),
    ("lora.r=0", "must be at least 1, not 0", ""),
    ("lora.lora_dropout=1.0", "must be less than 1, not 1.0", ""),
    ("lora.bias=zz", "must be none, all or lora_only, not the text 'zz'", ""),
    ("lora.init_lora_weights=pissa_niter_4", "changes the base weights", "use true, gaussian"),
    ("lora.target_modules=llm+visoin", "neither a preset nor", "did you mean llm+vision?"),
    ("lora.target_modules=q_proj", "neither a preset nor", "or a list: [q_proj]"),
    ("lora.target_modules='.*('", "is not a regular expression", ""),
    ("lora.task_type=CAUSAL_LM", "cannot be set here", "remove it"),
    ("quantization.bnb_4bit_quant_type=nf5", "must be fp4 or nf4, not the text 'nf5'", ""),
    ("quantization.load_in_8bit=true", "4-bit and 8-bit exclude each other", "keep one"),
    ("quantization.load_in_4bit=false", "has no effect without load_in_4bit", "remove it"),
    ("deepspeed.stage=3", "ZeRO-3 cannot partition quantized weights", "use stage 2"),
    ("deepspeed.stage=4", "must be 1, 2 or 3, not 4", ""),
    ("training.optim=paged_adamw_8bit", "cannot be used: its pages", "use adamw_8bit"),
    ("training.optim=paged_adamw_32bit", "cannot be used: its pages", "use adamw_torch"),
    ("training.optim=lomo", "it steps inside the backward pass", "use adamw_torch"),
    ("training.optim=galore_adamw", "needs a package that is not installed", "use adamw_torch"),
    ("training.optim=stable_adamw", "needs a package that is not installed", "use adamw_torch"),
    ("training.lr_scheduler_type=cosine_with_min_lr", "needs min_lr or min_lr_rate", "min_lr_rate"),
    ("training.lr_scheduler_type=warmup_stable_decay", "needs num_decay_steps", "num_decay_steps"),
    ("training.lr_scheduler_type=greedy", "needs evaluation", "set data.eval"),
    ("training.lr_scheduler_kwargs={powr: 2}", "schedule cosine has no such setting", "num_cycles"),
    ("training.lr_scheduler_kwargs='[1]'", "must be a mapping", ""),
    ("training.metric_for_best_model=accuracy", "'accuracy' is not computed", "data.eval"),
    ("training.hang_s=-1", "must be at least 0, not -1", ""),
    ("training.hang_s=10m", "must be a number, not the text '10m'", ""),
    ("checkpoint.every_steps=41", "the save interval (41 steps) is longer than the run (40)", "40"),
    ("training.warmup_steps=41", "41 is more than the whole run (40 steps)", ""),
    ("training.num_train_epochs=2", "max_steps is given too, and would win", "remove one"),
    ("training.max_steps=-1", "the length of the run is missing", "add max_steps or"),
    ("training.lr_scheduler_type=constant", "has no warm-up", "constant_with_warmup"),
    ("training.warmup_ratio=0.1", "unknown field", "use warmup_steps: a value below 1"),
    ("training.evaluation_strategy=no", "unknown field", "use eval_strategy"),
    ("training.activation_checkpointing_kwargs={use_reentrant: true}", "reentrant", "remove it"),
    ("training.gradient_checkpointing_kwargs={use_reentrant: 1}", "reentrant", "remove it"),
    ("training.gradient_checkpointing_kwargs=x", "must be a mapping, not text", ""),
    ("training.fp16=true", "contradicts training.fp16", "use float16"),
    ("training.dataloader_prefetch_factor=2", "needs dataloader_num_workers", ""),
    ("training.eval_strategy=steps", "there is no evaluation data", "set data.eval"),
    ("training.eval_steps=5", "there is no evaluation data", "set data.eval"),
    ("checkpoint.keep_best=1", "nothing is evaluated, so none is the best", "set data.eval"),
    ("checkpoint.keep_best=-1", "must be at least 0, not -1", ""),
    ("data.eval=./eval.json", "is never used", "set training.eval_strategy"),
    ("training.lr_scheduler_type=reduce_lr_on_plateau", "needs evaluation", "set data.eval"),
    ("training.report_to=[tensorboard, mlflow]", "'mlflow' is not written", "wandb or none"),
    ("training.logging_nan_inf_filter=true", "cannot be turned on", "NaN loss is seen"),
    ("resources.nodes=2", "the local backend has one node, not 2", "backend: slurm"),
    ("resources.gpus_per_node=0", "must be at least 1, not 0", ""),
    ("resources.gpus_per_node='2'", "must be a whole number, not the text '2'", "quotation"),
    ("resources.memory_gb=-1", "must be more than 0, not -1", ""),
    ("resources.time_limit=30:00", "must be a duration", ""),
    ("checkpoint.keep_last=0", "must be at least 1, not 0", ""),
    ("checkpoint.uri=ftp://x/y", "ftp:// is not supported", "s3://"),
    ("checkpoint.uri=s3://", "the bucket is missing", "s3://bucket/prefix"),
    ("checkpoint.uri=file://host/x", "names no folder of this machine", "file:///"),
    ("preemption.grace_s=0", "must be more than 0, not 0", ""),
    ("resume.versions=string", "must be strict or warn", ""),
    ("env.MY VAR=1", "is not an override", "dotted.key=value"),
    ("env.1X=1", "is not a name of a variable", "use letters"),
    ("env.RANK=1", "is set by the agent or the scheduler", "remove it"),
    ("env.QVL_RUN_ID=1", "is set by the agent or the scheduler", "remove it"),
    ("env.X=[1]", "must be text, not a list", ""),
    ("secrets=[1x]", "is not a name of a variable", "give the name only"),
    ("secrets=[HF_TOKEN, HF_TOKEN]", "HF_TOKEN is given twice", "remove"),
    ("model.path=", "must be text, not null", ""),
    ("model.path=''", "must not be empty", ""),
    ("model.revision=abc", "a folder has no revision", "remove it"),
    ("max_length=0", "must be at least 1, not 0", ""),
    ("slurm.partitoin=a", "unknown field", "did you mean partition?"),
    ("slurm.template=/t", "unknown field", "use --template of `submit`"),
    ("kubernetes.imag=x", "kubernetes.imag: unknown field", "did you mean image?"),
    ("kubernetes.image='a b'", "'a b' is no name of an image", ""),
    ("kubernetes.image_pull_policy=always", "must be Always, IfNotPresent", "mean Always?"),
    ("kubernetes.env.QVL_SPEC=x", "kubernetes.env.QVL_SPEC: cannot be set here", ""),
    ("kubernetes.env={HF_TOKEN: x}", "looks like a secret", "secrets: [HF_TOKEN]"),
    ("kubernetes.volumes=[{pth: /x}]", "kubernetes.volumes[0].pth: unknown", "did you mean path?"),
    ("kubernetes.controller=daemon", "must be process, job, deployment or none", ""),
    ("backend=kubernetes", "kubernetes.image: is missing", "name an image"),
]


@pytest.mark.parametrize(("override", "what", "hint"), REFUSALS)
def test_a_setting_is_refused_with_what_to_do(
    folder: Folder, override: str, what: str, hint: str
) -> None:
    said = folder.said(override)
    assert what in said
    assert hint in said
    assert "Traceback" not in said
    assert "pydantic" not in said


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("output_dir", "checkpoint.uri"),
        ("overwrite_output_dir", "checkpoint.uri"),
        ("save_strategy", "checkpoint.every_steps"),
        ("save_steps", "checkpoint.every_steps"),
        ("save_total_limit", "checkpoint.keep_last"),
        ("save_on_each_node", "checkpoint.uri"),
        ("resume_from_checkpoint", "`resume` with --from"),
        ("push_to_hub", "publish the adapter"),
        ("hub_token", "publish the adapter"),
        ("group_by_length", "the order of the samples is ours"),
        ("train_sampling_strategy", "the order of the samples is ours"),
        ("ignore_data_skip", "the order of the samples is ours"),
        ("dataloader_drop_last", "always dropped"),
        ("local_rank", "resources.gpus_per_node"),
        ("ddp_backend", "resources.gpus_per_node"),
        ("accelerator_config", "resources.gpus_per_node"),
        ("fsdp", "deepspeed.stage"),
        ("deepspeed", "{stage: 2}"),
        ("enable_jit_checkpoint", "preemption.grace_s"),
        ("auto_find_batch_size", "batch plan"),
        ("load_best_model_at_end", "checkpoint.keep_best"),
        ("remove_unused_columns", "remove it"),
        ("use_cpu", "remove it"),
    ],
)
def test_fields_that_are_ours_name_the_word_to_use(folder: Folder, name: str, use: str) -> None:
    said = folder.said(f"training.{name}=true")
    assert f"--set training.{name} training.{name}: cannot be set here" in said
    assert use in said


def test_a_fault_names_file_line_and_path(folder: Folder) -> None:
    folder.replaced("seed: 7", "sead: 7")
    assert folder.said() == "job.yaml:7 training.sead: unknown field\n  hint: did you mean seed?"


def test_every_fault_is_reported_at_once_in_the_order_of_the_file(folder: Folder) -> None:
    folder.replaced("name: digits", "name: Digits")
    folder.replaced("lora: {r: 8", "lora: {r: 8, lora_dropuot: 0.1")
    folder.replaced("deepspeed: {stage: 2}", "deepspeed: {stage: 3}")
    folder.replaced("seed: 7}", "seed: 7, optim: paged_lion_8bit}")
    faults = folder.faults()
    assert [(f.place.line, f.path) for f in faults.faults if f.place] == [
        (1, ("name",)),
        (5, ("lora", "lora_dropuot")),
        (7, ("training", "optim")),
        (8, ("deepspeed", "stage")),
    ]
    text = str(faults).splitlines()
    assert text[0] == "4 faults"
    assert text[1].endswith(
        "job.yaml:1 name: 'Digits' is not a name: 1 to 40 of a-z, 0-9 and -,"
        " beginning and ending with a letter or digit"
    )
    assert text[2] == "    hint: for example digits"
    assert faults.exit_code == 78


def test_a_misspelt_field_brings_no_consequences(folder: Folder) -> None:
    folder.replaced("max_steps: 40", "max_step: 40")
    assert [f.path for f in folder.faults().faults] == [("training", "max_step")]
    folder.replaced("backend: local ", "backend: slumr ")
    folder.replaced("nodes: 1", "nodes: 2")
    assert [f.path for f in folder.faults().faults] == [("backend",), ("training", "max_step")]


def test_required_fields_say_what_they_are(folder: Folder) -> None:
    folder.job.write_text("training: {max_steps: 1}\n")
    said = folder.said()
    assert "job.yaml:1 name: is missing\n    hint: Name of the run" in said
    assert "model: is missing" in said
    assert "data: is missing" in said
    folder.job.write_text("name: x\nmodel: {}\ndata: {}\ntraining: {max_steps: 1}\n")
    said = folder.said()
    assert "job.yaml:2 model.path: is missing" in said
    assert "job.yaml:3 data.train: is missing" in said


def test_zero3_without_quantization_is_refused_too(folder: Folder) -> None:
    said = folder.said("deepspeed.stage=3", "quantization=null")
    assert "deepspeed.stage: ZeRO-3 is not supported yet\n  hint: use stage 2" in said


def test_evaluation_with_data_is_allowed(folder: Folder) -> None:
    job = folder.resolve("data.eval=eval.json", "training.eval_strategy=epoch")
    assert job.training["eval_strategy"] == "epoch"
    assert "there is no" not in folder.said(
        "data.eval=eval.json", "training.eval_strategy=epoch", "training.eval_steps=3"
    )


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "LD_AUDIT", "LD_LIBRARY_PATH", "BASH_ENV", "ENV", "PYTHONSTARTUP"]
)
def test_variables_that_load_code_into_every_process_are_refused(folder: Folder, name: str) -> None:
    said = folder.said(f"env.{name}=/tmp/x.so")
    assert f"env.{name}: would load code into every process that starts" in said
    said = folder.said(f"secrets=[{name}]")
    assert f"{name} is no secret, but loads code into every process" in said


def test_variables_that_say_where_things_are_looked_for_are_not(folder: Folder) -> None:
    folder.resolve("env.PATH=/opt/cuda/bin:/usr/bin", "env.PYTHONPATH=/opt/mine")


def test_every_fault_of_a_backend_s_block_is_told_with_its_line(folder: Folder) -> None:
    block = "kubernetes:\n  imag: a\n  shm_gb: -1\n  volumes:\n  - {path: x, claim: c}\n"
    folder.job.write_text(folder.job.read_text() + block)
    first = len(folder.job.read_text().splitlines()) - 4
    found = [(f.place.line - first, f.path) for f in folder.faults().faults if f.place]
    assert found == [
        (1, ("kubernetes", "imag")),
        (2, ("kubernetes", "shm_gb")),
        (4, ("kubernetes", "volumes", 0, "path")),
    ]


def test_numbers_are_text_where_the_field_is(folder: Folder) -> None:
    job = folder.resolve("slurm.account=007", "kubernetes.namespace=12")
    assert job.slurm["account"] == "007"
    assert job.kubernetes["namespace"] == "12"
