"""`template check --run`: the batch file is played through, with stubs instead of Slurm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.config.load import load_site
from orchestrator.config.models.site import SiteConfig
from orchestrator.errors import UserError
from orchestrator.operations import site_templates as templates
from orchestrator.operations.site_templates import (
    Report,
    check_template,
    rehearse_template,
    site_template,
)
from orchestrator.templates import rehearsal
from orchestrator.templates.rehearsal import STORIES, may_run
from tests.unit.templates.conftest import MARK

EXAMPLES = Path(__file__).parents[3] / "slurm" / "examples"
EXTENDS = '{% extends "slurm/train.sbatch.j2" %}\n'


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "_sbatch", lambda *_: ([], False))
    monkeypatch.setattr(templates, "SHAPES", ((1, 1), (4, 8)))
    monkeypatch.setattr(rehearsal, "LIMIT_S", 20.0)


def run(site: SiteConfig, template: Path | None = None) -> Report:
    return rehearse_template(site, check_template(site, site_template(site, template)))


def own(tmp_path: Path, block: str, body: str) -> Path:
    path = tmp_path / "t.j2"
    path.write_text(f"{MARK}{EXTENDS}{{% block {block} %}}\n{body}\n{{% endblock %}}\n")
    return path


def test_what_ships_lives_through_everything() -> None:
    report = run(SiteConfig())
    assert report.findings == ()
    assert [a.story for a in report.acts] == [s.name for s in STORIES] * 2
    first = report.acts[0].seen
    assert first == "survived, waited for the agents, asked for the requeue, ended with 75"
    assert {a.shape for a in report.acts} == {"1 x 1 GPUs", "4 x 8 GPUs"}


@pytest.mark.parametrize("name", sorted(p.name for p in EXAMPLES.iterdir()))
def test_the_examples_do_too(tmp_path: Path, name: str) -> None:
    """The container's image is one that can be read; everything else is as it ships."""
    image = tmp_path / "image.sif"
    image.touch()
    text = (EXAMPLES / name / "site.yaml").read_text()
    copy = tmp_path / "site.yaml"
    copy.write_text(text.replace("/shared/images/qvl-train.sif", str(image)))
    folder = str(EXAMPLES / name / "templates")
    site = load_site(copy).model_copy(update={"templates_dir": folder})
    report = run(site)
    assert report.findings == ()
    assert len(report.acts) == 2 * len(STORIES)
    assert not any(a.refused for a in report.acts)


@pytest.mark.parametrize(
    ("block", "body", "what"),
    [
        ("setup", "trap - TERM", "a notice: the notice ended the shell"),
        ("setup", "o=errexit; set -o $o", "a notice: it did not ask for the requeue"),
        ("setup", ". /dev/stdin <<< 'exit 3'", "ended with 3 before it started an agent"),
        ("launch", "sleep 60 & # srun orchestrator.agent", "started no agent within 2 s"),
        ("teardown", "qvl_code=0", "a notice: it ended with 0 instead of 75"),
        ("setup", "timeout() { :; }", "a notice: it did not ask for the requeue"),
    ],
)
def test_what_the_static_check_cannot_see(
    tmp_path: Path, block: str, body: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "LIMIT_S", 2.0 if "within" in what else 20.0)
    monkeypatch.setattr(rehearsal, "STORIES", STORIES[:1])
    monkeypatch.setattr(templates, "SHAPES", ((1, 1),))
    said = [str(f) for f in run(SiteConfig(), own(tmp_path, block, body)).findings]
    assert any(what in x for x in said), said


def test_a_start_that_is_refused_here_is_no_fault(tmp_path: Path) -> None:
    template = own(tmp_path, "setup", "echo no /scratch here >&2; [ -e /no/such ] || exit 78")
    report = run(SiteConfig(), template)
    assert report.ok
    assert [a.refused for a in report.acts] == [True, True]
    assert "ended with 78 before it started an agent, saying: no /scratch here" in report.notes[0]


def test_nothing_of_this_machine_is_reached_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another PATH, an empty folder, no variable of ours; what is missing counts as done."""
    monkeypatch.setenv("QVL_PRIVATE", "swordfish")
    seen = tmp_path / "seen"
    body = (
        f"{{ pwd; ls; command -v rm; env; }} > {seen} 2>&1\n"
        "rm -rf /no/such; nvidia-smi || exit 78; module load cuda || exit 78"
    )
    report = run(SiteConfig(), own(tmp_path, "setup", body))
    assert report.findings == ()
    text = seen.read_text()
    assert "qvl-rehearsal-" in text.splitlines()[0]
    assert "swordfish" not in text
    assert "/rm" not in text
    assert not Path(text.splitlines()[0]).exists(), "removed again"


def test_a_file_of_somebody_else_is_not_run(tmp_path: Path) -> None:
    path = own(tmp_path, "setup", "true")
    may_run([path])
    path.chmod(0o666)
    with pytest.raises(UserError, match="is not run"):
        may_run([path])
    path.chmod(0o644)
    tmp_path.chmod(0o777)
    with pytest.raises(UserError, match="is not run"):
        may_run([path])
    tmp_path.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(path, 4711, -1)
        with pytest.raises(UserError, match="is not run: .* belongs to"):
            may_run([path])
