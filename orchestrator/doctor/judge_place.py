"""Storage, clock and machine judged by what a run needs. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from orchestrator.doctor.finding import Finding

SHARED = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "wekafs", "orangefs", "pvfs2",
          "afs", "cifs", "smb3", "9p", "panfs", "glusterfs", "daos")  # fmt: skip
"""File systems that several machines can see; those through FUSE may be."""
GIB = 1024**3
LEAST_FREE_GIB = 10
FULL_GIB = 0.1
SHM = "/dev/shm"  # noqa: S108 - the file system itself, nothing is written there
LEAST_INODES = 10_000
LEAST_SHM_GIB = 1
SLOW_MB_S = 50
LOOKS_LOCAL = ": looks local"
CLOCK_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """What was measured in a folder."""

    path: str
    purpose: str
    """What it is for: `run directories`, `state`."""
    fault: str | None = None
    """Why it could not be looked at."""
    file_system: str = ""
    free_bytes: int = 0
    free_inodes: int | None = None
    """None: the file system has no count."""
    exclusive: bool = True
    """Creating a file only if it is absent works."""
    fsync_mb_s: float = 0.0
    clock_ahead_s: float = 0.0
    """How far the file server's clock is ahead of this machine's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What was found of this machine. `gpus`: None where no driver answers."""

    gpus: int | None
    gpu_words: str = ""
    shm_bytes: int | None = None
    missing: tuple[str, ...] = ()
    """Programs that are needed and not on PATH."""


def judge_folder(
    folder: Folder, *, need_bytes: int | None, must_be_shared: bool
) -> tuple[Finding, ...]:
    """`need_bytes`: what one checkpoint takes, where one is known."""
    subject = f"{folder.purpose} {folder.path}"
    if folder.fault is not None:
        why = "runs are stored there"
        return (Finding("danger", subject, folder.fault, why, "give another folder"),)
    return (
        *_space(folder, subject, need_bytes),
        *_properties(folder, subject),
        *(_shared(folder, subject) if must_be_shared else ()),
    )


def _space(folder: Folder, subject: str, need_bytes: int | None) -> Iterator[Finding]:
    free = folder.free_bytes / GIB
    if need_bytes is not None and folder.free_bytes < 3 * need_bytes:
        need = 3 * need_bytes / GIB
        why = "the newest checkpoints and the next one must fit together"
        yield Finding("danger", subject, f"{free:.1f} GiB free, {need:.1f} needed", why,
                      "free some space, or set checkpoint.uri to another file system")  # fmt: skip
    elif free < LEAST_FREE_GIB:
        yield Finding("danger" if free < FULL_GIB else "warning", subject, f"{free:.1f} GiB free",
                      "a save that finds no space is lost",
                      "free some space, or set checkpoint.uri to another file system")  # fmt: skip
    else:
        yield Finding("good", subject, f"{free:.0f} GiB free")
    if folder.free_inodes is not None and folder.free_inodes < LEAST_INODES:
        yield Finding("warning", subject, f"room for {folder.free_inodes} more files only",
                      "a run writes some thousand small files", f"df -i {folder.path}")  # fmt: skip


def _properties(folder: Folder, subject: str) -> Iterator[Finding]:
    if not folder.exclusive:
        why = "two attempts could both believe that they own the run"
        yield Finding("danger", subject, "a file can be created twice", why,
                      "set checkpoint.uri to another file system")  # fmt: skip
    if 0 < folder.fsync_mb_s < SLOW_MB_S:
        why = "a save counts only when it is on the disk, within the grace"
        yield Finding("warning", subject, f"{folder.fsync_mb_s:.0f} MB/s with fsync", why,
                      "set checkpoint.uri to a faster file system")  # fmt: skip
    else:
        yield Finding("good", subject, f"{folder.fsync_mb_s:.0f} MB/s with fsync")
    if abs(folder.clock_ahead_s) > CLOCK_S:
        way = "ahead of" if folder.clock_ahead_s > 0 else "behind"
        yield Finding("warning", subject,
                      f"its clock is {abs(folder.clock_ahead_s):.0f} s {way} this machine's",
                      "ages and back-offs are wrong by as much",
                      "chronyc tracking, on both machines")  # fmt: skip


def _shared(folder: Folder, subject: str) -> Iterator[Finding]:
    kind = folder.file_system
    if kind in SHARED:
        yield Finding("good", subject, f"{kind}, which other nodes can see")
    elif kind.startswith("fuse"):
        yield Finding("note", subject, f"{kind}: it cannot be told whether other nodes see it",
                      "", "qvl-orchestrate doctor --probe")  # fmt: skip
    else:
        why = "the nodes write there, and this machine must read it"
        yield Finding("warning", subject, f"{kind or 'an unknown file system'}{LOOKS_LOCAL}", why,
                      "`qvl-orchestrate doctor --probe` shows it for certain")  # fmt: skip


def judge_trusted(path: str, owner: str, mode: int, *, trusted: bool) -> tuple[Finding, ...]:
    """A file that becomes part of every job: who can change it? `mode`: permission bits;
    `trusted`: its owner is root or the user.
    """
    why = "whoever can change it can run commands as everybody who submits"
    if mode & 0o002 and not mode & 0o1000:  # as in /tmp, nobody replaces a file of others
        return (Finding("danger", path, "everybody can change it", why, f"chmod o-w {path}"),)
    if not trusted:
        what = f"belongs to {owner}, who is neither root nor you"
        return (Finding("warning", path, what, why, f"chown root {path}"),)
    return (Finding("good", path, "only its owner and group can change it"),)


def judge_machine(machine: Machine, *, wants_gpu: bool) -> tuple[Finding, ...]:
    """`wants_gpu`: False on a login node, where none is needed."""
    return (*_programs(machine), *_gpu(machine, wants_gpu), *_shm(machine, wants_gpu))


def _programs(machine: Machine) -> Iterator[Finding]:
    for name in machine.missing:
        why = "jobs are submitted, watched and cancelled with it"
        change = "run this on a login node of the cluster"
        yield Finding("danger", name, "is not on PATH", why, change)


def _gpu(machine: Machine, wants_gpu: bool) -> Iterator[Finding]:
    if machine.gpus:
        yield Finding("good", "GPUs", f"{machine.gpus} ({machine.gpu_words})")
    elif wants_gpu:
        why = "training runs on the CPU, which is right for a trial only"
        change = "run on a machine with a GPU; where it has one, install NVIDIA's driver"
        yield Finding("note", "GPUs", machine.gpu_words or "none", why, change)


def _shm(machine: Machine, wants_gpu: bool) -> Iterator[Finding]:
    if machine.shm_bytes is not None and machine.shm_bytes < LEAST_SHM_GIB * GIB and wants_gpu:
        yield Finding("warning", SHM, f"{machine.shm_bytes / GIB:.2f} GiB",
                      "data loader workers and NCCL pass tensors through it",
                      f"mount -o remount,size=8G {SHM}")  # fmt: skip


def judge_python(
    python: str, *, trainer: bool, versions: Mapping[str, str | None]
) -> tuple[Finding, ...]:
    """An interpreter: what it lacks of what training needs."""
    subject = f"python {python}"
    missing = [name for name, version in versions.items() if version is None]
    if missing or not trainer:
        lacks = ", ".join([*missing, *([] if trainer else ["the trainer"])])
        change = f"{python} -m pip install 'qvl-orchestrate[train]'"
        return (Finding("danger", subject, f"lacks {lacks}", "runs use it", change),)
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (Finding("good", subject, shown),)
