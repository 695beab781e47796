"""Slurm's configuration judged by what a preempted run needs. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.doctor.finding import Finding
from orchestrator.doctor.slurmconf import Partition, SlurmConf, parse_config, parse_partitions

OLDEST = (22, 5)
"""The oldest Slurm that was tried."""
CRED_EXPIRE_S = 120
"""cred_expire where AuthInfo does not say it."""
KILL_WAIT_S = 30
MARGIN = 1.5
"""A save must fit so often into the time that there is."""
PREEMPTED_CODES = {"75", "76"}
LONG_WAIT_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Wants:
    """What runs at this place need."""

    partitions: tuple[str, ...] = ()
    """Those that jobs go to; none named: the default one."""
    save_s: float | None = None
    """The longest save that was measured; None: none was."""
    micro_s: float | None = None
    """A micro-batch, after which a save can begin; None: not measured."""
    grace_s: float | None = None
    """What the job believes it has."""
    time_limit_s: int | None = None
    site_graces: Mapping[str, float] = field(default_factory=dict)
    """grace_s of each partition in site.yaml."""
    site_file: str = "site.yaml"

    @property
    def notice_s(self) -> float | None:
        """From a notice to the end of a save."""
        return None if self.save_s is None else self.save_s + (self.micro_s or 0.0)

    @property
    def took(self) -> str:
        """What was measured, in words."""
        micro = f", after a micro-batch of {self.micro_s:.1f} s" if self.micro_s else ""
        return f"a save took {self.save_s:.1f} s{micro}"


def judge(config_text: str, partition_text: str, wants: Wants) -> tuple[Finding, ...]:
    """Everything that the two answers of scontrol say about runs."""
    conf, known = parse_config(config_text), parse_partitions(partition_text)
    if not conf.version or not known:
        what = "scontrol's answer cannot be read"
        return (Finding("warning", "Slurm", what, "its settings were not looked at"),)
    found = [*_version(conf), *_requeue(conf), *_memory(conf), *_waits(conf, wants)]
    for name in _chosen(known, wants):
        partition = next((p for p in known if p.name == name), None)
        if partition is None:
            yours = ", ".join(p.name for p in known)
            why = "its jobs are refused"
            found.append(Finding("danger", f"partition {name}", "does not exist", why,
                                 f"slurm.partition: one of {yours}"))  # fmt: skip
        else:
            found += _partition(conf, partition, wants)
    return tuple(found)


def _chosen(known: Sequence[Partition], wants: Wants) -> tuple[str, ...]:
    named = tuple(name for entry in wants.partitions for name in entry.split(","))
    return named or tuple(p.name for p in known if p.default)


def _version(conf: SlurmConf) -> Iterator[Finding]:
    shown = conf.get("SLURM_VERSION")
    if conf.version and conf.version < OLDEST:
        why = "signals and requeues were tried from 22.05 on"
        yield Finding("warning", "Slurm", f"version {shown}", why, "run doctor --probe")
    else:
        yield Finding("good", "Slurm", f"version {shown}")


def _requeue(conf: SlurmConf) -> Iterator[Finding]:
    if conf.get("JobRequeue") == "0":
        why = "our batch files say --requeue themselves; jobs that do not are lost when preempted"
        yield Finding("note", "JobRequeue", "0", why, "slurm.conf: JobRequeue=1")
    holds = set(_codes(conf.get("RequeueExitHold")))
    if holds & PREEMPTED_CODES:
        why = "a preempted run would not start again by itself, only as a new job of its controller"
        yield Finding("danger", "RequeueExitHold", f"holds jobs that end with {_and(holds)}", why,
                      "slurm.conf: take 75 and 76 out of RequeueExitHold")  # fmt: skip
    elif holds:
        why = (
            "a run that fails so leaves a job in SPECIAL_EXIT behind, until its controller starts "
            "it anew or `cancel` ends it"
        )
        yield Finding("warning", "RequeueExitHold", f"holds jobs that end with {_and(holds)}", why,
                      "slurm.conf: RequeueExitHold= without codes of our jobs")  # fmt: skip
    crashes = set(_codes(conf.get("RequeueExit"))) - {"75", "76"}
    if crashes:
        why = "failures come back for ever, past the failure budget of the run"
        yield Finding("warning", "RequeueExit", f"starts jobs again that end with {_and(crashes)}",
                      why, "slurm.conf: RequeueExit=75")  # fmt: skip


def _codes(text: str) -> list[str]:
    """`1-3,75` as single codes."""
    found: list[str] = []
    for part in filter(None, text.split(",")):
        first, dash, last = part.partition("-")
        if dash and first.isdigit() and last.isdigit():
            found += [str(n) for n in range(int(first), min(int(last), 255) + 1)]
        else:
            found.append(part)
    return found


def _and(codes: set[str]) -> str:
    return ", ".join(sorted(codes, key=lambda c: (len(c), c)))


def _memory(conf: SlurmConf) -> Iterator[Finding]:
    """How long Slurm remembers how a job ended."""
    accounting = conf.get("AccountingStorageType").rpartition("/")[2]
    age = conf.seconds("MinJobAge")
    if accounting in ("", "none") and age is not None and age < 3600:
        yield Finding(
            "warning",
            "MinJobAge",
            f"{age} s, and there is no accounting",
            "how a job ended is forgotten so soon: a run whose controller was away longer is "
            "looked after by its own records only",
            "slurm.conf: MinJobAge=3600, or AccountingStorageType=accounting_storage/slurmdbd",
        )


def _waits(conf: SlurmConf, wants: Wants) -> Iterator[Finding]:
    """Times that Slurm lets pass."""
    given = conf.parameters("AuthInfo").get("cred_expire", "")
    expire = int(given) if given.isdigit() else CRED_EXPIRE_S
    if expire > LONG_WAIT_S:
        why = f"a requeued job waits {expire + 1} s before it may start, at every preemption"
        base = conf.get("AuthInfo") or ""
        line = ",".join(filter(None, [base if not given else "", "cred_expire=30"]))
        yield Finding("note", "cred_expire", f"{expire} s", why, f"slurm.conf: AuthInfo={line}")
    kill = _kill_wait(conf)
    if kill == 0:
        why = "SIGKILL follows SIGTERM at once: scontrol requeue, scancel, time limits save nothing"
        yield Finding("danger", "KillWait", "0 s", why, "slurm.conf: KillWait=30")
    elif wants.notice_s and kill < wants.notice_s * MARGIN:
        why = (
            "scontrol requeue, scancel and the end of the time limit leave only this long to save: "
            f"{wants.took}"
        )
        line = f"slurm.conf: KillWait={_round_up(wants.notice_s)}"
        yield Finding("warning", "KillWait", f"{kill} s", why, line)
    lost = conf.seconds("SlurmdTimeout")
    if lost and lost >= 300:
        why = "a node that dies is noticed, and its jobs start again, only after so long"
        yield Finding("note", "SlurmdTimeout", f"{lost} s", why, "slurm.conf: SlurmdTimeout=60")


def _kill_wait(conf: SlurmConf) -> int:
    known = conf.seconds("KillWait")
    return KILL_WAIT_S if known is None else known


def _round_up(save_s: float) -> int:
    """Seconds to ask an administrator for: with margin, in tens."""
    return max(30, -int(-save_s * MARGIN // 10) * 10)


def _partition(conf: SlurmConf, partition: Partition, wants: Wants) -> Iterator[Finding]:
    subject = f"partition {partition.name}"
    if partition.get("State").upper() not in ("UP", ""):
        yield Finding("danger", subject, f"is {partition.get('State')}", "its jobs do not start",
                      f"scontrol update PartitionName={partition.name} State=UP")  # fmt: skip
    yield from _limits(partition, wants)
    kind = conf.get("PreemptType").rpartition("/")[2]
    if kind in ("", "none"):
        yield Finding("note", subject, "nothing is preempted (PreemptType=preempt/none)",
                      "runs still resume after time limits and node failures")  # fmt: skip
        return
    if kind == "qos":
        yield Finding("note", subject, "preemption goes by QOS",
                      "GraceTime and PreemptMode of the QOS count, and were not looked at",
                      "sacctmgr show qos format=name,gracetime,preemptmode")  # fmt: skip
        yield from _signal(conf)
        return
    modes = partition.preempt_modes
    if "OFF" in modes:
        yield Finding("good", subject, "its jobs are not preempted")
        return
    yield from _mode(subject, partition, modes)
    yield from _grace(conf, partition, wants)
    yield from _signal(conf)


def _mode(subject: str, partition: Partition, modes: frozenset[str]) -> Iterator[Finding]:
    line = f"slurm.conf: PartitionName={partition.name} ... PreemptMode=REQUEUE"
    if "CANCEL" in modes:
        why = "Slurm does not start a preempted job again: only a controller of ours does"
        yield Finding("warning", subject, "PreemptMode=CANCEL", why, line)
    elif modes & {"SUSPEND", "GANG"}:
        why = "a suspended job keeps its GPU memory, gets no notice and blocks what preempts it"
        yield Finding("danger", subject, f"PreemptMode={','.join(sorted(modes))}", why, line)
    else:
        yield Finding("good", subject, "preempted jobs are requeued")


def _grace(conf: SlurmConf, partition: Partition, wants: Wants) -> Iterator[Finding]:
    kill = _kill_wait(conf)
    real = partition.grace_s or kill
    subject = f"GraceTime of {partition.name}"
    line = f"slurm.conf: PartitionName={partition.name} ... GraceTime="
    source = f"{partition.grace_s} s" if partition.grace_s else f"0, so KillWait counts: {kill} s"
    needs = wants.notice_s
    if real == 0:
        why = "a preempted job is killed at once and loses the steps since the last save"
        yield Finding("danger", subject, source, why, f"{line}60")
    elif needs is None:
        why = "no save was measured yet; run doctor again after the first checkpoint"
        change = "" if partition.grace_s else f"{line}60"
        yield Finding("note" if partition.grace_s else "warning", subject, source, why, change)
    elif needs > real:
        why = f"{wants.took}: each preemption loses the steps since the last save"
        yield Finding("danger", subject, source, why, f"{line}{_round_up(needs)}")
    elif needs * MARGIN > real:
        why = f"{wants.took}, which leaves little room"
        yield Finding("warning", subject, source, why, f"{line}{_round_up(needs)}")
    else:
        yield Finding("good", subject, f"{source}; {wants.took}")
    yield from _beliefs(partition, real, wants)


def _beliefs(partition: Partition, real: int, wants: Wants) -> Iterator[Finding]:
    """What the site file and the job take the grace to be."""
    name, why = partition.name, "the agent plans its save with a deadline that is too late"
    said = wants.site_graces.get(name)
    if said is not None and said > real:
        yield Finding("danger", f"{wants.site_file}: grace_s of {name}",
                      f"{said:g} s, but Slurm gives {real} s", why,
                      f"slurm.partitions: {{name: {name}, grace_s: {real}}}")  # fmt: skip
    elif said is None and wants.grace_s is not None and wants.grace_s > real:
        yield Finding("danger", "preemption.grace_s",
                      f"{wants.grace_s:g} s, but partition {name} gives {real} s", why,
                      f"job.yaml: preemption: {{grace_s: {real}}}")  # fmt: skip


def _signal(conf: SlurmConf) -> Iterator[Finding]:
    set_new = "send_user_signal" in conf.parameters("PreemptParameters")
    set_old = "preempt_send_user_signal" in conf.parameters("SlurmctldParameters")
    notice = "SIGUSR1" if set_new or set_old else "SIGTERM"
    yield Finding("good", "send_user_signal", f"a preemption is noticed by {notice}")


def _limits(partition: Partition, wants: Wants) -> Iterator[Finding]:
    longest, asked = partition.max_time_s, wants.time_limit_s
    if asked is not None and longest is not None and asked > longest:
        yield Finding("danger", f"MaxTime of {partition.name}", f"{longest} s, asked for {asked} s",
                      "the job is refused, or waits for ever",
                      f"job.yaml: resources: {{time_limit: {longest}}}")  # fmt: skip
    default = partition.default_time_s
    if asked is None and default is not None and wants.grace_s is not None:
        yield Finding("note", f"DefaultTime of {partition.name}",
                      f"{default} s, and the job names no time limit",
                      "each attempt ends after so long, and the next one waits in the queue",
                      "job.yaml: resources: {time_limit: 24h}")  # fmt: skip
