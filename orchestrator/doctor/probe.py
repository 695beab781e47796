"""`doctor --probe`: a small job that writes down which signals arrive, where and when."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from orchestrator.backends.base import JobRef
from orchestrator.backends.slurm import commands
from orchestrator.backends.slurm.queue import Queue
from orchestrator.backends.slurm.values import gpu_options
from orchestrator.config.models.site import SiteConfig
from orchestrator.config.settings import slurm_settings
from orchestrator.doctor import judge_probe
from orchestrator.doctor.finding import Finding
from orchestrator.doctor.judge_probe import Probe
from orchestrator.doctor.slurmconf import parse_config, parse_partitions
from orchestrator.errors import QvlError, UserError
from orchestrator.templates.find import find_template
from orchestrator.templates.render import render

START_S = 120.0
"""So long the probe may wait in the queue."""
LIMIT_MINUTES = 2
"""Slurm may send the signal before the limit a minute early."""
PREEMPT_MINUTES = 10
POLL_S = 0.5
VERSIONS = """
import importlib.metadata as m, platform
found = ["python " + platform.python_version()]
for name in ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "deepspeed"):
    try:
        found.append(name + " " + m.version(name))
    except m.PackageNotFoundError:
        found.append(name + " none")
print(", ".join(found))
"""
"""Run by the interpreter here and on the node: one line with what it has."""
TASK_S = 3.0
"""The task runs for so long before it is preempted."""
LINGER_S = 10.0
"""After the last sign of life, for what comes late."""


def run_probe(
    state_dir: Path, partition: str | None, preempt_with: str | None, site: SiteConfig
) -> tuple[Finding, ...]:
    """Submit, watch, cancel, and judge. With `preempt_with`, a job of that partition takes the
    probe's node; without, its time limit ends it.

    Raises UserError if Slurm refuses it.
    """
    folder = state_dir / "probes" / secrets.token_hex(6)
    folder.mkdir(mode=0o700, parents=True)
    taker = None
    job = _submit(folder, partition, bool(preempt_with), site)
    try:
        watch = _Watch(folder, job.id)
        probe = watch.until_running()
        if probe.lines and preempt_with:
            time.sleep(TASK_S)
            taken_at = time.time()
            taker = take_nodes(preempt_with, watch.node())
            probe = replace(watch.until_ended(), preempted=True, taken_at=taken_at)
        elif probe.lines:
            probe = watch.until_ended()
    finally:
        for one in filter(None, (job, taker)):
            _cancel(one)
    probe = replace(
        probe,
        configured_s=_configured(watch.state.get("Partition", "")),
        versions_here=_said([sys.executable, "-c", VERSIONS]),
        slurm_here=_said(["srun", "--version"]),
    )
    shutil.rmtree(folder, ignore_errors=True)
    return judge_probe.judge(probe)


def _submit(folder: Path, partition: str | None, preempt: bool, site: SiteConfig) -> JobRef:
    """The probe's job. One GPU is asked for, and none where the cluster has none."""
    rules = site.slurm
    block = {"gpu_request": rules.gpu_request, "gpu_type": rules.gpu_type}
    gpus = gpu_options(1, slurm_settings(block))
    common = [f"--{name}={value}" for name, value in
              (("partition", partition), ("account", rules.account), ("qos", rules.qos))
              if value]  # fmt: skip
    name = f"qvl-probe-{folder.name}"
    for options in ([*common, *gpus], common):
        values = {
            "job_name": name,
            "minutes": PREEMPT_MINUTES if preempt else LIMIT_MINUTES,
            "options": options,
            "folder": str(folder),
            "python": sys.executable,
            "version_code": VERSIONS,
        }
        template = find_template(
            "slurm",
            "probe.sbatch.j2",
            site_dir=Path(site.templates_dir) if site.templates_dir else None,
        )
        script = folder / "probe.sbatch"
        script.write_text(render(template, values).text)
        argv = ["sbatch", "--parsable", f"--chdir={folder}", str(script)]
        answer = commands.run(argv)
        if answer.ok:
            return JobRef(answer.out.strip().partition(";")[0], name)
        if "gres" not in answer.err.lower() and "configuration" not in answer.err.lower():
            break
    raise UserError(f"Slurm refuses the probe: {answer.words}", hint="give --partition, --site")


def _said(argv: list[str]) -> str:
    """The line that a program prints; empty if it fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def nodes_of(job: JobRef) -> str:
    """The nodes that a job runs on, as Slurm writes them: `gpu[3-4]`."""
    answer = commands.run(["scontrol", "-o", "show", "job", job.id])
    found = dict(w.split("=", 1) for w in answer.out.split() if "=" in w)
    nodes = found.get("NodeList", "")
    mine = found.get("JobName") == job.key
    if not answer.ok or not mine or nodes in ("", "(null)"):
        raise UserError(f"job {job.id} ({job.key}) runs on no node now", hint="squeue --me")
    return nodes


def take_nodes(partition: str, nodes: str) -> JobRef:
    """A short job that takes exactly these nodes, and preempts what runs there.

    Raises UserError if Slurm refuses it.
    """
    argv = ["sbatch", "--parsable", f"--partition={partition}", f"--nodelist={nodes}"]
    name = f"qvl-taker-{secrets.token_hex(6)}"
    argv += ["--exclusive", "--time=2", "--output=/dev/null", f"--job-name={name}"]
    answer = commands.run([*argv, "--wrap=sleep 1"])
    if not answer.ok:
        raise UserError(
            f"no job can be submitted to {partition}: {answer.words}",
            hint="--preempt-with names a partition with a higher PriorityTier",
        )
    return JobRef(answer.out.strip().partition(";")[0], name)


def _cancel(job: JobRef) -> None:
    with suppress(QvlError):
        if Queue(time.time, time.monotonic).knows(job):
            commands.end_job(job.id)


def _configured(partition: str) -> int | None:
    """GraceTime of the partition, or KillWait where that is 0."""
    with suppress(QvlError):
        conf = parse_config(commands.run(["scontrol", "show", "config"]).out)
        known = parse_partitions(commands.run(["scontrol", "-o", "show", "partition"]).out)
        grace = next((p.grace_s for p in known if p.name == partition), 0)
        return grace or conf.seconds("KillWait")
    return None


class _Watch:
    """Follows one probe through its reports and Slurm's own words."""

    def __init__(self, folder: Path, job_id: str) -> None:
        self._folder = folder
        self._job_id = job_id
        self._seen_after: float | None = None
        self._ran = False
        self.state: Mapping[str, str] = {}

    def node(self) -> str:
        """The node it runs on."""
        return self.state.get("NodeList", "")

    def until_running(self) -> Probe:
        """Until its task has said a word, has ended, or time is over."""
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            probe = self._look()
            told = any(line.who == "task" for line in probe.lines)
            if told or self._over():
                return self._look()
            time.sleep(POLL_S)
        return self._look()

    def until_ended(self) -> Probe:
        """Until its task is silent and Slurm has decided what becomes of the job."""
        probe = self._look()
        end = time.monotonic() + 60 * PREEMPT_MINUTES
        silent = time.monotonic()
        while time.monotonic() < end:
            time.sleep(POLL_S)
            before, probe = probe, self._look()
            if len(probe.lines) != len(before.lines):
                silent = time.monotonic()
            moved_on = self._over() or probe.restarts > 0
            if moved_on and time.monotonic() - silent > min(LINGER_S, 4 * POLL_S):
                break
        return probe

    def _over(self) -> bool:
        state = self.state.get("JobState", "")
        return state not in ("", "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED")

    def _look(self) -> Probe:
        with suppress(QvlError):
            words = commands.run(["scontrol", "-o", "show", "job", self._job_id]).out.split()
            self.state = dict(w.split("=", 1) for w in words if "=" in w) or self.state
        self._ran = self._ran or self.state.get("JobState") == "RUNNING"
        text = ""
        for name in ("batch", "task"):
            with suppress(OSError):
                text += (self._folder / f"{name}.report").read_text(errors="replace")
        lines = judge_probe.parse(text)
        if lines and self._seen_after is None:
            self._seen_after = time.time() - lines[0].time
        restarts = self.state.get("Restarts", "0")
        return Probe(
            lines=lines,
            ran=self._ran,
            preempted=False,
            restarts=int(restarts) if restarts.isdigit() else 0,
            state=self.state.get("JobState", ""),
            seen_after_s=self._seen_after,
        )
