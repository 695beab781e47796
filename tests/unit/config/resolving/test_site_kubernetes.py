"""`kubernetes:` of site.yaml: who looks after runs."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.config.load import parse_job, resolve_loaded
from orchestrator.config.reading.site import parse_site
from orchestrator.errors import UserError
from tests.unit.config.conftest import JOB, Folder


def resolved(folder: Folder, site: str, block: str, backend: str = "kubernetes") -> dict[str, Any]:
    loaded = parse_job(JOB, folder.job, [f"backend={backend}", f"kubernetes={block}"])
    return dict(resolve_loaded(loaded, parse_site(site.encode(), "site.yaml")).kubernetes)


def test_the_site_chooses_and_a_job_may_choose_otherwise(folder: Folder) -> None:
    site = "kubernetes: {controller: job, controller_account: looker}\n"
    assert resolved(folder, site, "{image: a}") == {
        "image": "a",
        "controller": "job",
        "controller_account": "looker",
    }
    own = resolved(folder, site, "{image: a, controller: none}")
    assert own["controller"] == "none"
    assert resolved(folder, "", "{image: a}") == {"image": "a"}
    assert resolved(folder, site, "{image: a}", backend="local") == {"image": "a"}


def test_what_is_no_choice_is_refused_with_its_line() -> None:
    with pytest.raises(
        UserError, match=r"site.yaml:2 kubernetes.controller: must be process, job, deployment"
    ):
        parse_site(b"kubernetes:\n  controller: daemon\n", "site.yaml")
