"""The Jinja2 environment: a sandbox in which every value that is printed goes through us."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from jinja2 import (
    FunctionLoader,
    StrictUndefined,
    TemplateSyntaxError,
    Undefined,
    nodes,
    pass_context,
)
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream
from jinja2.sandbox import ImmutableSandboxedEnvironment

from orchestrator.errors import UserError
from orchestrator.templates.template import Source, canonical_name

Emit = Callable[[Any, str, int], "Done"]
"""Value, file and line (0 = not known) -> what stands for it in the text."""
_HTML = (
    "safe", "escape", "e", "forceescape", "xmlattr", "urlize", "striptags", "tojson",
    "pprint", "random", "filesizeformat",
)  # fmt: skip
"""Filters of Jinja2 that make no sense here, or would differ from one rendering to the next."""


class Done(str):
    """Text that is finished: it is not quoted again."""

    __slots__ = ()

    def __html__(self) -> str:
        return self


class _EveryValue(Extension):
    """Turns `{{ x }}` into `{{ (x) | qvl_emit(file, line) }}`."""

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        file = stream.filename or stream.name or ""
        for token in stream:
            line = token.lineno
            if token.type == "variable_end":
                yield Token(line, "rparen", ")")
                yield Token(line, "pipe", "|")
                yield Token(line, "name", "qvl_emit")
                yield Token(line, "lparen", "(")
                yield Token(line, "string", file)
                yield Token(line, "comma", ",")
                yield Token(line, "integer", cast(str, line))  # the parser wants the number
                yield Token(line, "rparen", ")")
            yield token
            if token.type == "variable_begin":
                yield Token(line, "lparen", "(")


class Sandbox(ImmutableSandboxedEnvironment):
    """Values cannot be changed, private attributes not reached, undefined names not printed."""

    concat = staticmethod(lambda parts: Done("".join(parts)))

    def join_path(self, template: str, parent: str) -> str:
        return canonical_name(template, parent)


def make_environment(
    sources: Mapping[str, Source], emit: Emit, filters: Mapping[str, Callable[[Any], Any]]
) -> Sandbox:
    """An environment for one rendering of these files."""

    def load(name: str) -> tuple[str, str, Callable[[], bool]] | None:
        source = sources.get(name)
        return None if source is None else (source.text, source.path, lambda: True)

    environment = Sandbox(
        undefined=StrictUndefined,
        loader=FunctionLoader(load),
        extensions=[_EveryValue],
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

    # With the context as argument, neither is called while a template is compiled.
    @pass_context
    def qvl_emit(_: object, value: Any, file: str = "", line: int = 0) -> Done:
        if isinstance(value, Done):
            return value
        return emit(defined(value), file, line)

    for name in _HTML:
        del environment.filters[name]
    environment.globals.pop("lipsum")
    environment.filters.update(filters)
    environment.filters["qvl_emit"] = qvl_emit
    environment.finalize = qvl_emit
    return environment


def defined(value: Any) -> Any:
    """The value itself. Raises UndefinedError, naming it, if it is not defined."""
    if isinstance(value, Undefined):
        str(value)
    return value


def parse(source: Source) -> nodes.Template:
    """The syntax tree. Raises UserError with file and line."""
    environment = make_environment({}, _nothing, {"directive": str, "comment": str})
    try:
        tree = environment.parse(source.text, source.name, source.path)
    except TemplateSyntaxError as fault:
        raise UserError(
            f"{source.path}:{fault.lineno}: {fault.message}",
            hint="`qvl-orchestrate template check` shows what else is wrong",
        ) from None
    for node in tree.find_all((nodes.EvalContextModifier, nodes.ScopedEvalContextModifier)):
        raise UserError(
            f"{source.path}:{node.lineno}: autoescape is for HTML",
            hint="remove it: every value is quoted here",
        )
    return tree


def _nothing(_value: Any, _file: str, _line: int) -> Done:
    return Done()
