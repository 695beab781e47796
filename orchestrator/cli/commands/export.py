"""`export`: the adapter of a run as a folder that plain PEFT loads."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli.common import get_run, json_option, out, out_json

_HELP = """Write the adapter of RUN to the new folder DIR.

adapter_config.json and adapter_model.safetensors, as they were committed and compared with
their recorded hashes, and a README.md that says how they came about: attempts
and preemptions, settings, versions, fingerprints of the data and of the base, losses. The
newest checkpoint is taken; the run need not be finished.
"""
_EXAMPLES = """\b
Examples:
  qvl-orchestrate export digits ./digits-adapter
  qvl-orchestrate export digits ./at-30 --step 30 --json
"""


@click.command("export", help=_HELP, epilog=_EXAMPLES)
@click.argument("run")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--step", type=click.IntRange(min=1), help="The checkpoint of this step.")
@json_option
def command(*, run: str, folder: Path, step: int | None, as_json: bool) -> int:
    """Export an adapter (see `_HELP`)."""
    from orchestrator.cli.services.model_card import model_card
    from orchestrator.cli.services.result import adapter, base_type, gather, new_folder

    chosen = get_run(run)
    result = gather(chosen, step)
    files = adapter(chosen.storage, result)
    with new_folder(folder) as scratch:
        for name, data in files.items():
            (scratch / name).write_bytes(data)
        card = model_card(result, base_type(result.job))
        (scratch / "README.md").write_text(card, encoding="utf-8")
    answer = {
        "run_id": chosen.run_id,
        "folder": str(folder.resolve()),
        "step": result.commit.step,
        "finished": result.finished,
        "adapter_sha256": result.commit.adapter_sha256,
        "attempts": len(result.attempts),
        "preemptions": result.preemptions,
    }
    if as_json:
        out_json(answer)
    else:
        out(f"exported step {result.commit.step} of {chosen.run_id} to {folder}")
        out(f"  adapter sha256 {result.commit.adapter_sha256}")
    return 0
