"""Storage, machine and probe judged; and what is measured in a real folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.doctor import judge_probe, look
from orchestrator.doctor.judge_place import (
    GIB,
    Folder,
    Machine,
    judge_folder,
    judge_machine,
    judge_trusted,
)
from orchestrator.doctor.judge_probe import Line, Probe

GOOD: dict[str, Any] = {
    "path": "/runs",
    "purpose": "run directories",
    "file_system": "nfs4",
    "free_bytes": 500 * GIB,
    "free_inodes": 10**6,
    "fsync_mb_s": 300.0,
}


def folder(must_be_shared: bool = True, need: int | None = None, **changes: Any) -> list[str]:
    found = judge_folder(
        Folder(**{**GOOD, **changes}), need_bytes=need, must_be_shared=must_be_shared
    )
    return [f"{f.level} {f.what}" for f in found if f.level != "good"]


def test_a_good_folder() -> None:
    assert folder() == []


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"fault": "Permission denied"}, "danger Permission denied"),
        ({"free_bytes": 5 * GIB}, "warning 5.0 GiB free"),
        ({"free_bytes": 1000}, "danger 0.0 GiB free"),
        ({"need": 300 * GIB}, "danger 500.0 GiB free, 900.0 needed"),
        ({"free_inodes": 10}, "warning room for 10 more files only"),
        ({"exclusive": False}, "danger a file can be created twice"),
        ({"fsync_mb_s": 3.0}, "warning 3 MB/s with fsync"),
        ({"clock_ahead_s": 30.0}, "warning its clock is 30 s ahead of this machine's"),
        ({"clock_ahead_s": -30.0}, "warning its clock is 30 s behind this machine's"),
        ({"file_system": "ext4"}, "warning ext4: looks local"),
        ({"file_system": "fuse.sshfs"}, "note fuse.sshfs: it cannot be told"),
    ],
)
def test_folders(changes: dict[str, Any], what: str) -> None:
    assert any(line.startswith(what) for line in folder(**changes)), folder(**changes)


def test_a_local_folder_is_right_for_local_runs() -> None:
    assert folder(must_be_shared=False, file_system="ext4") == []


def test_no_count_of_files_is_no_shortage() -> None:
    assert folder(free_inodes=None) == []


def machine(wants_gpu: bool = True, **changes: Any) -> list[str]:
    facts: dict[str, Any] = {"gpus": 2, "gpu_words": "A100", "shm_bytes": 8 * GIB, **changes}
    found = judge_machine(Machine(**facts), wants_gpu=wants_gpu)
    return [f"{f.level} {f.subject}" for f in found if f.level != "good"]


def test_machines() -> None:
    assert machine() == []
    assert machine(shm_bytes=GIB // 16) == ["warning /dev/shm"]
    assert machine(gpus=None) == ["note GPUs"]
    assert machine(gpus=None, wants_gpu=False) == []
    assert machine(missing=("sbatch",)) == ["danger sbatch"]


def test_a_real_folder_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    found = look.measure_folder(tmp_path / "to" / "come", "state")
    assert found.path == str(tmp_path)
    assert found.exclusive
    assert found.fsync_mb_s > 0
    assert abs(found.clock_ahead_s) < 1
    assert found.file_system
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(look, "_exclusive", refuse)
    assert look.measure_folder(tmp_path, "state").fault == "Permission denied"


@pytest.mark.parametrize(
    ("mode", "trusted", "level"),
    [
        (0o644, True, "good"),
        (0o664, True, "good"),
        (0o646, True, "danger"),
        (0o644, False, "warning"),
    ],
)
def test_who_can_change_what_every_job_is_made_from(mode: int, trusted: bool, level: str) -> None:
    (found,) = judge_trusted("/etc/site.toml", "eve", mode, trusted=trusted)
    assert found.level == level
    assert (found.change != "") is (level != "good")


def test_a_real_file_that_everybody_can_change(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.touch()
    path.chmod(0o666)
    found = look.look_trusted([path, tmp_path / "none"])
    assert [f.level for f in found] == ["danger"]
    path.chmod(0o644)
    assert [f.level for f in look.look_trusted([path])] == ["good"]


def test_a_site_file_of_an_earlier_version_is_noted(tmp_path: Path) -> None:
    (found,) = look.look_language(tmp_path / "site.toml")
    assert (found.level, found.what) == ("note", "in TOML, and read as before")
    assert str(tmp_path / "site.yaml") in found.change
    assert look.look_language(tmp_path / "site.yaml") == look.look_language(None) == ()


MOUNTS = "/dev/a / ext4 rw 0 0\nsrv:/x /home nfs4 rw 0 0\n/dev/b /home/me\\040too xfs rw 0 0\n"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/etc", "ext4"),
        ("/home", "nfs4"),
        ("/home/a/b", "nfs4"),
        ("/homes", "ext4"),
        ("/home/me too/x", "xfs"),
    ],
)
def test_the_file_system_of_a_path(path: str, kind: str) -> None:
    assert look.file_system(Path(path), MOUNTS) == kind


def test_an_interpreter_is_asked() -> None:
    (found,) = look.look_python(sys.executable)
    assert found.level in ("good", "danger")
    (none,) = look.look_python("/nowhere/python")
    assert (none.level, none.what) == ("danger", "No such file or directory")
    (other,) = look.look_python("/bin/true")
    assert other.what == "does not answer"


def test_an_interpreter_that_lacks_something() -> None:
    from orchestrator.doctor.judge_place import judge_python

    (found,) = judge_python("py", trainer=True, versions={"torch": None, "peft": "1"})
    assert found.what == "lacks torch"
    assert "pip install" in found.change


# --- the probe

TEXT = """\
100.0 batch started
100.1 batch host n1 n1
100.2 batch scontrol yes
100.2 batch python yes
100.5 task started
100.5 task gpus 0 1
104.0 task SIGTERM
110.0 task alive
123.5 task alive
123.6 batch SIGTERM
12
garbage
"""


def probed(text: str = TEXT, **changes: Any) -> list[str]:
    facts: dict[str, Any] = {
        "lines": judge_probe.parse(text),
        "ran": True,
        "preempted": True,
        "restarts": 1,
        "state": "PENDING",
        "seen_after_s": 0.5,
        "taken_at": 103.5,
        "configured_s": 20,
        **changes,
    }
    return [f"{f.level} {f.subject}: {f.what}" for f in judge_probe.judge(Probe(**facts))]


def test_a_report_is_read() -> None:
    lines = judge_probe.parse(TEXT)
    assert len(lines) == 10
    assert lines[0] == Line(100.0, "batch", "started")


def test_a_good_probe() -> None:
    found = probed()
    assert "note signal: SIGTERM reached the task 4.0 s after the start" in found
    assert (
        "good measured grace: 19.5 s from the first notice to the end (configured: 20 s)" in found
    )
    assert "good requeue: the preempted probe was requeued" in found
    assert not any(line.startswith(("danger", "warning")) for line in found)


@pytest.mark.parametrize(
    ("text", "changes", "what"),
    [
        ("", {}, "danger shared folder: what the node wrote is not seen here"),
        ("", {"ran": False}, "warning probe: did not run"),
        (TEXT.replace("scontrol yes", "scontrol no"), {}, "danger scontrol on the node"),
        (TEXT.replace("python yes", "python no"), {}, "danger python on the node"),
        (TEXT, {"versions_here": "other"}, "warning python on the node: yes, here other"),
        (TEXT, {"versions_here": "yes"}, "good python on the node: yes"),
        (
            TEXT + "100.3 batch slurm slurm-wlm 22.05.8\n",
            {"slurm_here": "slurm-wlm 24.11.5"},
            "note Slurm on the node: slurm-wlm 22.05.8, here slurm-wlm 24.11.5",
        ),
        (TEXT.replace("gpus 0 1", "gpus none 0"), {}, "warning GPUs on the node"),
        (TEXT.replace("task SIGTERM", "task alive"), {}, "danger notice: none reached the task"),
        (TEXT, {"restarts": 0, "state": "CANCELLED"}, "danger requeue: the preempted probe ended"),
        (TEXT, {"preempted": False}, "warning notice before the time limit: SIGUSR1 did not"),
        (
            TEXT.replace("task SIGTERM", "task SIGUSR1"),
            {"preempted": False},
            "good notice before the time limit: 19.5 s from the first notice to the end",
        ),
        (TEXT, {"seen_after_s": 40.0}, "warning clocks: node and this machine differ by about 40"),
        (
            TEXT.replace("110.0 task alive\n123.5 task alive\n", ""),
            {},
            "danger measured grace: 0.0",
        ),
    ],
)
def test_probes(text: str, changes: dict[str, Any], what: str) -> None:
    assert any(line.startswith(what) for line in probed(text, **changes)), probed(text, **changes)


def test_a_signal_before_the_preemption_is_no_notice_of_it() -> None:
    """With a short time limit, Slurm sends USR1 soon after the start."""
    text = TEXT.replace("104.0 task SIGTERM", "101.0 task SIGUSR1\n104.0 task SIGTERM")
    assert any("19.5 s from the first notice" in line for line in probed(text))


def test_root_sees_the_mounts() -> None:
    assert look.file_system(Path("/"), look._mounts()) or not os.path.exists("/proc/self/mounts")
