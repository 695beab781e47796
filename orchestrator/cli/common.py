"""What several commands share: output, opening a run, options."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from orchestrator.cli import escape, streams

if TYPE_CHECKING:
    from orchestrator.controller.run import Run
    from orchestrator.registry.store import Registry

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def json_option(function: F) -> F:
    """`--json`: the answer as JSON, alone on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="JSON on stdout, nothing else.")(
        function
    )


site_option = click.option(
    "--site", type=click.Path(path_type=Path), help="Site file instead of the usual."
)
set_option = click.option(
    "overrides", "--set", multiple=True, metavar="KEY=VALUE", help="Replace a field of the job."
)
template_option = click.option(
    "--template", type=click.Path(path_type=Path), help="Batch template of your own."
)


def asked_as(kind: Callable[..., T]) -> Callable[[Callable[[T], int]], Callable[..., int]]:
    """Hand a command all that the command line gives as one value of the dataclass `kind`."""

    def wrap(command: Callable[[T], int]) -> Callable[..., int]:
        @functools.wraps(command)
        def call(**given: Any) -> int:
            return command(kind(**given))

        return call

    return wrap


def out(line: str = "") -> None:
    """One line of the answer, on stdout."""
    _out(f"{escape.line(line)}\n")


def out_text(text: str) -> None:
    """Lines of the answer, with their ends, on stdout."""
    _out(escape.text(text))


def out_drawn(text: str) -> None:
    """What was drawn for a terminal from parts that were escaped, on stdout."""
    _out(text)


def out_data(text: str) -> None:
    """A document on stdout: byte for byte, but for a terminal."""
    _out(escape.text(text) if sys.stdout.isatty() else text)


def out_json(value: Any) -> None:
    """The answer as one line of JSON on stdout, in ASCII: right in every locale."""
    text = json.dumps(value, allow_nan=False).replace("\x7f", "\\u007f")
    _out(f"{text}\n")


def note(line: str) -> None:
    """A line about the answer, on stderr."""
    _err(f"{escape.line(line)}\n")


def note_text(text: str) -> None:
    """Lines about the answer, on stderr."""
    _err(f"{escape.text(text)}\n")


def note_over(line: str) -> None:
    """In a terminal, a line on stderr that takes the place of the one before; empty: none."""
    _err(f"\r\x1b[K{escape.line(line)}")


def _out(text: str) -> None:
    try:
        sys.stdout.write(text)
    except BrokenPipeError:
        raise
    except OSError as fault:
        raise streams.lost(fault) from fault


def _err(text: str) -> None:
    # A full disk or a closed pipe behind stderr stops no command: nobody could be told of it.
    with suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def registry() -> Registry:
    """This user's registry."""
    from orchestrator.registry.store import Registry, default_state_dir

    return Registry(default_state_dir())


def get_run(wanted: str, *, alone: bool = False, live: bool = False, gone: bool = False) -> Run:
    """The run that a person means by an id, the beginning of one, or a name.

    alone, live: see `Registry.find`
    gone: also one whose directory is gone; else StorageError
    """
    from orchestrator.clock import SystemClock
    from orchestrator.controller.run import open_entry
    from orchestrator.operations import removal

    known = registry()
    run = open_entry(known, known.find(wanted, alone=alone, live=live), SystemClock())
    if not gone and removal.directory_gone(run.entry.uri):
        raise removal.gone(run)
    return run
