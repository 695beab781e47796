"""What a probe has reported, judged. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.doctor.finding import Finding, Level

CLOCK_S = 2.0
SHARED_FOLDER = "shared folder"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a report: seconds since the epoch by the node's clock, who, what."""

    time: float
    who: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A probe from the outside."""

    lines: tuple[Line, ...]
    ran: bool
    """Slurm says that it was started."""
    preempted: bool
    """It was preempted, and not ended by its time limit."""
    restarts: int = 0
    state: str = ""
    """What Slurm said of it last."""
    seen_after_s: float | None = None
    """From the node's first line to when it was read here, by both clocks."""
    taken_at: float | None = None
    """When the job that preempts it was submitted, by this machine's clock."""
    configured_s: int | None = None
    """The grace by Slurm's configuration."""
    versions_here: str = ""
    """What the interpreter says on this machine, as the probe's `python` line has it."""
    slurm_here: str = ""


def parse(text: str) -> tuple[Line, ...]:
    """Reports as the probe writes them; a line cut off is left out."""
    found = []
    for line in text.splitlines():
        words = line.split(" ", 2)
        if len(words) == 3 and words[0].replace(".", "", 1).isdigit():
            found.append(Line(float(words[0]), words[1], words[2]))
    return tuple(sorted(found, key=lambda x: x.time))


def judge(probe: Probe) -> tuple[Finding, ...]:
    """Everything that the probe tells."""
    if not probe.lines:
        if not probe.ran:
            why = f"Slurm did not start it in time ({probe.state or 'no state'})"
            return (Finding("warning", "probe", "did not run", why, "squeue --me"),)
        why = "the nodes write there, and this machine must read it"
        change = "QVL_STATE_DIR: a folder that all nodes see"
        return (Finding("danger", SHARED_FOLDER, "what the node wrote is not seen here", why,
                        change),)  # fmt: skip
    return (*_node(probe), *_signals(probe), *_requeue(probe))


def _node(probe: Probe) -> Iterator[Finding]:
    after = probe.seen_after_s
    yield Finding("good", SHARED_FOLDER, "what the node writes is seen here")
    if after is not None and abs(after) > CLOCK_S + 1:
        yield Finding("warning", "clocks", f"node and this machine differ by about {after:.0f} s",
                      "ages and back-offs are wrong by as much",
                      "chronyc tracking, on both machines")  # fmt: skip
    said = {line.what for line in probe.lines}
    if "scontrol no" in said:
        yield Finding("danger", "scontrol on the node", "does not work",
                      "the job asks for its own requeue with it",
                      "apt-get install slurm-client, on the nodes")  # fmt: skip
    elif "scontrol yes" in said:
        yield Finding("good", "scontrol on the node", "works")
    yield from _versions(probe)
    for line in probe.lines:
        if line.what.startswith("gpus "):
            _, devices, count = line.what.split(" ")
            visible = f"CUDA_VISIBLE_DEVICES={devices}, nvidia-smi shows {count}"
            why = "the job asked for one" if devices == "none" else ""
            level: Level = "warning" if devices == "none" else "good"
            yield Finding(level, "GPUs on the node", visible, why)


def _versions(probe: Probe) -> Iterator[Finding]:
    """Interpreter and Slurm of the node, against those of this machine."""
    there = {line.what.partition(" ")[0]: line.what.partition(" ")[2] for line in probe.lines}
    python = there.get("python")
    if python == "no":
        yield Finding("danger", "python on the node", "does not run", "the agent runs in it",
                      "job.yaml: python: an interpreter that the nodes have")  # fmt: skip
    elif python is not None and probe.versions_here and python != probe.versions_here:
        what = f"{python}, here {probe.versions_here}"
        why = "a job is checked here and run there: settings may be refused at its start"
        yield Finding("warning", "python on the node", what, why, "install the same on both")
    elif python is not None:
        yield Finding("good", "python on the node", python)
    slurm = there.get("slurm")
    if slurm and probe.slurm_here and slurm != probe.slurm_here:
        yield Finding("note", "Slurm on the node", f"{slurm}, here {probe.slurm_here}")


def _signals(probe: Probe) -> Iterator[Finding]:
    started = next((x.time for x in probe.lines if x.what == "started"), probe.lines[0].time)
    signals = [x for x in probe.lines if x.what.startswith("SIG")]
    for line in signals:
        at = f"{line.time - started:.1f} s after the start"
        yield Finding("note", "signal", f"{line.what} reached the {line.who} {at}")
    notices = [x.time for x in signals if x.who == "task" and _after(x, probe)]
    alive = [x.time for x in probe.lines if x.who == "task"]
    if not notices:
        what = "none reached the task before it was killed"
        change = "slurm.conf: PartitionName=... GraceTime=60, PreemptMode=REQUEUE"
        yield Finding("danger", "notice", what, "a run cannot save in time", change)
        return
    had = max(alive) - notices[0]
    what = f"{had:.1f} s from the first notice to the end"
    if probe.preempted:
        known = probe.configured_s
        what += "" if known is None else f" (configured: {known} s)"
        yield Finding("good" if had >= 1 else "danger", "measured grace", what)
    elif any(x.what == "SIGUSR1" and x.who == "task" for x in signals):
        yield Finding("good", "notice before the time limit", what)
    else:
        change = "#SBATCH --signal=USR1@SECONDS, without B:"
        what = "SIGUSR1 did not reach the task before its time limit"
        why = "at a time limit only KillWait is left for a save"
        yield Finding("warning", "notice before the time limit", what, why, change)


def _after(line: Line, probe: Probe) -> bool:
    """With a preemption, only what came after it is a notice of it."""
    return probe.taken_at is None or line.time >= probe.taken_at - CLOCK_S


def _requeue(probe: Probe) -> Iterator[Finding]:
    if not probe.preempted:
        return
    if probe.restarts or any(x.what == "restarted" for x in probe.lines):
        yield Finding("good", "requeue", "the preempted probe was requeued")
    else:
        yield Finding("danger", "requeue", f"the preempted probe ended as {probe.state}",
                      "only a controller of ours starts it again",
                      "slurm.conf: PartitionName=... PreemptMode=REQUEUE")  # fmt: skip
