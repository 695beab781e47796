"""What several commands share: output, opening a run, options."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from orchestrator.controller.run import Run
    from orchestrator.registry.store import Registry

F = TypeVar("F", bound=Callable[..., Any])


def json_option(function: F) -> F:
    """`--json`: the answer as JSON, alone on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="JSON on stdout, nothing else.")(
        function
    )


def out(text: str = "") -> None:
    """One line of the answer, on stdout."""
    sys.stdout.write(f"{text}\n")


def out_json(value: Any) -> None:
    """The answer as one line of JSON on stdout, in ASCII: right in every locale."""
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")


def note(text: str) -> None:
    """A line about the answer, on stderr."""
    sys.stderr.write(f"{text}\n")


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
    from orchestrator.controller import removal
    from orchestrator.controller.run import open_entry

    known = registry()
    run = open_entry(known, known.find(wanted, alone=alone, live=live), SystemClock())
    if not gone and removal.directory_gone(run.entry.uri):
        raise removal.gone(run)
    return run
