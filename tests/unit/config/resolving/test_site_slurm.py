"""What a site says about Slurm: read, merged into a job, and held against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.load import load_site, parse_job, resolve_loaded
from orchestrator.config.models.site import SiteConfig
from orchestrator.config.reading.site import parse_site
from orchestrator.config.resolving.slurm import resolve_slurm, slurm_faults
from orchestrator.errors import JobFileError, UserError
from tests.unit.config.conftest import JOB, Folder

SITE = """\
max_parallel_runs: 2

slurm:
  partition: gpu
  account: vision
  gpu_request: gres
  modules: [cuda/12, gcc]
  carry_env: [http_proxy, NOT_SET]
  env: {NCCL_DEBUG: WARN, OMP_NUM_THREADS: 8}
  allow_options: [container]
  partitions:
  - {name: gpu, grace_s: 120}
  - {name: scavenge, grace_s: 20}
  gpu_types:
  - {name: a100, type: nvidia_a100}
  - {name: h100, constraint: h100, partition: scavenge}
  container:
    image: /images/train.sif
    python: /opt/py/bin/python
  limits:
  - field: time_limit
    max: 1-00:00:00
    reason: long jobs block maintenance
  - field: gpus
    max: 16
    partition: scavenge
    reason: two nodes each, so that all get some
  - field: account
    allowed: [vision, speech]
    required: true
    reason: GPU hours are charged
"""


PLAIN = JOB.replace("preemption: {grace_s: 60}\n", "")


def site(text: str = SITE) -> SiteConfig:
    return parse_site(text.encode(), "site.yaml")


def job(*overrides: str) -> Any:
    changes = ("backend=slurm", *overrides)
    return parse_job(PLAIN, Path("job.yaml"), changes).spec


def block(*overrides: str, text: str = SITE) -> Any:
    return resolve_slurm(job(*overrides), site(text), environ={"http_proxy": "p"}, template=None)


def said(*overrides: str, text: str = SITE) -> list[str]:
    return [str(f.error()) for f in slurm_faults(job(*overrides), site(text))]


def refused(text: str) -> str:
    with pytest.raises(UserError) as caught:
        site(text)
    return str(caught.value)


# --- the file


def test_a_whole_site_file_is_read() -> None:
    rules = site().slurm
    assert [p.name for p in rules.partitions] == ["gpu", "scavenge"]
    assert rules.limits[0].max == 86400
    assert rules.container is not None
    assert rules.container.command == ("apptainer", "exec", "--nv")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            "slurm:\n  partitoin: a\n",
            "site.yaml:2 slurm.partitoin: unknown field\n  hint: did you mean partition?",
        ),
        ("slurm:\n  x1: a\n", "site.yaml:2 slurm.x1: unknown field\n  hint: known here: parti"),
        (
            "slurm:\n  partitions:\n  - name: a\n    grace: 3\n",
            "site.yaml:4 slurm.partitions[0].grace: unk",
        ),
        (
            "slurm:\n  partitions:\n  - grace_s: 3\n",
            "site.yaml:3 slurm.partitions[0].name: is missing",
        ),
        (
            "slurm:\n  partitions:\n  - name: a\n  - name: b\n    grace_s: -1\n",
            "site.yaml:5 slurm.partitions[1].grace_s: must be more than 0, not -1",
        ),
        (
            "slurm:\n  partitions: [{name: a}, {nam: b}]\n",
            "site.yaml:2 slurm.partitions[1].nam",
        ),
        (
            "slurm:\n  gpu_request: gpu\n",
            "site.yaml:2 slurm.gpu_request: must be gpus-per-node",
        ),
        (
            "slurm:\n  partition: a b\n",
            "site.yaml:2 slurm.partition: 'a b' cannot stand in a direct",
        ),
        ('slurm: {account: "a\\n#SBATCH --x"}\n', "cannot stand in a directive"),
        ("slurm: {gres: ''}\n", "site.yaml:1 slurm.gres: "),
        ("slurm: {carry_env: [HF_TOKEN]}\n", "HF_TOKEN looks like a secret by its name"),
        ("slurm: {carry_env: [a b]}\n", "'a b' is not a name of a variable"),
        ("slurm: {env: {WANDB_API_KEY: x}}\n", "WANDB_API_KEY looks like a secret"),
        ("slurm: {env: {QVL_X: x}}\n", "QVL_X is set by the agent or the scheduler"),
        ("slurm: {allow_options: [requeue]}\n", "requeue cannot be left to jobs"),
        (
            "slurm: {srun_options: [--overlap, --jobid=3]}\n",
            "slurm.srun_options[1]: --jobid is not allowed here",
        ),
        (
            "slurm:\n  partition: z\n  partitions: [{name: a}]\n",
            "site.yaml:2 slurm.partition: z is not in partitions",
        ),
        (
            "slurm:\n  partitions:\n  - name: a\n  - name: a\n",
            "site.yaml:4 slurm.partitions[1].name: a is given twice",
        ),
        (
            "slurm:\n  limits:\n  - field: time_limit\n    max: 3\n",
            "site.yaml:3 slurm.limits[0].reason: is missing",
        ),
        (
            "slurm: {limits: [{field: time_limit, reason: r}]}\n",
            "slurm.limits[0]: limits nothing",
        ),
        (
            "slurm: {limits: [{field: nodes, allowed: ['1'], reason: r}]}\n",
            "slurm.limits[0]: nodes has a range, no list\n  hint: use min and max",
        ),
        (
            "slurm: {limits: [{field: qos, max: 3, reason: r}]}\n",
            "qos has no range\n  hint: use allowed",
        ),
        (
            "slurm:\n  limits:\n  - field: time_limit\n    max: 30:00\n    reason: r\n",
            "site.yaml:4 slurm.limits[0].max: must be a duration",
        ),
        (
            "slurm:\n  limits:\n  - {field: nodes, max: 1, reason: r,\n     partition: z}\n"
            "  partitions: [{name: a}]\n",
            "site.yaml:4 slurm.limits[0].partition: z is not in partitions",
        ),
    ],
)
def test_refusals_name_line_field_and_cure(text: str, what: str) -> None:
    assert what in refused(text)


def test_every_fault_is_told_at_once() -> None:
    found = refused("slurm:\n  a1: 1\n  b1: 2\n")
    assert "site.yaml:2 slurm.a1" in found
    assert "site.yaml:3 slurm.b1" in found


def test_a_site_of_an_earlier_version_says_the_same() -> None:
    text = """
[slurm]
partition = "gpu"
env = { OMP_NUM_THREADS = "8" }
[[slurm.partitions]]
name = "gpu"
grace_s = 120
[[slurm.limits]]
field = "time_limit"
max = "1-00:00:00"
reason = "r"
"""
    now = """
slurm:
  partition: gpu
  env: {OMP_NUM_THREADS: 8}
  partitions: [{name: gpu, grace_s: 120}]
  limits: [{field: time_limit, max: 1-00:00:00, reason: r}]
"""
    assert parse_site(text.encode(), "site.toml") == parse_site(now.encode(), "site.yaml")
    with pytest.raises(UserError) as caught:
        parse_site(b"[slurm]\npartitoin = 'a'\nx1 = 3\n", "site.toml")
    said = str(caught.value)
    assert "site.toml slurm.partitoin: unknown field\n    hint: did you mean partition?" in said
    assert "site.toml slurm.x1: unknown field" in said


def test_templates_lie_beside_the_site_file(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text("")
    assert load_site(file).templates_dir == str(tmp_path / "templates")
    file.write_text("templates_dir: /etc/other\n")
    assert load_site(file).templates_dir == "/etc/other"
    file.write_text("templates_dir: mine\n")
    assert load_site(file).templates_dir == str(tmp_path / "mine")


# --- merged into a job


def test_defaults_of_the_site() -> None:
    found = block()
    assert found.block["partition"] == "gpu"
    assert found.block["account"] == "vision"
    assert found.block["gpu_request"] == "gres"
    assert found.block["modules"] == ["cuda/12", "gcc"]
    assert found.block["wrap"] == ["apptainer", "exec", "--nv", "/images/train.sif"]
    assert found.python == "/opt/py/bin/python"


def test_the_job_wins_over_the_site() -> None:
    found = block("slurm.partition=scavenge", "slurm.account=speech", "python=/my/python")
    assert (found.block["partition"], found.block["account"]) == ("scavenge", "speech")
    assert found.python == "/my/python"


def test_only_named_variables_travel() -> None:
    found = block("env={OMP_NUM_THREADS: 4, MINE: a}")
    assert found.env == {
        "NCCL_DEBUG": "WARN",
        "OMP_NUM_THREADS": "4",
        "http_proxy": "p",
        "MINE": "a",
    }


def test_types_of_gpu() -> None:
    assert block("slurm.gpu_type=a100").block["gpu_type"] == "nvidia_a100"
    found = block("slurm.gpu_type=h100").block
    assert (found["gpu_type"], found["constraint"]) == (None, "h100")
    assert found["partition"] == "scavenge"
    both = block("slurm.gpu_type=h100", "slurm.constraint=ib|nvme").block
    assert both["constraint"] == "(ib|nvme)&h100"
    free = block("slurm.gpu_type=any", text="").block
    assert free["gpu_type"] == "any"


@pytest.mark.parametrize(
    ("overrides", "grace"),
    [
        ((), 120.0),
        (("slurm.partition=scavenge",), 20.0),
        (("slurm.partition=scavenge,gpu",), 20.0),
        (("preemption.grace_s=50",), 50.0),
    ],
)
def test_the_grace_is_that_of_the_partition(overrides: tuple[str, ...], grace: float) -> None:
    assert block(*overrides).grace_s == grace


def test_without_a_site_the_jobs_own_settings_hold() -> None:
    found = block("slurm.qos=low", text="")
    assert found.grace_s == 60.0  # the default
    assert found.block["qos"] == "low"
    assert found.block["gpu_request"] == "gpus-per-node"
    assert found.python is None


# --- held against a job


def test_a_job_within_the_limits_is_taken() -> None:
    assert said("resources.time_limit=4h", "resources.nodes=2") == []


@pytest.mark.parametrize(
    ("override", "what"),
    [
        (
            "resources.time_limit=2d",
            "resources.time_limit: time_limit 172800 s is more than 86400 s: long jobs block maint",
        ),
        (
            "slurm.account=other",
            "slurm.account: account other is not allowed: GPU hours are charged",
        ),
        ("slurm.partition=gpus", "the site has no partition gpus\n  hint: did you mean gpu?"),
        ("slurm.gpu_type=v100", "the site has no GPUs of type v100"),
        (
            "preemption.grace_s=300",
            "partition gpu gives 120 s from the notice to the kill, not 300",
        ),
        ("slurm.options=[--requeue]", "slurm.options[0]: --requeue is set by qvl-orchestrate"),
        ("slurm.options=[--no-req]", "slurm.options[0]: --no-req is not allowed here"),
        ("slurm.options=[--sig=USR2]", "--sig is not allowed here"),
        ("slurm.options=['--nice=1 --no-requeue']", "is no plain option"),
        ("slurm.options=[-N4]", "'-N4' is no plain option"),
        (
            "slurm.options=[--nodes=4]",
            "--nodes is set by qvl-orchestrate\n  hint: use resources.nodes",
        ),
        ("slurm.options=[--nic=4]", "--nic is not allowed here\n  hint: did you mean nice?"),
    ],
)
def test_what_the_site_refuses(override: str, what: str) -> None:
    assert any(what in line for line in said(override)), said(override)


def test_limits_of_one_partition() -> None:
    assert said("resources.nodes=9") == []
    (found,) = said("resources.nodes=9", "slurm.partition=scavenge", "preemption.grace_s=20")
    assert "gpus 18 is more than 16: two nodes each, so that all get some" in found


def test_a_field_that_must_be_given() -> None:
    text = SITE.replace("  account: vision\n", "", 1)
    assert any("slurm.account: must be given: GPU hours" in x for x in said(text=text))


def test_options_that_the_site_allows_besides() -> None:
    assert said("slurm.options=[--container=x, --nice=5]") == []
    assert said("slurm.options=[--bb=x]", text="") == []


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("slurm.partition=a b", "slurm.partition: 'a b' cannot stand in a directive"),
        ('slurm.comment="a\\n#SBATCH --x"', "slurm.comment: "),
        ("slurm.srun_options=[--jobid=3]", "slurm.srun_options[0]: --jobid is not allowed here"),
        ("slurm.partitoin=a", "slurm.partitoin: unknown field, did you mean partition?"),
        ("slurm.signal_s=0", "slurm.signal_s: "),
    ],
)
def test_a_bad_block_is_refused_where_it_is_read(override: str, what: str) -> None:
    with pytest.raises(JobFileError) as caught:
        job(override)
    assert what.partition(": ")[0] in str(caught.value)


def test_an_account_of_digits_is_text() -> None:
    assert job("slurm.account=12345").slurm.account == "12345"


def test_limits_do_not_hold_on_other_backends(folder: Folder) -> None:
    loaded = parse_job(JOB, folder.job, ["resources.time_limit=9d"])
    assert resolve_loaded(loaded, site()).resources.time_limit_s == 9 * 86400


def test_faults_of_the_site_have_the_lines_of_the_job(folder: Folder) -> None:
    loaded = parse_job(JOB + "slurm:\n  account: other\n", folder.job, ["backend=slurm"])
    with pytest.raises(JobFileError, match=r":\d+ slurm\.account: account other is not allowed"):
        resolve_loaded(loaded, site())


def test_templates_of_kubernetes_jobs_are_found_the_same_way(folder: Folder) -> None:
    loaded = parse_job(JOB, folder.job, ["backend=kubernetes", "kubernetes={image: a}"])
    found = resolve_loaded(loaded, SiteConfig(templates_dir="/t"), template=Path("/own.j2"))
    assert found.kubernetes == {"image": "a", "template": "/own.j2", "templates_dir": "/t"}
    said = folder.said("backend=kubernetes", "kubernetes={image: a, template: /own.j2}")
    assert "kubernetes.template: unknown field" in said
    assert "use --template of `submit`" in said


def test_a_users_template_where_the_site_allows_none(folder: Folder) -> None:
    loaded = parse_job(JOB, folder.job, ["backend=slurm"])
    text = "allow_user_template: false\nslurm: {account: x}\n"
    with pytest.raises(UserError, match="does not allow templates of users"):
        resolve_loaded(loaded, site(text), template=Path("t.j2"))
    free = resolve_loaded(loaded, SiteConfig(), template=Path("t.j2"))
    assert free.slurm["template"] == str(Path("t.j2").absolute())
