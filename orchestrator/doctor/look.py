"""Asking scontrol, the storage and the machine. What the answers mean is judged elsewhere."""

from __future__ import annotations

import ctypes
import json
import os
import pwd
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestrator.backends.slurm import commands
from orchestrator.config.models.site import SiteConfig
from orchestrator.config.reading.site_file import NAME, is_toml
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.doctor import judge_place, judge_slurm
from orchestrator.doctor.finding import Finding
from orchestrator.doctor.judge_place import Folder, Machine
from orchestrator.doctor.judge_slurm import Wants
from orchestrator.errors import QvlError
from orchestrator.registry.store import Registry

CLIENTS = ("sbatch", "srun", "squeue", "scancel", "scontrol")
ASK_S = 10.0
"""Longest time for one question."""
TRIAL_BYTES = 16 * 1024 * 1024
"""Written once and synced, to see how fast that is."""


def wants_of(
    job: ResolvedJob | None, site: SiteConfig, site_file: str, registry: Registry
) -> Wants:
    """What runs here need: those of a job, else those of the site's defaults."""
    rules = site.slurm
    asked = job.slurm.get("partition") if job is not None else rules.partition
    named = (asked,) if asked else tuple(p.name for p in rules.partitions)
    rows = _measured(registry, "slurm", job.name if job else None)
    accumulation = int(job.training["gradient_accumulation_steps"]) if job else None
    step_s = _longest(rows, "step_seconds")
    return Wants(
        partitions=named,
        save_s=_longest(rows, "save_seconds"),
        micro_s=step_s / accumulation if step_s and accumulation else None,
        grace_s=job.preemption.grace_s if job else None,
        time_limit_s=job.resources.time_limit_s if job else None,
        site_graces={p.name: p.grace_s for p in rules.partitions if p.grace_s is not None},
        site_file=site_file,
    )


def _measured(registry: Registry, backend: str, name: str | None) -> list[dict[str, Any]]:
    """Rows of the runs of that name, else of all."""
    rows = [(e.name, e.row or {}) for e in registry.runs() if e.backend == backend]
    return [row for n, row in rows if n == name] or [row for _, row in rows]


def _longest(rows: Iterable[Mapping[str, Any]], what: str) -> float | None:
    return max((row[what] for row in rows if row.get(what)), default=None)


def look_slurm(wants: Wants) -> tuple[Finding, ...]:
    """Slurm's configuration, by two questions to its controller."""
    try:
        config = commands.run(["scontrol", "show", "config"], limit_s=ASK_S)
        partitions = commands.run(["scontrol", "-o", "show", "partition"], limit_s=ASK_S)
    except QvlError as fault:
        why = "its settings were not looked at"
        return (Finding("warning", "Slurm", fault.message, why, fault.hint or "scontrol ping"),)
    for answer in (config, partitions):
        if not answer.ok:
            why = "its settings were not looked at"
            return (Finding("warning", "Slurm", answer.words, why, "scontrol ping"),)
    return judge_slurm.judge(config.out, partitions.out, wants)


def no_cluster() -> Finding:
    """Of a Kubernetes job: this machine's GPUs, Python and folders say nothing about its pods."""
    return Finding(
        "warning",
        "Kubernetes",
        "a cluster cannot be judged yet, and nothing was looked at",
        "its nodes, their GPUs and their grace decide, not this machine",
        "`qvl-orchestrate submit job.yaml --dry-run` shows its manifest; docs/kubernetes.md",
    )


def look_folder(
    path: Path, purpose: str, *, must_be_shared: bool, need_bytes: int | None = None
) -> tuple[Finding, ...]:
    """A folder that runs are stored in; of one that is still to be made, the one it will be in."""
    folder = measure_folder(path, purpose)
    return judge_place.judge_folder(folder, need_bytes=need_bytes, must_be_shared=must_be_shared)


def measure_folder(path: Path, purpose: str) -> Folder:
    """Space, properties and speed of a folder; what was written is removed again."""
    path = next((p for p in (path, *path.parents) if p.exists()), path)
    trial = path / f".doctor-{secrets.token_hex(6)}"
    try:
        exclusive = _exclusive(trial)
        speed, ahead = _write(trial)
        free = os.statvfs(path)
    except OSError as fault:
        return Folder(path=str(path), purpose=purpose, fault=fault.strerror or str(fault))
    finally:
        with suppress(OSError):
            trial.unlink()
    return Folder(
        path=str(path),
        purpose=purpose,
        file_system=file_system(path, _mounts()),
        free_bytes=free.f_bavail * free.f_frsize,
        free_inodes=free.f_favail if free.f_files else None,
        exclusive=exclusive,
        fsync_mb_s=speed,
        clock_ahead_s=ahead,
    )


def look_language(site: Path | None) -> tuple[Finding, ...]:
    """A site file in the language of earlier versions, which is read all the same."""
    if site is None or not is_toml(site):
        return ()
    why = "faults in it are told without their lines"
    change = f"write it anew in YAML, as {site.with_name(NAME)}, and remove this one"
    return (Finding("note", str(site), "in TOML, and read as before", why, change),)


def look_trusted(paths: Iterable[Path]) -> tuple[Finding, ...]:
    """Files and folders that every job of the site is shaped by, as far as they exist."""
    found: list[Finding] = []
    for path in paths:
        with suppress(OSError):
            stat = path.stat()
            try:
                owner = pwd.getpwuid(stat.st_uid).pw_name
            except KeyError:
                owner = str(stat.st_uid)
            trusted = stat.st_uid in (0, os.geteuid())
            found += judge_place.judge_trusted(str(path), owner, stat.st_mode, trusted=trusted)
    return tuple(found)


def _exclusive(trial: Path) -> bool:
    with trial.open("xb"):
        pass
    try:
        with trial.open("xb"):
            return False
    except FileExistsError:
        return True


def _write(trial: Path) -> tuple[float, float]:
    """MB/s of a synced write, and how far the file's own time is ahead of ours."""
    data = secrets.token_bytes(TRIAL_BYTES)
    began = time.monotonic()
    with trial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        took = time.monotonic() - began
        before = time.time()
        os.utime(trial)  # no time given: the file server puts its own
        ahead = trial.stat().st_mtime - (before + time.time()) / 2
    return TRIAL_BYTES / 1e6 / max(took, 1e-6), ahead


def _mounts() -> str:
    with suppress(OSError):
        return Path("/proc/self/mounts").read_text(errors="replace")
    return ""


def file_system(path: Path, mounts: str) -> str:
    """Type of the file system that a path lies on, by the text of /proc/self/mounts."""
    target, best = path.resolve(), ("", "")
    for line in mounts.splitlines():
        words = line.split(" ")
        if len(words) < 3:
            continue
        point = words[1].encode().decode("unicode_escape")
        if target.is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, words[2])
    return best[1]


def look_machine(programs: Sequence[str], *, wants_gpu: bool) -> tuple[Finding, ...]:
    """This machine: programs, GPUs, shared memory."""
    gpus, words = _gpus()
    shm = None
    with suppress(OSError):
        stat = os.statvfs(judge_place.SHM)
        shm = stat.f_blocks * stat.f_frsize
    missing = tuple(name for name in programs if shutil.which(name) is None)
    machine = Machine(gpus=gpus, gpu_words=words, shm_bytes=shm, missing=missing)
    return judge_place.judge_machine(machine, wants_gpu=wants_gpu)


def _gpus() -> tuple[int | None, str]:
    """Number and names of the GPUs of this machine; None and the reason where there are none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        try:
            ctypes.CDLL("libcuda.so.1")
        except OSError:
            return None, "no NVIDIA driver (neither nvidia-smi nor libcuda.so.1)"
        return None, "libcuda.so.1 is there, nvidia-smi is not"
    try:
        done = subprocess.run(
            [program, "-L"], capture_output=True, text=True, timeout=ASK_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as fault:
        return None, f"nvidia-smi does not answer: {fault}"
    lines = [x for x in done.stdout.splitlines() if x.startswith("GPU ")]
    if done.returncode != 0 or not lines:
        said = (done.stderr or done.stdout).strip().splitlines()
        return None, said[0] if said else "nvidia-smi shows none"
    names = sorted({x.partition(": ")[2].partition(" (")[0] for x in lines})
    return len(lines), ", ".join(names)


_PYTHON = """
import importlib.metadata as m, importlib.util as u, json
def version(name):
    try:
        return m.version(name)
    except m.PackageNotFoundError:
        return None
names = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "deepspeed")
print(json.dumps([bool(u.find_spec("trainer")), {n: version(n) for n in names}]))
"""
"""Run by the interpreter of a run: can it import the trainer, and which versions has it?"""


def look_python(python: str) -> tuple[Finding, ...]:
    """The interpreter that runs are to use; nothing heavy is imported by it."""
    try:
        done = subprocess.run(
            [python, "-c", _PYTHON],
            env={**os.environ, "PYTHONPATH": _with_us()},
            capture_output=True,
            text=True,
            timeout=ASK_S,
            check=False,
        )
        trainer, versions = json.loads(done.stdout)
    except OSError as fault:
        said = fault.strerror or str(fault)
        return (Finding("danger", f"python {python}", said, "runs use it", "job.yaml: python:"),)
    except (subprocess.TimeoutExpired, ValueError):
        return (Finding("warning", f"python {python}", "does not answer", "runs use it"),)
    return judge_place.judge_python(python, trainer=trainer, versions=versions)


def _with_us() -> str:
    """PYTHONPATH as a run gets it from a checkout."""
    root = Path(__file__).resolve().parents[2]
    return os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))


def submit_warnings(
    job: ResolvedJob, site: SiteConfig, site_file: str, registry: Registry
) -> tuple[Finding, ...]:
    """What `submit` warns of: Slurm's settings only, which cost two quick questions."""
    if job.backend != "slurm":
        return ()
    found = look_slurm(wants_of(job, site, site_file, registry))
    return tuple(f for f in found if f.level in ("danger", "warning"))
