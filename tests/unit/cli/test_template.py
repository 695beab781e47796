"""`template show|diff|check|init`, and what of a template a run records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.base import JobRef, Observation, Submission
from orchestrator.backends.slurm.backend import SlurmBackend
from orchestrator.clock import SystemClock
from orchestrator.contract import layout
from orchestrator.contract.jsonio import pretty, to_json
from orchestrator.contract.spec import StartFrom
from orchestrator.controller.observe import observe
from orchestrator.controller.reconcile import _submit_next
from orchestrator.controller.run import open_entry
from orchestrator.domain.decide import Requeue
from orchestrator.operations import site_templates as templates
from orchestrator.operations.submit import start_submission, with_template
from orchestrator.run_directory import attempts
from tests.harness.runs import prepared
from tests.unit.cli.shells import Built, Desk, Shell

MARK = "{# qvl-template api=1 #}\n"
EXTENDS = MARK + '{% extends "slurm/train.sbatch.j2" %}\n'


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site file, in force; no Slurm is asked."""
    file = tmp_path / "etc" / "site.toml"
    file.parent.mkdir()
    file.write_text('[slurm]\npartition = "gpu"\n')
    monkeypatch.setenv("QVL_SITE_FILE", str(file))
    monkeypatch.setattr(templates, "_sbatch", lambda *_: ([], False))
    return file


def put(site: Path, text: str) -> Path:
    path = site.parent / "templates" / "slurm" / "train.sbatch.j2"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_an_administrators_walk(shell: Shell, site: Path) -> None:
    found = shell.json("template", "init")
    path = Path(found["path"])
    assert path == site.parent / "templates" / "slurm" / "train.sbatch.j2"
    assert shell.json("template", "show")["origin"] == "site"
    assert shell.json("template", "diff")["equal"]
    assert shell.json("template", "check")["ok"]
    text = path.read_text()
    path.write_text(text.replace("{# #SBATCH --mail-type=FAIL #}", "#SBATCH --mail-type=FAIL"))
    assert path.read_text() != text
    changes = [x for x in shell("template", "diff").splitlines() if x[:1] in "+-"][2:]
    assert changes == ["+#SBATCH --mail-type=FAIL"]
    assert shell.json("template", "check")["ok"]


def test_init_never_overwrites(shell: Shell, site: Path) -> None:
    path = put(site, "mine")
    shell("template", "init", code=78)
    assert "exists and is left as it is" in shell.err
    assert path.read_text() == "mine"
    other = site.parent / "other.j2"
    shell("template", "init", "--output", str(other))
    assert "extends" in other.read_text()


def test_init_without_a_site_says_what_to_do(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("QVL_SITE_FILE", raising=False)
    shell("template", "init", code=78)
    assert "there is no site file" in shell.err
    assert "--site" in shell.err


def test_show(shell: Shell, site: Path) -> None:
    found = shell.json("template", "show")
    assert found["template"] == "checkout:slurm/train.sbatch.j2"
    assert len(found["sha256"]) == 64
    assert "{% block launch %}" in found["text"]
    rendered = shell("template", "show", "--rendered")
    assert "#SBATCH --partition=gpu" in rendered
    assert "{%" not in rendered
    put(site, EXTENDS)
    assert shell.json("template", "show")["origin"] == "site"
    assert shell.json("template", "show", "--ours")["origin"] == "checkout"


def test_show_values_names_everything_that_a_template_may_print(shell: Shell, site: Path) -> None:
    values = shell.json("template", "show", "--values")
    assert {"job_name", "nodes", "gpus_per_node", "options", "env", "spec", "slurm"} <= set(values)
    assert values["slurm"]["partition"] == "gpu"
    assert json.loads(shell("template", "show", "--values")) == values


def test_check_refuses_with_line_and_cure(shell: Shell, site: Path) -> None:
    path = put(site, EXTENDS + "{% block setup %}\nset -e\n{% endblock %}\n")
    found = shell.json("template", "check", code=78)
    assert not found["ok"]
    (finding,) = found["findings"]
    assert (finding["file"], finding["line"]) == (str(path), 4)
    said = shell("template", "check", code=78)
    assert f"{path}:4: 'set -e': the shell would leave" in said
    assert "cure: remove it" in said


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("#!/bin/bash\n", "train.sbatch.j2:1: the version of the template is missing"),
        ("{# qvl-template api=9 #}\n", "api=9, newer than this version's"),
        (MARK + "{% if %}", "train.sbatch.j2:2: "),
        (
            MARK + '{% extends "slurm/nothing.j2" %}',
            "train.sbatch.j2:2: 'slurm/nothing.j2' is none",
        ),
    ],
)
def test_a_template_that_cannot_be_read(shell: Shell, site: Path, text: str, what: str) -> None:
    put(site, text)
    for verb in ("show", "diff", "check"):
        shell("template", verb, code=78)
        assert what in shell.err
        assert "hint:" in shell.err


def test_what_cannot_be_rendered_is_a_finding(shell: Shell, site: Path) -> None:
    put(site, EXTENDS + "{% block setup %}\necho {{ partitoin }}\n{% endblock %}\n")
    (finding,) = shell.json("template", "check", code=78)["findings"]
    assert finding["line"] == 4
    assert "'partitoin' is undefined" in finding["what"]


def test_help_has_an_example(shell: Shell) -> None:
    for verb in ([], ["show"], ["diff"], ["check"], ["init"]):
        assert "Example" in shell("template", *verb, "--help")


def test_check_can_run_it(shell: Shell, site: Path) -> None:
    put(site, EXTENDS + "{% block setup %}\no=errexit; set -o $o\n{% endblock %}\n")
    assert shell.json("template", "check")["ran"] == []
    found = shell.json("template", "check", "--run", code=78)
    assert "running site:" in shell.err
    assert not found["ok"]
    assert "it did not ask for the requeue" in found["ran"][0]["faults"]
    put(site, EXTENDS)
    said = shell("template", "check", "--run")
    assert "a notice: survived, waited for the agents, asked for the requeue, ended with 75" in said
    put(site, EXTENDS).chmod(0o666)
    shell("template", "check", "--run", code=78)
    assert "is not run: everybody can write to" in shell.err


# --- what a run records


class Recording(SlurmBackend):
    """The Slurm backend without a Slurm: keeps what it was given; every job has ended."""

    def __init__(self) -> None:
        super().__init__(Path("/nowhere"))
        self.submitted: list[Submission] = []

    def submit(self, submission: Submission, key: str) -> JobRef:
        self.submitted.append(submission)
        return JobRef(str(len(self.submitted)), key)

    def observe(self, jobs: Sequence[JobRef]) -> Mapping[JobRef, Observation]:
        return {j: Observation(phase="gone", ending="preempted") for j in jobs}


def test_a_requeue_is_made_from_the_frozen_template(
    run: Built, tmp_path: Path, shell: Shell
) -> None:
    path = tmp_path / "own.j2"
    path.write_text(EXTENDS + "{% block setup %}\necho first\n{% endblock %}\n")
    backend = Recording()
    opened = replace(open_entry(run.registry, run.entry, SystemClock()), backend=backend)
    plain = replace(opened.job(), backend="slurm", slurm={"template": str(path)})
    opened.storage.put(layout.RESOLVED, pretty(to_json(with_template(plain))))
    newest = attempts.read_submissions(opened.storage)[-1]
    spec = replace(newest.spec, submission=2, backend="slurm")
    record = start_submission(opened, prepared(opened, spec), StartFrom(), reason="resume")
    assert record.template == f"user:{path}"

    path.write_text(EXTENDS + "{% block setup %}\necho second\n{% endblock %}\n")
    _submit_next(opened, observe(opened), Requeue(reason="preempted", not_before=0.0))
    first, later = backend.submitted
    assert "echo first" in first.text
    assert "echo first" in later.text
    assert later.template_sha256 == first.template_sha256 == record.template_sha256
    stored = attempts.read_submissions(opened.storage)[-1]
    assert (stored.number, stored.template) == (3, f"user:{path}")

    submitted = [e for e in shell.lines("events", run.entry.run_id) if e["kind"] == "submitted"]
    assert submitted[-1]["data"]["template_sha256"] == record.template_sha256
    # With `resume --job`, the template is looked for anew.
    assert "echo second" in backend.prepare(with_template(plain), spec).text


@pytest.mark.parametrize("backend", ["slurm", "kubernetes"])
def test_the_template_of_every_cluster_is_frozen(run: Built, tmp_path: Path, backend: Any) -> None:
    job = open_entry(run.registry, run.entry, SystemClock()).job()
    assert with_template(job) == job  # the local backend has none
    frozen = with_template(replace(job, backend=backend))
    block = frozen.slurm if backend == "slurm" else frozen.kubernetes
    assert block["frozen"]["sources"]
    assert json.loads(json.dumps(to_json(block))) == to_json(block)


def test_a_users_template_is_marked_in_status(run: Built, shell: Shell) -> None:
    from orchestrator.controller.status_rows import blank_row

    row = {**blank_row(run.entry), "state": "CANCELLED", "template": "user:/home/me/own.j2"}
    run.registry.saw(run.entry.run_id, row, final=True, at=0.0)
    assert "template: user:/home/me/own.j2" in shell("status", run.entry.run_id)
    row["template"] = "site:/etc/x.j2"
    run.registry.saw(run.entry.run_id, row, final=True, at=0.0)
    assert "template" not in shell("status", run.entry.run_id)
    assert "template: site:/etc/x.j2" in shell("status", "-v", run.entry.run_id)


def slurm_desk(desk: Desk) -> None:
    desk.job.write_text(desk.job.read_text().replace("backend: local", "backend: slurm"))


def test_submit_with_a_template(desk: Desk, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("PATH", "/usr/bin-of-nobody")
    slurm_desk(desk)
    own = tmp_path / "own.j2"
    own.write_text(EXTENDS + "{% block setup %}\necho mine\n{% endblock %}\n")
    text = desk("submit", str(desk.job), "--dry-run", "--template", str(own))
    assert "echo mine" in text
    site = tmp_path / "site.toml"
    site.write_text("allow_user_template = false\n")
    argv = ("submit", str(desk.job), "--dry-run", "--site", str(site))
    desk(*argv, "--template", str(own), code=78)
    assert "this site does not allow templates of users" in desk.err
    assert "echo mine" not in desk(*argv)


def test_submit_warns_but_does_not_stop_where_slurm_does_not_answer(
    desk: Desk, monkeypatch: Any
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin-of-nobody")
    slurm_desk(desk)
    assert "#SBATCH" in desk("submit", str(desk.job), "--dry-run")
    assert "warning Slurm: scontrol is not on PATH" in desk.err
