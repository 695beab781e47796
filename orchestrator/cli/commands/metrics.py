"""`metrics`: one training curve over all attempts."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import click

from orchestrator.cli import escape
from orchestrator.cli.common import get_run, json_option, note, out, out_json, out_text
from orchestrator.errors import UsageError

FIELDS = ("step", "attempt", "loss", "loss_hex", "learning_rate", "grad_norm", "time")
_HELP = """Show loss, learning rate and gradient norm of each optimizer step of RUN.

All attempts make one curve: a step that was computed again is shown once, as the attempt
that the run went on from computed it. The loss is the mean over all ranks.
"""
_EXAMPLES = """\b
Examples:
  qvl-orchestrate metrics digits
  qvl-orchestrate metrics digits --csv > curve.csv
  qvl-orchestrate metrics digits --json | jq -r '[.step, .loss_hex] | @tsv'
"""


@click.command("metrics", help=_HELP, epilog=_EXAMPLES)
@click.argument("run")
@click.option("as_csv", "--csv", is_flag=True, help="Comma-separated values with a header line.")
@json_option
def command(*, run: str, as_csv: bool, as_json: bool) -> int:
    """Show the curve (see `_HELP`)."""
    if as_csv and as_json:
        raise UsageError("--csv and --json exclude each other")
    from orchestrator.run_directory.curve import read_curve

    curve = read_curve(get_run(run).storage)
    rows = [{name: getattr(line, name) for name in FIELDS} for line in curve]
    if as_json:
        for row in rows:
            out_json(row)
    elif as_csv:
        table = io.StringIO()
        writer = csv.DictWriter(table, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: escape.line(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows
        )
        out_text(table.getvalue())
    elif rows:
        _print(rows)
    else:
        note("no step is finished yet")
    return 0


def _print(rows: Sequence[dict[str, Any]]) -> None:
    from orchestrator.cli.output.table import aligned

    body = [
        [
            str(row["step"]),
            str(row["attempt"]),
            # not finite: only the exact text says whether nan or inf
            row["loss_hex"] if row["loss"] is None else f"{row['loss']:.6f}",
            f"{row['learning_rate']:.3e}",
            "-" if row["grad_norm"] is None else f"{row['grad_norm']:.4g}",
            row["time"],
        ]
        for row in rows
    ]
    titles = ["step", "attempt", "loss", "learning rate", "grad norm", "time"]
    for line in aligned([titles, *body], right=range(5)):
        out(line)
