"""Entry point: lazily loaded commands, and the one place where errors become exit codes."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from orchestrator.errors import QvlError

COMMANDS = {
    "init": "Write a commented job.yaml to start from.",
    "submit": "Submit a job file as a new run.",
    "status": "Show runs at a glance.",
    "logs": "Show what the ranks print, over all attempts.",
    "events": "Show what happened to a run.",
    "metrics": "Show the training curve over all attempts.",
    "checkpoints": "List a run's checkpoints, and verify them.",
    "preempt": "Deliver a notice as a scheduler would.",
    "cancel": "Cancel a run for good; it saves first if it can.",
    "resume": "Go on with a run that is held, failed or cancelled.",
    "rm": "Delete a run and its directory.",
    "adopt": "Enter run directories into this machine's registry.",
    "controller": "Look after runs: once (cron) or for ever.",
    "schema": "Print the JSON schema of job.yaml.",
    "version": "Show versions.",
}


class LazyGroup(click.Group):
    """Commands live in `orchestrator.cli.<name>` as `command`; loaded when used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"orchestrator.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """From the table above, so that help loads no command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name not in COMMANDS and not name.startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(name, COMMANDS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            ctx.fail(f"No such command {name!r}.{hint}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every command takes --help, which shows an example.",
)
def cli() -> None:
    """Fine-tune Qwen-VL models with Q-LoRA on preemptible GPUs as safely as on reserved ones."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; never a traceback for the user."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    args = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in args
    try:
        result = cli.main(args=args, prog_name="qvl-orchestrate", standalone_mode=False)
    except click.exceptions.Exit as left:
        return left.exit_code
    except click.Abort:
        sys.stderr.write("aborted\n")
        return 130
    except click.ClickException as fault:
        if as_json:
            _print_error(fault.format_message(), None, fault.exit_code)
        fault.show(sys.stderr)
        return fault.exit_code
    except QvlError as fault:
        if as_json:
            _print_error(fault.message, fault.hint, fault.exit_code)
        hint = f"\n  hint: {fault.hint}" if fault.hint else ""
        sys.stderr.write(f"error: {fault.message}{hint}\n")
        return fault.exit_code
    except Exception as fault:  # noqa: BLE001 - the last line of defence of the command line
        sys.stderr.write(f"internal error: {fault}\n  details: {_write_traceback()}\n")
        return 1
    return result if isinstance(result, int) else 0


def _print_error(message: str, hint: str | None, exit_code: int) -> None:
    answer = {"error": {"message": message, "hint": hint, "exit_code": exit_code}}
    sys.stdout.write(json.dumps(answer) + "\n")


def _write_traceback() -> Path:
    fd, name = tempfile.mkstemp(prefix="qvl-orchestrate-", suffix=".txt")
    with os.fdopen(fd, "w") as file:
        traceback.print_exc(file=file)
    return Path(name)


if __name__ == "__main__":
    sys.exit(main())
