"""A folder of templates, and short words to render them with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import UserError
from orchestrator.templates.find import find_template
from orchestrator.templates.render import render

MARK = "{# qvl-template api=1 #}\n"
Say = Callable[..., str]


@pytest.fixture
def rendered(tmp_path: Path) -> Say:
    """Text and values -> what comes out; `kind` is slurm unless said otherwise."""

    def run(text: str, kind: Any = "slurm", **values: object) -> str:
        path = tmp_path / "t.j2"
        path.write_text(MARK + text)
        return render(find_template(kind, "t.j2", explicit=path), values).text

    return run


@pytest.fixture
def refused(rendered: Say) -> Say:
    """The same for what must be refused: the message and the cure."""

    def run(text: str, kind: str = "slurm", **values: object) -> str:
        with pytest.raises(UserError) as caught:
            rendered(text, kind, **values)
        return str(caught.value)

    return run
