"""Slurm's configuration judged, on real answers of scontrol with single lines changed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.doctor.finding import Finding, sorted_findings
from orchestrator.doctor.judge_slurm import Wants, judge
from orchestrator.doctor.slurmconf import parse_config, parse_partitions, seconds

ANSWERS = Path(__file__).parent / "answers"
CONFIG = (ANSWERS / "config-22.05.txt").read_text()
PARTITIONS = (ANSWERS / "partitions-22.05.txt").read_text()


def config(**lines: str) -> str:
    """The real answer with some values replaced."""
    text = CONFIG
    for name, value in lines.items():
        text, count = re.subn(rf"(?m)^({name}\s*= ).*$", rf"\g<1>{value}", text)
        assert count == 1, name
    return text


def partition(**pairs: str) -> str:
    """The real answer with some values of `preemptible` replaced."""
    first, _, rest = PARTITIONS.partition("\n")
    for name, value in pairs.items():
        first, count = re.subn(rf"\b{name}=\S*", f"{name}={value}", first)
        assert count == 1, name
    return f"{first}\n{rest}"


def found(config_text: str = CONFIG, partition_text: str = PARTITIONS, **wants: Any) -> list[str]:
    """`level subject: what | why | change` of everything but what is good."""
    findings = judge(config_text, partition_text, Wants(**wants))
    return [
        f"{f.level} {f.subject}: {f.what} | {f.why} | {f.change}"
        for f in findings
        if f.level != "good"
    ]


def test_the_real_answers_are_read() -> None:
    conf, partitions = parse_config(CONFIG), parse_partitions(PARTITIONS)
    assert conf.version == (22, 5)
    assert conf.seconds("KillWait") == 5
    assert conf.parameters("AuthInfo")["cred_expire"] == "5"
    assert conf.get("RequeueExit") == ""
    assert [(p.name, p.grace_s, p.default) for p in partitions] == [
        ("preemptible", 20, True),
        ("nograce", 0, False),
        ("high", 0, False),
    ]
    assert partitions[2].preempt_modes == {"OFF"}
    assert (partitions[0].default_time_s, partitions[0].max_time_s) == (3600, None)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("30 sec", 30),
        ("300", 300),
        ("01:00:00", 3600),
        ("2-12:00:00", 216000),
        ("00:30", 30),
        ("UNLIMITED", None),
        ("NONE", None),
        ("", None),
    ],
)
def test_times(text: str, value: int | None) -> None:
    assert seconds(text) == value


def test_a_right_cluster_with_a_quick_save_is_good() -> None:
    assert found(save_s=3.0, grace_s=20, time_limit_s=3600) == []


@pytest.mark.parametrize(
    ("lines", "wants", "what"),
    [
        ({"SLURM_VERSION": "21.08.8"}, {}, "warning Slurm: version 21.08.8"),
        ({"JobRequeue": "0"}, {}, "note JobRequeue: 0 |"),
        (
            {"RequeueExitHold": "70-80"},
            {},
            "danger RequeueExitHold: holds jobs that end with 70, 71, 72, 73, 74, 75, 76, 77,",
        ),
        (
            {"RequeueExitHold": "1-10,137"},
            {},
            "warning RequeueExitHold: holds jobs that end with 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 137",
        ),
        (
            {"RequeueExit": "1-2,75"},
            {},
            "warning RequeueExit: starts jobs again that end with 1, 2",
        ),
        ({"AuthInfo": "(null)"}, {}, "note cred_expire: 120 s | a requeued job waits 121 s"),
        ({"AuthInfo": "socket=/s"}, {}, "slurm.conf: AuthInfo=socket=/s,cred_expire=30"),
        ({"MinJobAge": "300 sec"}, {}, "warning MinJobAge: 300 s, and there is no accounting"),
        ({"SlurmdTimeout": "300 sec"}, {}, "note SlurmdTimeout: 300 s"),
        ({}, {"save_s": 12.0}, "warning KillWait: 5 s |"),
        ({}, {"save_s": 12.0}, "slurm.conf: KillWait=30"),
        ({"KillWait": "0 sec"}, {}, "danger KillWait: 0 s | SIGKILL follows SIGTERM at once"),
        ({}, {"save_s": 2.0, "micro_s": 3.0}, "warning KillWait: 5 s | scontrol requeue, scancel"),
        ({}, {"save_s": 2.0, "micro_s": 3.0}, "a save took 2.0 s, after a micro-batch of 3.0 s"),
        ({"PreemptType": "preempt/none"}, {}, "note partition preemptible: nothing is preempted"),
        ({"PreemptType": "preempt/qos"}, {}, "note partition preemptible: preemption goes by QOS"),
    ],
)
def test_settings(lines: dict[str, str], wants: dict[str, Any], what: str) -> None:
    assert any(what in line for line in found(config(**lines), **wants)), found(config(**lines))
    if lines:
        assert not any(what in line for line in found(**wants))
    elif "micro_s" in wants:
        assert found(save_s=wants["save_s"]) == [], "short enough without the micro-batch"


def test_accounting_remembers() -> None:
    text = config(MinJobAge="300 sec", AccountingStorageType="accounting_storage/slurmdbd")
    assert not any("MinJobAge" in line for line in found(text))


@pytest.mark.parametrize(
    ("pairs", "wants", "what"),
    [
        ({"PreemptMode": "CANCEL"}, {}, "warning partition preemptible: PreemptMode=CANCEL"),
        ({"PreemptMode": "GANG,SUSPEND"}, {}, "danger partition preemptible: PreemptMode=GANG,SUS"),
        ({"State": "DOWN"}, {}, "danger partition preemptible: is DOWN"),
        ({"GraceTime": "0"}, {}, "warning GraceTime of preemptible: 0, so KillWait counts: 5 s"),
        ({"GraceTime": "0"}, {"save_s": 4.0}, "a save took 4.0 s, which leaves little room"),
        ({"GraceTime": "0"}, {"save_s": 9.0}, "danger GraceTime of preemptible: 0, so KillWait"),
        ({}, {"save_s": 4.0, "micro_s": 18.0}, "danger GraceTime of preemptible: 20 s | a save"),
        ({}, {"save_s": 25.0}, "PartitionName=preemptible ... GraceTime=40"),
        ({}, {"save_s": 15.0}, "warning GraceTime of preemptible: 20 s | a save took 15.0 s"),
        ({}, {}, "note GraceTime of preemptible: 20 s | no save was measured yet"),
        (
            {},
            {"grace_s": 60.0},
            "danger preemption.grace_s: 60 s, but partition preemptible gives 20",
        ),
        (
            {},
            {"site_graces": {"preemptible": 60.0}},
            "danger site.yaml: grace_s of preemptible: 60",
        ),
        ({"MaxTime": "01:00:00"}, {"time_limit_s": 7200}, "danger MaxTime of preemptible: 3600 s"),
        ({}, {"grace_s": 20.0}, "note DefaultTime of preemptible: 3600 s"),
        ({}, {"partitions": ("nope",)}, "danger partition nope: does not exist"),
        ({}, {"partitions": ("preemptible,nope",)}, "danger partition nope: does not exist"),
    ],
)
def test_partitions(pairs: dict[str, str], wants: dict[str, Any], what: str) -> None:
    lines = found(CONFIG, partition(**pairs), **wants)
    assert any(what in line for line in lines), lines


def test_no_time_at_all_between_the_two_signals() -> None:
    lines = found(config(KillWait="0 sec"), partition(GraceTime="0"))
    assert any("danger GraceTime of preemptible: 0, so KillWait counts: 0 s" in x for x in lines)
    assert any(x.startswith("danger KillWait: 0 s") for x in lines)


def test_a_partition_that_is_not_preempted_needs_no_grace() -> None:
    assert found(partitions=("high",)) == []


@pytest.mark.parametrize(
    ("lines", "signal"),
    [
        ({}, "SIGTERM"),
        ({"SlurmctldParameters": "preempt_send_user_signal"}, "SIGUSR1"),
    ],
)
def test_which_signal_gives_notice(lines: dict[str, str], signal: str) -> None:
    findings = judge(config(**lines), PARTITIONS, Wants())
    assert any(f.what.endswith(signal) for f in findings if f.subject == "send_user_signal")


def test_the_newer_name_of_that_setting() -> None:
    text = CONFIG + "PreemptParameters       = send_user_signal\n"
    assert any(f.what.endswith("SIGUSR1") for f in judge(text, PARTITIONS, Wants()))


@pytest.mark.parametrize("text", ["", "garbage\n", "slurm_load_ctl_conf error: Unable to contact"])
def test_an_answer_that_is_none(text: str) -> None:
    assert found(text) == [
        "warning Slurm: scontrol's answer cannot be read | its settings were not looked at | "
    ]
    assert found(CONFIG, text)[0].startswith("warning Slurm: scontrol's answer")


def test_every_finding_that_is_bad_says_why_and_what_to_change() -> None:
    text = config(
        JobRequeue="0", RequeueExitHold="75", RequeueExit="1", AuthInfo="(null)", KillWait="5 sec"
    )
    findings = judge(text, partition(GraceTime="0", PreemptMode="CANCEL"), Wants(save_s=9.0))
    bad = [f for f in findings if f.level in ("danger", "warning")]
    assert len(bad) >= 4
    assert all(f.why and f.change for f in bad)


def test_the_worst_comes_first() -> None:
    levels: list[Any] = ["good", "note", "danger", "warning"]
    found = sorted_findings(Finding(level, "s", "w") for level in levels)
    assert [f.level for f in found] == ["danger", "warning", "note", "good"]
