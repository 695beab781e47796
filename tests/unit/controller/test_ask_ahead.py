"""A pass over many runs asks each backend once for all of them, where the answer is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.base import JobRef
from orchestrator.backends.slurm.backend import CAPABILITIES
from orchestrator.controller import loop
from orchestrator.errors import Unreachable, UserError
from orchestrator.registry.store import Registry, RunEntry


@dataclass
class Asked:
    """A backend that notes what it is asked for."""

    capabilities: Any = CAPABILITIES
    fault: Exception | None = None
    questions: list[list[JobRef]] = field(default_factory=list)

    def observe(self, jobs: Sequence[JobRef]) -> dict[str, Any]:
        self.questions.append(list(jobs))
        if self.fault is not None:
            raise self.fault
        return {}


def entry(number: int, job: str | None, **more: Any) -> RunEntry:
    fields = {"name": "x", "backend": "slurm", "uri": f"/r/{number}", "created_at": 0.0, "gpus": 1}
    row = {"backend_job_id": job, "backend_job_key": job and f"x-{number}-1"}
    return RunEntry(run_id=f"x-{number}", row=row, **{**fields, **more})


ENTRIES = [
    entry(1, "11"),
    entry(2, "12"),
    entry(3, None),
    entry(4, "14", final=True),
    replace(entry(5, None), row=None),
]


ASKED = [JobRef("11", "x-1-1"), JobRef("12", "x-2-1")]


def ask(monkeypatch: pytest.MonkeyPatch, folder: Path, backend: Asked) -> list[list[JobRef]]:
    monkeypatch.setattr(loop, "load_backend", lambda *_: backend)
    loop.ask_ahead(Registry(folder), ENTRIES)
    return backend.questions


def test_one_question_for_all_that_have_a_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert ask(monkeypatch, tmp_path, Asked()) == [ASKED]


def test_a_backend_that_forgets_its_answers_is_not_bothered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forgetful = replace(CAPABILITIES, keeps_answers=False)
    assert ask(monkeypatch, tmp_path, Asked(forgetful)) == []


@pytest.mark.parametrize("fault", [Unreachable("silent"), UserError("no squeue here")])
def test_a_fault_is_left_to_the_runs_themselves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: Exception
) -> None:
    assert ask(monkeypatch, tmp_path, Asked(fault=fault)) == [ASKED]
