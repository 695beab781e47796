"""`template check --run`: a rendered batch file played through, with stubs instead of Slurm.

What the static check can only guess is seen here: whether the shell lives through a notice, waits
for its agents, asks for the requeue and ends with the right code. The text runs on this machine,
in an empty folder of its own, with a PATH that holds a few harmless programs and stubs; a command
that is not there counts as one that succeeded. What it does by absolute paths it really does, so
that only files of the user and of root are run.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.contract.codes import ExitCode
from orchestrator.errors import UserError
from orchestrator.storage.ownership import foreign_hands

LIMIT_S = 30.0
"""Longest time of one story."""
SAVE_S = 0.5
"""So long the stub of srun saves after a notice."""
NOTICES = (signal.SIGCONT, signal.SIGTERM, signal.SIGUSR1)
JOB_ID = "4711"
_POLL_S = 0.02
_PROGRAMS = (
    *("awk", "basename", "bash", "cat", "cut", "date", "dirname", "env", "expr", "grep", "head"),
    *("hostname", "id", "mktemp", "nproc", "readlink", "realpath", "sed", "seq", "sleep", "sort"),
    *("stat", "tail", "timeout", "tr", "uname", "wc"),
)
"""Of this machine; everything else is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What happens to the job, and what the batch file must make of it."""

    name: str
    notice: bool = False
    word: str = ""
    """What the agent leaves in the verdict file; empty: it is killed before."""
    status: int = 0
    """How srun ends."""
    stranger: bool = False
    """Slurm says that the job's id is another job's."""
    code: int
    """With which the batch file must end."""
    requeue: bool = False
    """Whether it must ask for its requeue."""


STORIES = (
    Story(name="a notice", notice=True, word="75 requeue", status=75, code=75, requeue=True),
    Story(name="the end of the training", word="0 leave", code=0),
    Story(name="a killed agent", status=137, code=137),
    Story(
        name="a notice, and an id that is another job's by now",
        notice=True, word="75 requeue", status=75, stranger=True, code=75,
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """What was seen of one story. `faults` are empty if all was as it must be."""

    story: str
    shape: str
    seen: str
    faults: tuple[str, ...] = ()
    refused: bool = False
    """The batch file refused to start here (78), so that nothing else was seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A rendered batch file, and what of it must reach the agents."""

    text: str
    job_name: str
    spec: str
    shape: str


def may_run(paths: list[Path]) -> None:
    """Raises UserError if a file that would be run, or that shapes it, could be another's work."""
    for path in map(Path.resolve, paths):
        why = foreign_hands(path)
        # In a folder as /tmp, nobody replaces a file of others.
        if why is None and not path.parent.stat().st_mode & stat.S_ISVTX:
            why = foreign_hands(path.parent)
        if why is not None:
            raise UserError(
                f"{path} is not run: {why}",
                hint="run a copy of your own that you have read; without --run nothing is executed",
            )


def rehearse(script: Script) -> Iterator[Act]:
    """Every story, each with the batch file anew; ends early where it refuses to start here."""
    for story in STORIES:
        with tempfile.TemporaryDirectory(prefix="qvl-rehearsal-") as folder:
            act = _play(Path(folder), script, story)
        yield act
        if act.refused:
            return


def _play(folder: Path, script: Script, story: Story) -> Act:
    environ = _stage(folder, script, story)
    batch = folder / "batch"
    batch.write_text(script.text)
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [environ["PATH"] + "/bash", str(batch)],
            cwd=folder / "work",
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + LIMIT_S
        started = _until(folder / "started", process, end)
        survived = not (story.notice and started) or _notice(folder, process)
        code = _ended(process, end)
        return _judge(folder, script, story, started=started, survived=survived, code=code)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _until(sign: Path, process: subprocess.Popen[bytes], end: float) -> bool:
    while not sign.exists():
        if process.poll() is not None or time.monotonic() > end:
            return sign.exists()
        time.sleep(_POLL_S)
    return True


def _notice(folder: Path, process: subprocess.Popen[bytes]) -> bool:
    """To the shell alone, as at the end of a grace; False if it does not outlive the signals."""
    for number in NOTICES:
        process.send_signal(number)
        time.sleep(_POLL_S)
    (folder / "noticed").touch()
    time.sleep(SAVE_S / 2)
    return process.poll() is None


def _ended(process: subprocess.Popen[bytes], end: float) -> int | None:
    try:
        return process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None


def _judge(
    folder: Path, script: Script, story: Story, *, started: bool, survived: bool, code: int | None
) -> Act:
    words = _last_line(folder / "output")
    if not started:
        refused = code == ExitCode.REFUSED
        seen = f"ended with {code} before it started an agent{words and f', saying: {words}'}"
        if code is None:
            seen = f"started no agent within {LIMIT_S:.0f} s"
        return Act(
            story=story.name,
            shape=script.shape,
            seen=seen,
            faults=() if refused else (seen,),
            refused=refused,
        )
    asked = f"requeue incomplete {JOB_ID}" in _read(folder / "scontrol").splitlines()
    checks = (
        (_read(folder / "spec") == script.spec, "", "QVL_SPEC reaches the agent changed, or not"),
        (survived, "survived" if story.notice else "", "the notice ended the shell"),
        ((folder / "saved").exists(), "waited for the agents", "it did not wait for the agents"),
        (
            asked == story.requeue,
            "asked for the requeue" if asked else "asked for no requeue",
            "it asked for a requeue" if asked else "it did not ask for the requeue",
        ),
        (
            code == story.code,
            f"ended with {code}",
            f"it did not end within {LIMIT_S:.0f} s" if code is None
            else f"it ended with {code} instead of {story.code}",
        ),
    )  # fmt: skip
    faults = tuple(fault for right, _, fault in checks if not right)
    seen = ", ".join(good for right, good, _ in checks if right and good)
    return Act(story=story.name, shape=script.shape, seen=seen, faults=faults)


def _stage(folder: Path, script: Script, story: Story) -> dict[str, str]:
    """Stubs and folders of one story; the environment in which it plays."""
    programs = folder / "bin"
    for name in ("bin", "work", "tmp", "home"):
        (folder / name).mkdir()
    for name in _PROGRAMS:
        found = shutil.which(name)
        if found is not None:
            (programs / name).symlink_to(found)
    owner = 1 + os.geteuid() if story.stranger else os.geteuid()
    shown = f"JobId={JOB_ID} JobName={script.job_name} UserId=user({owner}) JobState=RUNNING"
    values = {
        "folder": shlex.quote(str(folder)),
        "notice": int(story.notice),
        "word": shlex.quote(story.word),
        "status": story.status,
        "save": SAVE_S,
        "shown": shlex.quote(shown),
    }
    for name, text in (("srun", _SRUN), ("scontrol", _SCONTROL), ("module", "#!/bin/sh\n")):
        stub = programs / name
        stub.write_text(text.format(**values))
        stub.chmod(0o700)
    return {
        "PATH": str(programs),
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "LC_ALL": "C.UTF-8",
        "SLURM_JOB_ID": JOB_ID,
        "SLURM_JOB_NAME": script.job_name,
        "SLURM_NODEID": "0",
        "SLURM_SUBMIT_DIR": str(folder / "work"),
        # What is not there counts as done: another machine has it.
        "BASH_FUNC_command_not_found_handle%%": "() { return 0; }",
    }


_SRUN = """#!/bin/bash
cd {folder}
trap : TERM USR1 USR2 CONT
printf '%s' "${{QVL_SPEC-}}" > spec
: > started
if [ {notice} = 1 ]; then
  until [ -e noticed ]; do sleep 0.02; done
  sleep {save}
fi
if [ -n {word} ]; then printf '%s\\n' {word} > "$QVL_VERDICT_FILE"; fi
: > saved
exit {status}
"""
_SCONTROL = """#!/bin/bash
printf '%s\\n' "$*" >> {folder}/scontrol
case "$*" in *"show job"*) printf '%s\\n' {shown} ;; esac
"""


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def _last_line(path: Path) -> str:
    lines = [x.strip() for x in _read(path).splitlines() if x.strip()]
    return lines[-1][:200] if lines else ""
