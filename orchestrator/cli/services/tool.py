"""Running one of the trainer's helper programs, which may import what we must not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from orchestrator.errors import (
    CheckpointError,
    InternalError,
    QvlError,
    Unreachable,
    UserError,
)

ROOT = Path(__file__).resolve().parents[3]
_TAIL = 2000
"""Characters of the program's own output that are shown when it breaks."""


_SAID: Mapping[int, type[QvlError]] = {
    kind.exit_code: kind for kind in (CheckpointError, Unreachable, UserError)
}
"""Errors that the program tells by their exit code."""


def run_tool(
    name: str,
    request: Mapping[str, Any],
    *,
    python: str | None = None,
    environ: Mapping[str, str] | None = None,
    on_progress: Callable[[Mapping[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Run the program `name` of `trainer.commands.tool` with the request on its stdin; its result.

    python: interpreter of the run; None = ours
    environ: variables of the run, added to ours

    Raises the error that the program says, and InternalError if it breaks.
    """
    program = python or sys.executable
    with tempfile.TemporaryFile() as errors:
        try:
            child = subprocess.Popen(
                [program, "-m", "trainer.commands.tool", name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_environment(program, environ or {}),
            )
        except OSError as fault:
            raise UserError(f"{program} cannot be run: {fault.strerror}") from None
        with child:
            try:
                result = _talk(child, request, on_progress)
            finally:
                child.kill()
        if result is None:
            errors.seek(0)
            said = errors.read().decode(errors="replace")[-_TAIL:].strip()
            raise InternalError(
                f"{program} -m trainer.commands.tool {name} broke off ({child.returncode})\n{said}"
            )
    return result


def _talk(
    child: subprocess.Popen[bytes],
    request: Mapping[str, Any],
    on_progress: Callable[[Mapping[str, Any]], None],
) -> dict[str, Any] | None:
    assert child.stdin is not None, "Popen was asked for pipes"
    assert child.stdout is not None, "Popen was asked for pipes"
    try:
        child.stdin.write(json.dumps(request).encode())
        child.stdin.close()
    except BrokenPipeError:
        with suppress(BrokenPipeError):
            child.stdin.close()
        child.wait()
        return None
    result = None
    for line in child.stdout:
        message = json.loads(line)
        if message["t"] == "progress":
            on_progress(message)
        elif message["t"] == "error":
            kind = _SAID.get(message["exit_code"], InternalError)
            raise kind(message["message"], hint=message["hint"])
        else:
            result = message["result"]
    child.wait()
    return result


def _environment(program: str, more: Mapping[str, str]) -> dict[str, str]:
    """Ours, with this package and the interpreter's own programs to be found."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    folders = [str(Path(program).parent) if "/" in program else "", os.environ.get("PATH", "")]
    return {
        "TOKENIZERS_PARALLELISM": "false",
        **os.environ,
        **more,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PATH": os.pathsep.join(filter(None, folders)),
    }


def absolute(path: str | os.PathLike[str]) -> str:
    """A path as other processes can use it; links are not followed."""
    return os.path.abspath(click.format_filename(path))  # noqa: PTH100 - keeps links
