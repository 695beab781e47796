"""`version`: ours, Python's, and those of the packages that matter."""

from __future__ import annotations

import click

from orchestrator.cli.common import json_option, out, out_json

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "deepspeed",
    "submitit",
    "fsspec",
    "s3fs",
)
_HELP = "Show the versions of qvl-orchestrate, Python, and the packages that matter."
_EXAMPLES = """\b
Example:
  qvl-orchestrate version --json
"""


@click.command("version", help=_HELP, epilog=_EXAMPLES)
@json_option
def command(*, as_json: bool) -> int:
    """Show versions (see `_HELP`)."""
    import platform

    from orchestrator import __version__
    from orchestrator.cli.output.table import aligned

    packages = {name: _installed(name) for name in PACKAGES}
    own = {"qvl-orchestrate": __version__, "python": platform.python_version()}
    if as_json:
        out_json({**own, "packages": packages})
        return 0
    shown = {**own, **{name: found or "not installed" for name, found in packages.items()}}
    for line in aligned(list(shown.items())):
        out(line)
    return 0


def _installed(name: str) -> str | None:
    """The installed version, without importing the package."""
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
