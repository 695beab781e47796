"""Every command that a message, hint or `next` can print: it reads, it is ours, it is one command.

Texts are taken from the source, so that one which no test drives is judged too; what stands in
braces counts as a word. Examples in help texts are shell on purpose, and must only be readable.
"""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from collections.abc import Iterator

import click
import pytest

from orchestrator.cli.main import COMMANDS, cli
from tests.arch.test_layers import sources

WORD = "1"
OURS = "qvl-orchestrate"
OPERATORS = set("();<>|&$`\n")
SUFFIX = re.compile(rf"(?<!`){OURS} [^`\n]*")
PROSE = {"orchestrator/config/schema.py", "orchestrator/cli/main.py"}
"""Where the name of the program begins no command: a title, the head of a report."""


def texts() -> Iterator[tuple[str, str]]:
    """Every string of the source that is no docstring, and where it stands."""
    for name, tree in sources().items():
        docs, parts = set(), set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr):
                docs.add(id(node.value))
            if isinstance(node, ast.JoinedStr):
                parts |= {id(child) for child in ast.walk(node) if child is not node}
        for node in ast.walk(tree):
            if id(node) in docs or id(node) in parts:
                continue
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{name}:{node.lineno}", node.value
            elif isinstance(node, ast.JoinedStr):
                said = [str(v.value) if isinstance(v, ast.Constant) else WORD for v in node.values]
                yield f"{name}:{node.lineno}", "".join(said)


def commands(text: str) -> Iterator[str]:
    """What a person would copy: all in backticks that is more than a name, and what follows
    the name of the program to the end of the line.
    """
    for quoted in re.findall(r"`([^`\n]+)`", text):
        first = quoted.split()[0]
        if first == OURS or (first in COMMANDS and " " in quoted):
            yield quoted
    for line in SUFFIX.findall(text):
        if line.split()[1].strip(".,") in COMMANDS:
            yield line


PRINTED = sorted(
    {
        (where.partition(":")[0], command)
        for where, text in texts()
        if not re.match(r"\x08\nExamples?:|Every command takes", text.lstrip())
        and where.partition(":")[0] not in PROSE
        and "_HELP" not in text
        for command in commands(text)
    }
)
EXAMPLES = sorted(
    {
        line.strip()
        for _, text in texts()
        if re.match(r"\x08\nExamples?:", text.lstrip())
        for line in text.replace("\\\n", "").splitlines()
        if line.startswith("  ")
    }
)


def readable(command: str) -> None:
    done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stderr}"


def parse(words: list[str]) -> None:
    """As the command line would: a command, an option or a choice that is not there fails."""
    context = click.Context(cli, info_name=OURS)
    group: click.Command = cli
    while isinstance(group, click.Group) and words and not words[0].startswith("-"):
        found = group.get_command(context, words[0])
        if found is None:
            break
        group, words = found, words[1:]
    assert group is not cli, f"{words[0]} is no command"
    if words or not isinstance(group, click.Group):
        group.make_context("x", list(words), parent=context)


@pytest.mark.parametrize(("where", "command"), PRINTED, ids=[f"{w}: {c}" for w, c in PRINTED])
def test_a_printed_command_is_copyable_and_harmless(where: str, command: str) -> None:
    assert not OPERATORS & set(command), f"{where}: an operator of the shell: {command}"
    readable(command)
    words = shlex.split(command)
    assert words[0] == OURS, f"{where}: begin it with {OURS}, or do not write it as a command"
    parse(words[1:])


@pytest.mark.parametrize("line", EXAMPLES)
def test_an_example_is_read_by_the_shell_and_by_us(line: str) -> None:
    readable(line)
    for part in re.split(r"\||&&|>", line):
        words = shlex.split(part) if "'" not in part or part.count("'") % 2 == 0 else []
        if words and words[0] == OURS:
            parse(words[1:])


def test_the_collection_finds_what_it_is_for() -> None:
    assert {"orchestrator/helper/selector.py", "orchestrator/operations/status.py"} <= {
        where for where, _ in PRINTED
    }
    assert len(PRINTED) > 30
    assert len(EXAMPLES) > 30
