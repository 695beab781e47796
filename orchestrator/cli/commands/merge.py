"""`merge`: the base model with a run's adapter merged into it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import get_run, json_option, out, out_json, out_text

if TYPE_CHECKING:
    from orchestrator.cli.services.result import Result

_HELP = """Merge the adapter of RUN into its base model and write the whole model to the folder DIR.

The base is loaded in bfloat16 on the CPU (memory: twice its size on disk and a little more).
The logits of the merged weights are compared with those of the adapter beside the base, and
with those of the adapter on the quantized base that it was trained on; both differences are
printed and stand in the README.md. A base that is itself quantized is refused: rounding to 4
bits again would erase what was learned. Merge into the unquantized base, and quantize then.
"""
_EXAMPLES = """\b
Examples:
  qvl-orchestrate merge digits ./digits-merged
  qvl-orchestrate merge digits ./digits-merged --step 30 --json
"""


@click.command("merge", help=_HELP, epilog=_EXAMPLES)
@click.argument("run")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--step", type=click.IntRange(min=1), help="The checkpoint of this step.")
@json_option
def command(*, run: str, folder: Path, step: int | None, as_json: bool) -> int:
    """Merge an adapter (see `_HELP`)."""
    from orchestrator.cli.output.bar import Bar
    from orchestrator.cli.services.model_card import model_card
    from orchestrator.cli.services.result import adapter_request, base_type, gather, new_folder
    from orchestrator.cli.services.tool import run_tool
    from orchestrator.controller import trust

    chosen = get_run(run)
    result = gather(chosen, step)
    python, environ = trust.interpreter(chosen, result.job)
    with new_folder(folder) as scratch:
        with Bar() as bar, adapter_request(chosen, result) as request:
            measured = run_tool(
                "merge",
                {**request, "out": str(scratch.resolve())},
                python=python,
                environ=environ,
                on_progress=bar.show,
            )
        card = model_card(result, base_type(result.job), merged=_said(measured))
        (scratch / "README.md").write_text(card, encoding="utf-8")
    if as_json:
        out_json(_answer(result, folder, measured))
    else:
        out(f"merged step {result.commit.step} of {chosen.run_id} into {folder}")
        out_text(_said(measured) + "\n")
    return 0


def _answer(result: Result, folder: Path, measured: dict[str, Any]) -> dict[str, Any]:
    return {
        "run_id": result.run_id,
        "folder": str(folder.resolve()),
        "step": result.commit.step,
        **measured,
    }


def _said(measured: dict[str, Any]) -> str:
    """One paragraph on what merging changed."""
    changed, layers, tokens = (measured[k] for k in ("changed_layers", "layers", "tokens"))
    head = f"{changed} of {layers} adapted layers changed. Measured on {measured['measured_on']}"
    lines = [f"{head} ({tokens} tokens):"]
    against = {
        "against_adapter": "merged against the adapter beside the bfloat16 base",
        "against_training": "merged against the adapter on the quantized base of the training",
    }
    for key, name in against.items():
        if measured[key] is not None:
            apart = measured[key]
            same = f"the most likely token is the same at {apart['same_choice']:.1%}"
            lines.append(
                f"- {name}: logits differ by {apart['mean']:.4g} on average, "
                f"{apart['largest']:.4g} at most; {same}"
            )
    return "\n".join(lines)
