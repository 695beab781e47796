"""What the models of libraries' arguments are made of."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator

from orchestrator.config.fields import Section, refuse

_YES = frozenset({"yes", "on", "y"})
_NO = frozenset({"no", "off", "n"})


class Arguments(Section):
    """Arguments of a library's class that a job file may give, in plain types."""

    SOURCE: ClassVar[str] = ""
    """The class, with its package and version."""
    OBJECTS: ClassVar[frozenset[str]] = frozenset()
    """Arguments that take a Python object."""

    def given(self) -> dict[str, Any]:
        """What was given, without the library's defaults."""
        return self.model_dump(exclude_unset=True)


def _switch(value: Any) -> Any:
    """`yes` and `off` as people mean them where true or false is wanted."""
    word = value.lower() if isinstance(value, str) else None
    return word in _YES if word in _YES | _NO else value


def _whole(value: Any) -> Any:
    """`1e3` as the whole number that it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _real(value: Any) -> Any:
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    try:
        return float(value)
    except OverflowError:
        raise refuse("the number is out of range") from None


Bool = Annotated[bool, BeforeValidator(_switch)]
Integer = Annotated[int, BeforeValidator(_whole)]
Real = Annotated[float, BeforeValidator(_real)]
Steps = Annotated[float, BeforeValidator(_real), AfterValidator(_whole)]
"""A number of steps, or below 1 a share of them."""
Auto = Literal["auto"]
"""Left to DeepSpeed or the Trainer."""
