"""`schema`: the JSON schema of job.yaml, for editors."""

from __future__ import annotations

import click

from orchestrator.cli.common import json_option, out_data, out_json

_HELP = "Print the JSON schema of job files, for editors that complete and check as you type."
_EXAMPLES = """\b
Example:
  qvl-orchestrate schema > job.schema.json
  # then, as the first line of job.yaml:
  # yaml-language-server: $schema=./job.schema.json
"""


@click.command("schema", help=_HELP, epilog=_EXAMPLES)
@json_option
def command(*, as_json: bool) -> int:
    """Print the schema (see `_HELP`)."""
    from orchestrator.config.schema import json_schema

    if as_json:
        out_json(json_schema())
        return 0
    import json

    out_data(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n")
    return 0
