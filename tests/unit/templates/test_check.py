"""What a template must not lose is missed, at its line, with the cure; ours loses nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.models.site import SiteConfig
from orchestrator.config.reading.site import parse_site
from orchestrator.operations import site_templates as templates
from orchestrator.operations.site_templates import check_template, sample_values, site_template
from orchestrator.templates.check import Shape, check
from orchestrator.templates.directives import Directive, directives
from orchestrator.templates.find import find_template
from orchestrator.templates.render import render
from orchestrator.templates.starter import starter_text
from orchestrator.templates.template import Template
from tests.unit.templates.conftest import MARK

SITE = SiteConfig()
EXTENDS = '{% extends "slurm/train.sbatch.j2" %}\n'


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "_sbatch", lambda *_: ([], False))


def found(tmp_path: Path, text: str, site: SiteConfig = SITE) -> list[str]:
    path = tmp_path / "t.j2"
    path.write_text(MARK + text)
    report = check_template(site, site_template(site, path))
    return [f"{Path(f.file).name}:{f.line}: {f.what} -> {f.cure}" for f in report.findings]


def whole(old: str = "", new: str = "") -> str:
    """Our whole template as a copy, with one change."""
    text = site_template(SITE, None).text.removeprefix(MARK)
    assert old in text, old
    return text.replace(old, new)


@pytest.mark.parametrize("nodes", [1, 4])
@pytest.mark.parametrize(
    "slurm", ["", 'gpu_request = "gres"', 'gpu_request = "gres"\ngres = "gpu"\ngpu_type = "a"']
)
def test_ours_loses_nothing(nodes: int, slurm: str) -> None:
    site = parse_site(f"[slurm]\n{slurm}\n".encode(), "site.toml")
    assert check_template(site, site_template(site, None)).findings == ()


def test_the_starter_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.j2"
    path.write_text(starter_text())
    ours, theirs = site_template(SITE, None), site_template(SITE, path)
    values = sample_values(SITE, 4, 8)
    assert render(ours, values).text == render(theirs, values).text
    assert check_template(SITE, theirs).ok


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("#!/bin/bash", "#!/bin/sh", "does not begin with #!/bin/bash"),
        ("#SBATCH --requeue\n", "", "--requeue is missing"),
        ("#SBATCH --requeue", "#SBATCH --no-requeue", "--no-requeue: Slurm would not"),
        ("--open-mode=append", "--open-mode=truncate", "--open-mode is 'truncate'"),
        ("#SBATCH --open-mode=append\n", "", "--open-mode is missing"),
        ("--signal=USR1@", "--signal=B:USR1@", "the notice goes to the shell only (B:)"),
        ("--signal=USR1@", "--signal=INT@", "--signal is 'INT@60'"),
        ("#SBATCH --export=NONE\n", "", "--export is missing"),
        ("--nodes={{ nodes | directive }}\n", "--nodes=3\n", "--nodes is '3'"),
        ("--ntasks-per-node=1\n#", "--ntasks-per-node=2\n#", "--ntasks-per-node is '2'"),
        ("#SBATCH {{ option | directive }}", "", "no GPUs are asked for"),
        ("#SBATCH --requeue\n", "#SBATCH --requeue\n#SBATCH -G 2\n", "--gpus asks for"),
        ("#SBATCH --requeue\n", "#SBATCH --requeue\n#SBATCH --arr=1-3\n", "--array cannot be"),
        ("trap : TERM", "# trap : TERM", "no trap keeps the shell alive"),
        ("export QVL_SPEC=", "QVL_SPEC=", "spec does not reach the agent"),
        ("QVL_VERDICT_FILE", "QVL_OTHER_FILE", "no place for its verdict"),
        ("scontrol requeue incomplete", "scontrol requeue", "a plain requeue brings back"),
        ("scontrol requeue incomplete", "true", "nothing asks Slurm to start the job again"),
        ("\nsrun ", "\nmpirun ", "the agent is not started by srun"),
        ("--kill-on-bad-exit=0", "--kill-on-bad-exit=1", "srun without --kill-on-bad-exit=0"),
        ("--export=ALL", "--export=NONE", "srun without --export=ALL"),
        ("orchestrator.agent - &", "orchestrator.agent -", "srun without &"),
        ('exit "$qvl_code"', "exit 0", "'exit 0': the shell would leave"),
        ("--signal=USR1@{{ signal_s | directive }}", "--signal=USR1@0", "is 'USR1@0': no notice"),
        ("while kill -0", "# while kill -0", "nothing waits for the agents"),
        ('; do wait "$qvl_agents"; done', "; do sleep 1; done", "nothing waits for the agents"),
        ("srun --nodes={{ nodes }}", "srun --nodes=1", "with --nodes=1, in a job of 4 x 8 GPUs"),
        ("--ntasks={{ nodes }}", "-n 1", "with --ntasks=1, in a job of 4 x 8 GPUs"),
        ("--ntasks-per-node=1 --cpus", "--ntasks-per-node=8 --cpus", "with --ntasks-per-node=8"),
    ],
)
def test_a_copy_that_lost_something(tmp_path: Path, old: str, new: str, what: str) -> None:
    said = found(tmp_path, whole(old, new))
    assert any(what in x for x in said), said
    assert all(re.match(r"t\.j2:\d+: .+ -> .+", x) for x in said)


@pytest.mark.parametrize(
    ("block", "body", "what"),
    [
        ("setup", "set -euo pipefail", "t.j2:4: 'set -euo pipefail': the shell would leave before"),
        ("setup", "set -o errexit", "t.j2:4: 'set -o errexit'"),
        ("setup", "set -u -e", "t.j2:4: 'set -u -e': the shell would leave before"),
        ("setup", "set -uo pipefail -o errexit", "'set -uo pipefail -o errexit'"),
        ("setup", "set -uo errexit", "'set -uo errexit'"),
        ("setup", "shopt -so errexit", "t.j2:4: 'shopt -so errexit'"),
        ("setup", "shopt -o -s errexit", "'shopt -o -s errexit'"),
        ("setup", "true && set -e", "'set -e': the shell"),
        ("setup", "trap 'exit 1' ERR", "the shell would leave before"),
        ("setup", "if true; then\n  exit 0\nfi", "t.j2:5: 'exit 0': the shell would leave"),
        ("setup", "[ -e /x ] || exit", "'exit': the shell would leave"),
        ("setup", "exec bash -l", "t.j2:4: 'exec bash -l': the shell that asks"),
        ("setup", "trap '' TERM USR1", "the notice would kill the shell, or never reach"),
        ("setup", "trap - TERM", "the notice would kill"),
        ("setup", "if true; then", "bash cannot read"),
        ("setup", "scontrol requeue $SLURM_JOB_ID", "t.j2:4: 'scontrol requeue"),
        ("teardown", "exit 0", "t.j2:4: 'exit 0'"),
        ("launch", "python -m orchestrator.agent -", "t.j2:4: the agent is not started by srun"),
        ("launch", "echo nothing", "t.j2:3: the agent is not started by srun"),
        ("directives", "#SBATCH --nodes=2", "no GPUs are asked for"),
        ("setup", 'echo "{{ name }}"', "t.j2:4: the value stands in double quotes"),
        ("setup", "echo {{ partition }}", "t.j2:4: 'partition' is undefined"),
    ],
)
def test_a_block_that_breaks_something(tmp_path: Path, block: str, body: str, what: str) -> None:
    text = f"{EXTENDS}{{% block {block} %}}\n{body}\n{{% endblock %}}\n"
    said = found(tmp_path, text)
    assert any(what in x for x in said), said


@pytest.mark.parametrize(
    ("block", "body"),
    [
        ("setup", "module load cuda || exit 78"),
        ("setup", "exec 2>&1"),
        ("setup", "set -u; set +e"),
        ("setup", "set -o pipefail"),
        ("setup", "shopt -s extglob"),
        ("setup", "echo 'set -e' >> /dev/null"),
        ("setup", "[ -e / ] || exit 1"),
        ("setup", "if [ ! -e /x ]; then\n  exit 78\nfi"),
        ("setup", "set -u"),
        ("setup", 'x={{ name }}; echo "$x"'),
        ("directives", "{{ super() -}}\n#SBATCH --mail-type=FAIL"),
        ("teardown", "rm -rf /scratch/$SLURM_JOB_ID"),
        ("directives", "{{ super() -}}\n#SBATCH --no-requeue"),  # ours comes later, and wins
    ],
)
def test_what_an_administrator_may_do(tmp_path: Path, block: str, body: str) -> None:
    assert found(tmp_path, f"{EXTENDS}{{% block {block} %}}\n{body}\n{{% endblock %}}\n") == []


@pytest.mark.parametrize("line", ["set -e", "module purge; shopt -so errexit", "exit 0"])
def test_the_site_s_own_lines_are_looked_at_too(line: str) -> None:
    site = parse_site(f'[slurm]\nsetup = ["{line}"]\n'.encode(), "site.toml")
    said = [str(f) for f in check_template(site, site_template(site, None)).findings]
    assert len(said) == 1
    assert "the shell would leave" in said[0]


def test_a_template_that_does_not_extend_ours(tmp_path: Path) -> None:
    said = found(tmp_path, "#!/bin/bash\necho hello\n")
    assert len(said) > 8
    assert any('begin with {% extends "slurm/train.sbatch.j2" %}' in x for x in said)


def test_no_count_of_gpus_is_needed_where_the_site_asks_otherwise(tmp_path: Path) -> None:
    site = parse_site(b'[slurm]\ngpu_request = "none"\n', "site.toml")
    assert check_template(site, site_template(site, None)).ok
    text = f"{EXTENDS}{{% block directives %}}\n{{{{ super() -}}}}\n#SBATCH --gpus-per-node=2\n"
    assert any(
        "asks for 2 GPUs a node" in x for x in found(tmp_path, text + "{% endblock %}", site)
    )


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("#SBATCH --nodes=4 --requeue", [("nodes", "4"), ("requeue", "")]),
        ("#SBATCH -N 4 -n2", [("nodes", "4"), ("ntasks", "2")]),
        ("#SBATCH --nodes 4", [("nodes", "4")]),
        ("#SBATCH --no-req", [("no-requeue", "")]),
        ("#SBATCH --comment='a b' --nice=1", [("comment", "a b"), ("nice", "1")]),
        ("#SBATCH --nodes=4 # --nodes=5", [("nodes", "4")]),
        ("# SBATCH --nodes=4", []),
        (" #SBATCH --nodes=4", []),
        ("##SBATCH --nodes=4", []),
        ("#SBATCH--nodes=4", []),
        ("true\n#SBATCH --nodes=4", []),
        ("\n# c\n#SBATCH --nodes=4", [("nodes", "4")]),
    ],
)
def test_directives_are_read_as_sbatch_reads_them(line: str, options: list[Any]) -> None:
    assert [(d.name, d.value) for d in directives(f"#!/bin/bash\n{line}\n")] == options


def test_a_directive_knows_its_line() -> None:
    assert directives("#!/bin/bash\n\n#SBATCH -N 1\n") == (Directive(3, "nodes", "1"),)


GOLDEN = Path(__file__).parents[2] / "golden"
SHAPES = [(1, 1), (1, 8), (4, 8)]


@pytest.mark.parametrize(("nodes", "gpus"), SHAPES)
def test_what_ours_gives(nodes: int, gpus: int) -> None:
    """Renew after a wanted change: python -m tests.golden.renew"""
    from tests.golden.renew import name, text

    path = GOLDEN / name(nodes, gpus)
    assert text(nodes, gpus) == path.read_text(), "python -m tests.golden.renew, and look at it"


def test_the_shape_is_compared(tmp_path: Path) -> None:
    template: Template = find_template("slurm", "train.sbatch.j2")
    text = render(template, sample_values(SITE, 1, 8)).text
    assert check(text, template, Shape(1, 8)) == ()
    assert len(check(text, template, Shape(4, 8))) == 3, "--nodes, and srun on one of four nodes"
    assert len(check(text, template, Shape(1, 4))) == 1


ASK_SLURM = templates._sbatch


@pytest.mark.parametrize(
    ("said", "code", "answer", "asked"),
    [
        ("sbatch: Job 5 to start at 2026-01-01T00:00:00", 0, "", True),
        (
            "sbatch: error: resolve_ctls_from_dns_srv: Unknown host\n"
            "sbatch: fatal: Could not establish a configuration source",
            1,
            "",
            False,
        ),
        (
            "allocation failure: Requested node configuration is not available",
            1,
            "this cluster takes no job of 4 x 8 GPUs: allocation failure",
            True,
        ),
        (
            "sbatch: unrecognized option '--foo=3'\nTry \"sbatch --help\" for more information",
            1,
            "t.j2:4: sbatch refuses the job: unrecognized option '--foo=3'",
            True,
        ),
        ("sbatch: error: Unable to contact slurm controller", 1, "Slurm was not asked", False),
    ],
)
def test_what_sbatch_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, code: int, answer: str, asked: bool
) -> None:
    program = tmp_path / "sbatch"
    (tmp_path / "said").write_text(said + "\n")
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/said >&2\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    body = f"{EXTENDS}{{% block directives %}}\n#SBATCH --foo=3\n{{% endblock %}}\n"
    path = tmp_path / "t.j2"
    path.write_text(MARK + body)
    found, here = ASK_SLURM("#!/bin/bash\n", site_template(SITE, path), Shape(4, 8))
    assert here is asked
    assert len(found) == (1 if answer else 0)
    assert all(str(item).removeprefix(f"{tmp_path}/").startswith(answer) for item in found)
