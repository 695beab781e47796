"""`python -m trainer.commands.tool NAME`: a request on stdin, JSON lines on stdout.

Messages: `progress` (what or file, done, total), and at the end one `result` or one `error`.
A program is a module with a dataclass `Request` and `work(tool, request) -> result`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any, TextIO

from orchestrator.contract.jsonio import MalformedJson, from_json, loads
from orchestrator.errors import QvlError, UsageError

PROGRAMS = {
    "datacheck": "trainer.commands.data_check.work",
    "merge": "trainer.commands.merge",
    "generate": "trainer.commands.generate",
}


class Tool:
    """Says things to the command line that started this program."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def say(self, kind: str, **fields: Any) -> None:
        """One message; `t` is its kind."""
        self._stream.write(json.dumps({"t": kind, **fields}) + "\n")
        self._stream.flush()


def main(name: str) -> int:
    """Run a program; the exit code.

    Whatever libraries print, some already while they are imported, goes to stderr.
    """
    tool = Tool(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    try:
        program = importlib.import_module(PROGRAMS[name])
        tool.say("result", result=program.work(tool, _request(program.Request)))
    except QvlError as fault:
        tool.say("error", message=fault.message, hint=fault.hint, exit_code=fault.exit_code)
        return fault.exit_code
    return 0


def _request(kind: Any) -> Any:
    try:
        return from_json(kind, loads(sys.stdin.buffer.read()))
    except MalformedJson as fault:
        raise UsageError(f"the request cannot be read: {fault}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
