"""`data check`: a data set judged before it costs GPU time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import asked_as, json_option, note, out_json, set_option
from orchestrator.errors import UsageError, UserError

if TYPE_CHECKING:
    from orchestrator.contract.resolved import ResolvedJob

_HELP = """Read the whole data set of the job file JOB (or of --data) and report what is wrong.

Every record of the index and every picture it names is looked at, in parallel: pictures by
their headers where that is enough, wholly with --decode. No model is loaded and nothing is
changed. The report names each offender as file:record, and shows the lengths, the memory that
the largest micro-batch may take, and one sample as the model sees it. `python:` and `env:` count
only in a job file that nobody else could have written.

\b
A fault stops the run, or is replaced (data.policy: replace); a warning trains, but is
probably not meant. Exit codes:
  0   no faults (with --strict: no warnings either)
  78  faults, or the job file is wrong
"""
_EXAMPLES = """\b
Examples:
  qvl-orchestrate data check job.yaml
  qvl-orchestrate data check --run digits
  qvl-orchestrate data check --data train.jsonl --model ./Qwen2.5-VL-7B-Instruct
  qvl-orchestrate data check job.yaml --json | jq '.findings[] | select(.level == "fault")'
"""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of `trainer.commands.data_check`, and who shall answer it."""

    fields: dict[str, Any]
    python: str | None = None
    environ: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Asked:
    """What to check, and how."""

    job: Path | None
    run: str | None
    data: Path | None
    model: str | None
    media_root: Path | None
    max_length: int | None
    overrides: tuple[str, ...]
    processes: int | None
    decode: bool
    strict: bool
    show_all: bool
    as_json: bool


@click.group(
    "data",
    epilog="""\b
Example:
  qvl-orchestrate data check job.yaml --json
""",
)
def command() -> None:
    """Look at training data."""


@command.command("check", help=_HELP, epilog=_EXAMPLES)
@click.argument("job", required=False, type=click.Path(path_type=Path))
@click.option("--run", help="The job of this run, as it is in force, instead of a job file.")
@click.option("--data", type=click.Path(path_type=Path), help="Index file, instead of a job.")
@click.option("--model", help="Model folder that --data is meant for, or its id on the hub.")
@click.option("--media-root", type=click.Path(path_type=Path), help="With --data; its folder.")
@click.option("--max-length", type=click.IntRange(min=1), help="With --data: limit in tokens.")
@set_option
@click.option("--processes", type=click.IntRange(1, 256), help="As many as cores if not given.")
@click.option("--decode", is_flag=True, help="Decode every picture, not only its header.")
@click.option("--strict", is_flag=True, help="Warnings count as faults.")
@click.option("--all", "show_all", is_flag=True, help="Show every finding, not the first 50.")
@json_option
@asked_as(Asked)
def check(asked: Asked) -> int:
    """Check a data set (see `_HELP`)."""
    from orchestrator.cli.output.bar import Bar
    from orchestrator.cli.services.tool import run_tool

    if sum(given is not None for given in (asked.job, asked.run, asked.data)) != 1:
        raise UsageError("give either a job file, or --run, or --data and --model")
    if asked.data is None and (asked.model or asked.media_root or asked.max_length):
        raise UsageError("--model, --media-root and --max-length belong to --data")
    if asked.run is not None:
        request = _of_run(asked.run)
    elif asked.job is not None:
        request = of_job(asked.job, asked.overrides)
    else:
        request = _of_file(asked)
    fields = {
        **request.fields,
        "processes": asked.processes or len(os.sched_getaffinity(0)),
        "decode": asked.decode,
    }
    with Bar() as bar:
        report = run_tool(
            "datacheck",
            fields,
            python=request.python,
            environ=request.environ,
            on_progress=bar.show,
        )
    if asked.as_json:
        out_json(report)
    else:
        from orchestrator.cli.output.data_report import print_report

        print_report(report, show_all=asked.show_all)
    bad = report["counts"]["faults"] or (asked.strict and report["counts"]["warnings"])
    return UserError.exit_code if bad else 0


def of_job(path: Path, overrides: Sequence[str]) -> Request:
    """The request for a job file, whose index files need not be right."""
    from orchestrator.config.load import load_job, load_site
    from orchestrator.config.resolving.job import resolve
    from orchestrator.config.resolving.named_files import is_hub_model, read_deepspeed
    from orchestrator.storage.ownership import foreign_hands

    loaded = load_job(path, overrides)
    config, _ = read_deepspeed(loaded.spec, loaded.base_dir)
    resolved = resolve(
        loaded.spec,
        base_dir=loaded.base_dir,
        site=load_site(),
        from_hub=is_hub_model(loaded.spec, loaded.base_dir),
        deepspeed_config=config,
    )
    if (found := foreign_hands(path)) is not None:
        note(f"{found}: its python: and env: are left out; a copy of your own is checked with them")
        return Request(_request(resolved))
    return Request(_request(resolved), resolved.python, dict(resolved.env))


def _of_run(wanted: str) -> Request:
    from orchestrator.cli.common import get_run
    from orchestrator.controller import trust

    run = get_run(wanted)
    job = run.job()
    python, environ = trust.interpreter(run, job)
    return Request(_request(job), python, dict(environ))


def _request(job: ResolvedJob) -> dict[str, Any]:
    return {
        "train": job.data.train,
        "eval": job.data.eval,
        "media_root": job.data.media_root,
        "model": job.model.path,
        "revision": job.model.revision,
        "max_length": job.max_length,
        "micro": job.batch.micro,
        "quantized": bool(job.quantization.get("load_in_4bit")),
        "checkpointing": bool(job.training.get("activation_checkpointing")),
        "lora_rank": job.lora["r"],
    }


def _of_file(asked: Asked) -> Request:
    from orchestrator.cli.services.tool import absolute

    assert asked.data is not None, "one of three is given"
    model, media_root = asked.model, asked.media_root
    if model is None:
        raise UsageError("--data needs --model: lengths depend on its tokenizer")
    return Request(
        {
            "train": absolute(asked.data),
            "model": absolute(model) if Path(model).is_dir() else model,
            "media_root": None if media_root is None else absolute(media_root),
            "max_length": asked.max_length,
        }
    )
