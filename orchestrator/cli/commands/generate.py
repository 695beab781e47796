"""`generate`: ask a trained model about a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from orchestrator.cli.common import asked_as, get_run, json_option, out, out_json

_HELP = """Ask the model that RUN has trained the QUESTION about IMAGE.

The base is loaded as it was trained (quantized alike) with the adapter of the newest
checkpoint, on a GPU of this machine if there is one, and answers greedily. IMAGE may be `-`
for none.
"""
_EXAMPLES = """\b
Examples:
  qvl-orchestrate generate digits images/0007.png "Which digit is this?"
  qvl-orchestrate generate digits - "Say hello." --compare --json
"""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked, and of which checkpoint."""

    run: str
    image: Path
    question: str
    step: int | None
    max_new_tokens: int
    compare: bool
    as_json: bool


@click.command("generate", help=_HELP, epilog=_EXAMPLES)
@click.argument("run")
@click.argument("image", type=click.Path(path_type=Path, allow_dash=True))
@click.argument("question")
@click.option("--step", type=click.IntRange(min=1), help="The checkpoint of this step.")
@click.option(
    "--max-new-tokens", type=click.IntRange(1, 8192), default=128, show_default=True,
    help="Longest answer in tokens.",
)  # fmt: skip
@click.option("--compare", is_flag=True, help="Ask the base without the adapter too.")
@json_option
@asked_as(Asked)
def command(asked: Asked) -> int:
    """Ask a model (see `_HELP`)."""
    from orchestrator.cli.output.bar import Bar
    from orchestrator.cli.services.result import adapter_request, gather
    from orchestrator.cli.services.tool import absolute, run_tool
    from orchestrator.controller import trust

    chosen = get_run(asked.run)
    result = gather(chosen, asked.step)
    python, environ = trust.interpreter(chosen, result.job)
    with Bar() as bar, adapter_request(chosen, result) as request:
        request |= {
            "question": asked.question,
            "images": [] if str(asked.image) == "-" else [absolute(asked.image)],
            "max_new_tokens": asked.max_new_tokens,
            "compare": asked.compare,
        }
        said = run_tool(
            "generate",
            request,
            python=python,
            environ=environ,
            on_progress=bar.show,
        )
    if asked.as_json:
        out_json({"run_id": chosen.run_id, "step": result.commit.step, **said})
        return 0
    for text in said["answer"].split("\n"):
        out(text)
    if asked.compare:
        out("without the adapter:")
        for text in said["base_answer"].split("\n"):
            out(text)
    return 0
