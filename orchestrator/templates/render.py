"""Rendering: a template and values to text, in which no value has become syntax. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from orchestrator.config.values.suggest import nearest
from orchestrator.errors import UserError
from orchestrator.templates import quoting, shell, yamltext
from orchestrator.templates.quoting import Unfit
from orchestrator.templates.template import Template

Mode = Literal["value", "directive", "comment"]


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text, and which template it was made from (`sha256` is the template's)."""

    text: str
    template_id: str
    sha256: str


@dataclass(frozen=True, slots=True)
class _Printed:
    """One `{{ ... }}` as it was met while rendering."""

    value: Any
    mode: Mode
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class _Marked:
    """A value with the filter that says how it is to be written."""

    value: Any
    mode: Mode

    def __str__(self) -> str:
        return str(self.value)


@dataclass(slots=True)
class _Table:
    """What was printed, in order; a mark in the text stands for each."""

    printed: list[_Printed] = field(default_factory=list)

    def mark(self, value: Any, file: str, line: int) -> str:
        mode: Mode = "value"
        if isinstance(value, _Marked):
            value, mode = value.value, value.mode
        self.printed.append(_Printed(value, mode, file, line))
        return f"\0{len(self.printed) - 1}\0"


def render(template: Template, values: Mapping[str, object]) -> Rendered:
    """Raises UserError with file, line and cure for whatever is wrong with the template, and
    for a value that cannot be written where it is printed.
    """
    table = _Table()
    text = _marked_text(template, values, table)
    settle = _settle_shell if template.kind == "slurm" else _settle_yaml
    return Rendered(settle(text, table.printed), template.template_id, template.sha256)


def frozen(value: Any) -> Any:
    """The value with every list and mapping in it made read-only."""
    if isinstance(value, Mapping):
        return MappingProxyType({str(k): frozen(v) for k, v in value.items()})
    if isinstance(value, list | tuple):
        return tuple(frozen(v) for v in value)
    return value


def _marked_text(template: Template, values: Mapping[str, object], table: _Table) -> str:
    from jinja2 import TemplateError

    from orchestrator.templates.environment import Done, defined, make_environment

    def emit(value: Any, file: str, line: int) -> Done:
        return Done(table.mark(value, file, line))

    sources = {s.name: s for s in template.sources}
    filters: dict[str, Callable[[Any], Any]] = {
        "comment": lambda value: _Marked(defined(value), "comment")
    }
    if template.kind == "slurm":
        filters["directive"] = lambda value: _Marked(defined(value), "directive")
    environment = make_environment(sources, emit, filters)
    known = {name: frozen(value) for name, value in values.items()}
    try:
        return str(environment.get_template(template.sources[0].name).render(known))
    except (
        TemplateError,
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
        RecursionError,
    ) as fault:
        raise _fault(fault, template, known) from None


def _fault(fault: Exception, template: Template, known: Mapping[str, object]) -> UserError:
    """A fault while rendering, with the place in the template where it came up."""
    file, line = _where(fault, template)
    said = str(getattr(fault, "message", None) or fault) or type(fault).__name__
    hint = None
    undefined = re.fullmatch(r"'(\w+)' is undefined", said)
    if undefined:
        close = nearest(undefined[1], known)
        hint = f"did you mean {close}?" if close else f"there are: {', '.join(sorted(known))}"
    elif "has no attribute" in said:
        hint = "where a value may be absent, ask first: {% if x is defined %}"
    elif "No filter named" in said:
        hint = "every value is quoted as it is printed; in #SBATCH lines say | directive, in"
        hint += " comments | comment"
    elif "unsafe" in said:
        hint = "templates run in a sandbox: values can be read, not changed"
    return UserError(f"{file}:{line}: {said}" if line else f"{file}: {said}", hint=hint)


def _where(fault: Exception, template: Template) -> tuple[str, int | None]:
    """File and line of a fault: those that it names, else those of the innermost frame that
    belongs to a template.
    """
    files = {s.path for s in template.sources}
    place: tuple[str, int | None] = (str(template.path), getattr(fault, "lineno", None))
    if getattr(fault, "filename", None) in files:
        return str(fault.filename), place[1]  # type: ignore[attr-defined]
    frame = fault.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename in files:
            place = (frame.tb_frame.f_code.co_filename, frame.tb_lineno)
        frame = frame.tb_next
    return place


def _settle_shell(text: str, printed: list[_Printed]) -> str:
    return _settle(text, printed, shell.places(text), _shell_text)


def _settle_yaml(text: str, printed: list[_Printed]) -> str:
    return _settle(text, printed, yamltext.places(text), _yaml_text)


def _settle(
    text: str,
    printed: list[_Printed],
    places: Iterable[tuple[int, int, int, Any]],
    write: Callable[[_Printed, Any], str],
) -> str:
    """The text with every mark replaced by what its value looks like there."""
    parts: list[str] = []
    at = 0
    for start, end, number, place in places:
        item = printed[number]
        try:
            parts += [text[at:start], write(item, place)]
        except Unfit as fault:
            where = f"{item.file}:{item.line}" if item.line else item.file or "template"
            raise UserError(f"{where}: the value {fault}", hint=fault.cure) from None
        at = end
    return "".join([*parts, text[at:]])


def _shell_text(item: _Printed, place: shell.Place) -> str:
    at = shell.Place
    if place == at.DIRECTIVE:
        if item.mode != "directive":
            raise Unfit("stands in a directive", "write {{ x | directive }}")
        return quoting.directive(item.value)
    if place in (at.COMMENT, at.GLUED):
        if item.mode != "comment":
            raise Unfit("stands in a comment", "write {{ x | comment }}")
        # Never `#SBATCH`, whatever the value is.
        return (" " if place == at.GLUED else "") + quoting.comment(item.value)
    if item.mode != "value":
        raise Unfit(f"has | {item.mode}, but stands in {place}", f"remove | {item.mode}")
    if place == at.ARITHMETIC and isinstance(item.value, int):
        return quoting.word(item.value)
    if place != at.WORD:
        raise Unfit(
            f"stands in {place}, where quoting it does not help",
            'set a variable first, name={{ x }}, and use "$name" there',
        )
    return quoting.word(item.value)


def _yaml_text(item: _Printed, place: yamltext.Place) -> str:
    if place == yamltext.Place.COMMENT:
        if item.mode != "comment":
            raise Unfit("stands in a comment", "write {{ x | comment }}")
        return quoting.comment(item.value)
    if item.mode != "value":
        raise Unfit(f"has | {item.mode}, but stands in {place}", f"remove | {item.mode}")
    if place == yamltext.Place.PART:
        raise Unfit(
            f"stands in {place}",
            "make the whole text one value, without quotes: {{ 'prefix-' ~ x }}",
        )
    return quoting.yaml_value(item.value)
