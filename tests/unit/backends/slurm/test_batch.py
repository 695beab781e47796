"""The batch file: what stands in it, and what never does."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.backends.slurm.backend import SlurmBackend
from orchestrator.backends.slurm.values import template_values
from orchestrator.contract.jsonio import from_json, loads
from orchestrator.contract.resolved import ResolvedJob, Resources
from orchestrator.contract.spec import TrainSpec
from orchestrator.errors import UserError
from tests.harness.jobs import job as make_job

BACKEND = SlurmBackend(Path("/nowhere"))
HOSTILE = st.one_of(
    st.sampled_from(
        [
            "$(touch /tmp/qvl-evil)",
            "`touch /tmp/qvl-evil`",
            "a\n#SBATCH --hold\ntouch /tmp/qvl-evil",
            "'; touch /tmp/qvl-evil; '",
            '"; touch /tmp/qvl-evil; "',
            "\\' $HOME ${PATH} !! %j",
            "x # y",
            "ünï☃",
            "#SBATCH --requeue",
        ]
    ),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40),
)


def job(**changes: Any) -> ResolvedJob:
    slurm = changes.pop("slurm", {})
    shape = changes.pop("resources", Resources(nodes=2, gpus_per_node=4, cpus_per_gpu=6))
    made = make_job(Path("/data"))
    return replace(made, backend="slurm", resources=shape, slurm=slurm, **changes)


def spec(made: ResolvedJob, **changes: Any) -> TrainSpec:
    return replace(
        TrainSpec(
            run_id="digits-261124-abc123",
            storage="s3://bucket/runs/digits",
            submission=3,
            backend="slurm",
            nodes=made.resources.nodes,
            gpus_per_node=made.resources.gpus_per_node,
            grace_s=60.0,
            python="/opt/env/bin/python",
            env=dict(made.env),
        ),
        **changes,
    )


def text_of(made: ResolvedJob, **changes: Any) -> str:
    return BACKEND.prepare(made, spec(made, **changes)).text


def directives(text: str) -> list[str]:
    """As sbatch reads them: up to the first line that is neither a comment nor empty."""
    found = []
    for line in text.splitlines():
        if line.startswith("#SBATCH"):
            found.append(line.removeprefix("#SBATCH "))
        elif line and not line.startswith("#"):
            break
    return found


def exported(text: str, *names: str) -> dict[str, str]:
    """The variables as bash sees them, everything after the exports cut off."""
    head = text.split("qvl_folder=")[0]
    shown = "".join(f'printf "%s\\0" "${{{n}}}"\n' for n in names)
    done = subprocess.run(
        ["bash", "-c", head + shown], capture_output=True, env={"PATH": "/usr/bin:/bin"}, check=True
    )
    values = done.stdout.decode().split("\0")[:-1]
    return dict(zip(names, values, strict=True))


def test_what_the_supervisor_depends_upon() -> None:
    found = directives(text_of(job()))
    for wanted in ("--requeue", "--open-mode=append", "--export=NONE", "--signal=USR1@60"):
        assert wanted in found
    assert found[:4] == [
        "--job-name=digits-261124-abc123-3",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=24",
    ]


@pytest.mark.parametrize(
    ("slurm", "wanted"),
    [
        ({}, "--gpus-per-node=4"),
        ({"gpu_type": "a100"}, "--gpus-per-node=a100:4"),
        ({"gpu_request": "gres"}, "--gres=gpu:4"),
        ({"gpu_request": "gres", "gpu_type": "h100", "gres": "mps"}, "--gres=mps:h100:4"),
        ({"gpu_request": "none", "constraint": "a100&nvlink"}, "--constraint=a100&nvlink"),
    ],
)
def test_how_gpus_are_asked_for(slurm: dict[str, Any], wanted: str) -> None:
    found = directives(text_of(job(slurm=slurm)))
    assert wanted in found
    assert len([d for d in found if "gpu" in d or "gres" in d]) == (
        0 if "none" in str(slurm) else 1
    )


def test_every_setting_becomes_its_directive() -> None:
    slurm = {
        "partition": "a,b",
        "qos": "low",
        "account": "lab",
        "reservation": "r1",
        "constraint": "a100",
        "exclude": "n[1-3]",
        "comment": "mine",
        "options": ["--nice=10", "--exclusive"],
    }
    shape = Resources(nodes=1, gpus_per_node=1, memory_gb=1.5, time_limit_s=5400)
    found = directives(text_of(job(slurm=slurm, resources=shape)))
    for name in ("partition", "qos", "account", "reservation", "constraint", "exclude", "comment"):
        assert f"--{name}={slurm[name]}" in found
    assert {"--mem=1536M", "--time=90", "--nice=10", "--exclusive"} <= set(found)


@pytest.mark.parametrize(
    ("limit", "grace", "wanted"),
    [(None, 60.0, 60), (86400, 60.0, 60), (60, 60.0, 15), (10, 60.0, 5)],
)
def test_the_notice_before_the_limit_leaves_time_to_train(
    limit: int | None, grace: float, wanted: int
) -> None:
    made = job(resources=Resources(nodes=1, gpus_per_node=1, time_limit_s=limit))
    made = replace(made, preemption=replace(made.preemption, grace_s=grace))
    assert template_values(made, spec(made))["signal_s"] == wanted


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"options": ["--requeue"]}, "set by qvl-orchestrate"),
        ({"options": ["--output=/etc/passwd"]}, "set by qvl-orchestrate"),
        ({"options": ["-p x"]}, "no plain option"),
        ({"options": ["--nice=1\n#SBATCH --hold"]}, "no plain option"),
        ({"options": "--nice"}, "slurm.options: must be a list"),
        ({"signal_s": 0}, "slurm.signal_s: must be at least 1, not 0"),
        ({"partition": 1.5}, "slurm.partition: must be text, not 1.5"),
        ({"gpu_request": "all"}, "slurm.gpu_request"),
    ],
)
def test_settings_that_are_refused(block: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        text_of(job(slurm=block))


def test_a_spec_too_long_for_a_variable_is_refused() -> None:
    with pytest.raises(UserError, match="environment variable"):
        text_of(job(env={"LONG": "x" * 120_000}))


@given(value=HOSTILE)
def test_no_value_becomes_shell(value: str) -> None:
    """Every free text of a job: its variables, paths, its storage."""
    made = job(env={"EVIL": value})
    given_spec = spec(made, storage=value or "x", python=value or "x", secrets_file=value)
    text = BACKEND.prepare(made, given_spec).text
    check = subprocess.run(["bash", "-n"], input=text.encode(), capture_output=True, check=False)
    assert check.returncode == 0, check.stderr
    assert directives(text) == directives(text_of(job(env={})))
    seen = exported(text, "EVIL", "QVL_SPEC")
    assert seen["EVIL"] == value
    assert from_json(TrainSpec, loads(seen["QVL_SPEC"].encode())) == given_spec
    assert not Path("/tmp/qvl-evil").exists()


@given(value=HOSTILE, field=st.sampled_from(["partition", "account", "comment", "exclude"]))
def test_no_value_becomes_a_directive(value: str, field: str) -> None:
    """It stands there as one word, or is refused."""
    try:
        text = text_of(job(slurm={field: value}))
    except UserError:
        return
    plain = directives(text_of(job()))
    (more,) = [d for d in directives(text) if d not in plain]
    assert more == f"--{field}={value}"


@given(name=HOSTILE)
def test_no_name_of_a_variable_becomes_shell(name: str) -> None:
    assume(name != "_")  # the shell's own
    try:
        text = text_of(job(env={name: "1"}))
    except UserError:
        return
    assert exported(text, name) == {name: "1"}
