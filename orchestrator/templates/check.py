"""What a batch file must not lose, whatever an administrator makes of it. Pure.

A job survives a preemption only with these: the notice reaches the tasks, the log is appended
to, Slurm may start the job again, the supervisor asks for that, and the shape stays the same.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.templates.directives import Directive, directives
from orchestrator.templates.template import Template


@dataclass(frozen=True, slots=True)
class Shape:
    """What the job asks for."""

    nodes: int
    gpus_per_node: int
    gpu_request: str = "gpus-per-node"
    """As in the site file: none = the batch file need not say how many GPUs."""
    gres: str = "gpu"

    def __str__(self) -> str:
        return f"{self.nodes} x {self.gpus_per_node} GPUs"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: where in the template, what, and the cure."""

    file: str
    line: int
    what: str
    cure: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}\n  cure: {self.cure}"


@dataclass(frozen=True, slots=True)
class _Lost:
    what: str
    cure: str
    near: str
    """A pattern of the line in the template that it is about, else the block's name."""


_EXTEND = 'begin with {% extends "slurm/train.sbatch.j2" %} and override only blocks'
_REQUIRED_CODE = (
    (r"^\s*trap\b.*\bTERM\b", "no trap keeps the shell alive through a notice", r"trap"),
    (r"^\s*export QVL_SPEC=", "the job's spec does not reach the agent (QVL_SPEC)", r"QVL_SPEC"),
    (r"\bQVL_VERDICT_FILE\b", "the agent has no place for its verdict (QVL_VERDICT_FILE)",
     r"QVL_VERDICT_FILE"),
    (r"\bscontrol requeue incomplete\b", "nothing asks Slurm to start the job again",
     r"scontrol requeue"),
    (r"^\s*while kill -0 \"\$qvl_agents\".*\bwait \"\$qvl_agents\"",
     "nothing waits for the agents: after a notice the job would end before they have saved",
     r"\bwait\b"),
    (r"^\s*exit \"\$qvl_code\"", "the job does not end with the attempt's exit code", r"exit"),
)  # fmt: skip
_LAUNCH = (
    (r"--kill-on-bad-exit=0\b", "a rank that fails would kill those that still save"),
    (r"--export=ALL\b", "the variables of the batch file would not reach the agent"),
    (r"&\s*$", "a shell that waits in the foreground serves no trap"),
)
_ERREXIT = "the shell would leave before it asks for a requeue"
_CHECK_SINGLE = "remove it, or check single commands: COMMAND || exit 78"
_FORBIDDEN_CODE = (
    (r"^\s*set\s(?:.*\s)?(-\w*e\w*|-\w*o\s+errexit)\b", _ERREXIT, _CHECK_SINGLE),
    (r"^\s*shopt\s(?=.*-\w*s)(?=.*-\w*o).*\berrexit\b", _ERREXIT, _CHECK_SINGLE),
    (r"^\s*trap\s+.*\bexit\b.*\b(ERR|TERM|USR1|USR2|CONT|DEBUG)\b",
     "the shell would leave before it asks for a requeue", "remove it"),
    (r"\bscontrol requeue(?! incomplete)", "a plain requeue brings back a job that was cancelled",
     "say scontrol requeue incomplete"),
    (r"^\s*trap\s+(-|''|\"\")\s+.*\b(TERM|USR1|CONT)\b",
     "the notice would kill the shell, or never reach the agent",
     "remove it: our trap keeps the shell alive, and does nothing else"),
    (r"^\s*exec\s+(?!\d*[<>])", "the shell that asks for a requeue would be gone",
     "start the command without exec"),
    (r"^exit\b(?! \"\$qvl_code\")|^\s+exit\s*(0\s*)?$", "the shell would leave before its end",
     "remove it; to refuse a start, say exit 78 in an if, in block setup"),
)  # fmt: skip


def check(text: str, template: Template, shape: Shape) -> tuple[Finding, ...]:
    """Everything that the rendered text has lost, in a fixed order; empty if nothing."""
    found = [*_first_line(text), *_directive_faults(text, shape), *_code_faults(text, shape)]
    return tuple(_placed(lost, template) for lost in found)


def _first_line(text: str) -> Iterator[_Lost]:
    first = text.partition("\n")[0]
    if not re.fullmatch(r"#! ?(/usr)?/bin/(env )?bash", first):
        cure = "make #!/bin/bash the first line" if "bash" in first else _EXTEND
        yield _Lost(
            f"the batch file does not begin with #!/bin/bash but {first[:60]!r}", cure, "#!"
        )


def _directive_faults(text: str, shape: Shape) -> Iterator[_Lost]:
    given = directives(text)
    last = {d.name: d.value for d in given}
    yield from _requeue(given)
    if last.get("open-mode") != "append":
        yield _directive("open-mode", last, "append", "a requeue would overwrite the log")
    signal = last.get("signal", "")
    if signal.startswith("B:"):
        what = "the notice goes to the shell only (B:), and the agent hears nothing"
        yield _Lost(what, "leave out B:", r"--signal")
    elif not re.fullmatch(r"(SIG)?USR1@0*[1-9]\d*", signal):
        wanted = "USR1@{{ signal_s | directive }}"
        yield _directive("signal", last, wanted, "no notice comes before the time limit")
    if last.get("export") != "NONE":
        what = "the login environment would travel with the job"
        yield _directive("export", last, "NONE", what)
    yield from _shape_faults(last, shape)
    for name in ("array", "wrap", "wait", "test-only", "parsable", "chdir"):
        if name in last:
            yield _Lost(f"--{name} cannot be used here", "remove it", rf"--{name}|-{name[0]}\b")


def _directive(name: str, last: dict[str, str], wanted: str, why: str) -> _Lost:
    was = f"--{name} is {last[name]!r}" if name in last else f"--{name} is missing"
    return _Lost(f"{was}: {why}", f"#SBATCH --{name}={wanted}", rf"--{name}")


def _requeue(given: tuple[Directive, ...]) -> Iterator[_Lost]:
    said = [d.name for d in given if d.name in ("requeue", "no-requeue")]
    if not said:
        what = "--requeue is missing: Slurm would not start a preempted job again"
        yield _Lost(what, "#SBATCH --requeue", r"directives")
    elif said[-1] == "no-requeue":
        what = "--no-requeue: Slurm would not start a preempted job again"
        yield _Lost(what, "remove it, and keep #SBATCH --requeue", r"--no-req")


def _shape_faults(last: dict[str, str], shape: Shape) -> Iterator[_Lost]:
    for name, wanted, cure in (
        ("nodes", shape.nodes, "{{ nodes | directive }}"),
        ("ntasks-per-node", 1, "1"),
    ):
        if last.get(name) != str(wanted):
            yield _directive(name, last, cure, f"a job of {shape} was asked for")
    if "ntasks" in last and last["ntasks"] != str(shape.nodes):
        yield _Lost("--ntasks is not the number of nodes", "remove it", r"--ntasks\b|-n\b")
    asked = dict(_gpus(last, shape))
    if not asked and shape.gpu_request != "none":
        yield _Lost(
            f"no GPUs are asked for, but a job of {shape} was",
            "print the options: {% for option in options %}#SBATCH {{ option | directive }}",
            r"directives",
        )
    for name, count in asked.items():
        if count != shape.gpus_per_node:
            yield _Lost(
                f"--{name} asks for {count:g} GPUs a node, but a job of {shape} was asked for",
                "remove it and print the options, which hold the right number",
                rf"--{name}|-G",
            )


def _gpus(last: dict[str, str], shape: Shape) -> Iterator[tuple[str, float]]:
    """Options that ask for GPUs, and for how many of each node (-1: not to be read)."""
    for name in ("gpus-per-node", "gpus-per-task", "gpus", "gres"):
        for item in last.get(name, "").split(",") if name in last else ():
            parts = item.split(":")
            if name == "gres":
                if parts[0] != shape.gres:
                    continue
                parts = parts[1:] or ["1"]
            count = int(parts[-1]) if parts[-1].isdigit() else -1
            yield name, count / shape.nodes if name == "gpus" and count > 0 else count


def _code_faults(text: str, shape: Shape) -> Iterator[_Lost]:
    code = _code(text)
    for pattern, what, near in _REQUIRED_CODE:
        if not any(re.search(pattern, line) for line in code):
            yield _Lost(what, _EXTEND, near)
    yield from _launch_faults(code, shape)
    for pattern, what, cure in _FORBIDDEN_CODE:
        for line in code:
            said = next((c for c in _commands(line) if re.search(pattern, c)), None)
            if said is not None:
                yield _Lost(f"{said.strip()[:60]!r}: {what}", cure, re.escape(said.strip()))


def _commands(line: str) -> Iterator[str]:
    """The commands of a line: its parts, and what the site's `setup` lines say by `eval`. All but
    the first are indented, as what may not be reached.
    """
    first, *others = re.split(r"&&|\|\||;|\b(?:then|else|do)\b|[{}]", line)
    yield first
    yield from (f" {part}" for part in others)
    if re.match(r"\s*eval\s", line):
        try:
            inner = " ".join(shlex.split(line)[1:])
        except ValueError:
            return
        for part in inner.split("\n"):
            yield from _commands(part)


def _launch_faults(code: list[str], shape: Shape) -> Iterator[_Lost]:
    agents = [line for line in code if "orchestrator.agent" in line]
    launches = [line for line in agents if re.match(r"\s*srun\s", line)]
    if not launches:
        where = re.escape(agents[0].strip()[:40]) if agents else "launch"
        yield _Lost("the agent is not started by srun: it would hear no notice", _EXTEND, where)
    for pattern, why in _LAUNCH:
        for line in launches:
            if not re.search(pattern, line):
                shown = "&" if pattern.startswith("&") else pattern.removesuffix(r"\b")
                yield _Lost(f"srun without {shown}: {why}", f"add {shown}", r"\bsrun\b")
    for line in launches:
        yield from _narrow(line, shape)


def _narrow(line: str, shape: Shape) -> Iterator[_Lost]:
    """A launch that leaves out nodes of the job: an attempt would wait for their agents."""
    before = line.partition("orchestrator.agent")[0]
    for name, wanted in (
        ("nodes|-N", shape.nodes),
        ("ntasks|-n", shape.nodes),
        ("ntasks-per-node", 1),
    ):
        long, _, short = name.partition("|")
        forms = rf"--{long}(?:=|\s+)" + (rf"|{short}\s*" if short else "")
        for found in re.findall(rf"(?:^|\s)(?:{forms})(\d+)(?=\s|$)", before):
            if int(found) != wanted:
                yield _Lost(
                    f"srun starts the agent with --{long}={found}, in a job of {shape}: one agent "
                    "on each node is needed",
                    f"leave --{long} as ours has it"
                    if long == "ntasks-per-node"
                    else f"--{long}={{{{ nodes }}}}",
                    rf"--{long}|{short or long}|\bsrun\b",
                )


def _code(text: str) -> list[str]:
    """Lines of commands: those that go on with a backslash joined, comments left out."""
    joined = re.sub(r"\\\n", " ", text)
    return [line for line in joined.split("\n") if not line.lstrip().startswith("#")]


def _block(near: str) -> str:
    """The block in which ours has what is missing."""
    if near.startswith("--") or near == "directives":
        return "directives"
    return "launch" if "srun" in near or near == "launch" else "(setup|launch|teardown)"


def _placed(lost: _Lost, template: Template) -> Finding:
    """The finding at the line of the template that it is about: the one that it names, else
    the block that replaces ours, else the top. Lines of ours are not to blame for a template
    that extends it.
    """
    own = [s for i, s in enumerate(template.sources) if i == 0 or not s.ours]
    for pattern in (lost.near, rf"\{{%-?\s*block\s+{_block(lost.near)}\b"):
        for source in own:
            for number, line in enumerate(source.text.split("\n"), 1):
                if "{#" not in line and re.search(pattern, line):
                    return Finding(source.path, number, lost.what, lost.cure)
    return Finding(template.sources[0].path, 1, lost.what, lost.cure)
