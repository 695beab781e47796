"""What the blocks of the configuration files are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from orchestrator.config.faults import Fault


def bundle(faults: tuple[Fault, ...]) -> PydanticCustomError:
    """Faults as one pydantic error; the readers of job.yaml and site.yaml take them out again."""
    return PydanticCustomError("faults", "{count} faults", {"count": len(faults), "faults": faults})


def refuse(message: str, hint: str | None = None) -> PydanticCustomError:
    """One fault of the value itself."""
    return bundle((Fault((), message, hint),))


def unique(values: tuple[str, ...]) -> tuple[str, ...]:
    """The values, each of which must be given once."""
    for value in values:
        if values.count(value) > 1:
            raise refuse(f"{value} is given twice", "remove one of them")
    return values


def as_tuple(value: Any) -> Any:
    """A list as the tuple that a frozen model holds."""
    return tuple(value) if isinstance(value, list) else value


Text = Annotated[str, Field(min_length=1, max_length=4096)]
Positive = Annotated[int, Field(ge=1, le=2**31)]
T = TypeVar("T")
Many = Annotated[tuple[T, ...], BeforeValidator(as_tuple)]
"""A list in the file."""
Texts = Many[Text]
Names = Annotated[Texts, AfterValidator(unique)]


def without_nulls(data: Any) -> Any:
    """A block whose nulls mean the default, as in lines that are written and left empty."""
    return {k: v for k, v in data.items() if v is not None} if isinstance(data, Mapping) else data


TEMPLATE_FIELDS = ("template", "templates_dir", "frozen")
"""Fields of a resolved block that say which template it is rendered with (`templates.find`)."""


class Section(BaseModel):
    """A block of fields: unknown ones refused, no silent conversion, frozen."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, populate_by_name=True
    )
