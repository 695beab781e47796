"""`init`: a commented job file to start from."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli.common import json_option, out, out_json
from orchestrator.errors import UserError

_HELP = "Write a job file with every setting explained to FILE (default: job.yaml)."
_EXAMPLES = """\b
Example:
  qvl-orchestrate init && $EDITOR job.yaml && qvl-orchestrate submit job.yaml --dry-run
"""


@click.command("init", help=_HELP, epilog=_EXAMPLES)
@click.argument("file", type=click.Path(path_type=Path), default="job.yaml")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@json_option
def command(*, file: Path, force: bool, as_json: bool) -> int:
    """Write a job file (see `_HELP`)."""
    from orchestrator.config.starter import init_text

    text = init_text()
    try:
        with file.open("w" if force else "x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError:
        raise UserError(f"{file} exists already", hint="another name, or --force") from None
    except OSError as fault:
        raise UserError(f"{file} cannot be written: {fault.strerror}") from None
    if as_json:
        out_json({"file": str(file.absolute())})
    else:
        out(f"wrote {file}; next: edit it, then `qvl-orchestrate submit {file} --dry-run`")
    return 0
