"""Which words may reach the command lines of sbatch and srun. Pure, standard library only."""

from __future__ import annotations

import re
from collections.abc import Collection

from orchestrator.config.values.suggest import did_you_mean

TOKEN = re.compile(r"[A-Za-z0-9_.,:;+@%/\[\]()*&|!=-]+")
"""A value without blanks, quotes, backslash or `#`, all of which sbatch would interpret."""

OURS = frozenset(
    {
        *("array", "chdir", "cpus-per-gpu", "cpus-per-task", "error", "export", "export-file"),
        *("get-user-env", "gid", "gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task"),
        *("gres", "input", "job-name", "kill-on-invalid-dep", "mem", "no-kill", "no-requeue"),
        *("nodes", "ntasks", "ntasks-per-core", "ntasks-per-gpu", "ntasks-per-node"),
        *("ntasks-per-socket", "open-mode", "output", "parsable", "requeue", "signal"),
        *("test-only", "time", "uid", "wait", "wrap"),
        *("partition", "qos", "account", "reservation", "constraint", "exclude", "comment"),
    }
)
"""Options of sbatch that follow from the job file, or that the supervisor depends upon."""

SBATCH = frozenset(
    {
        *("acctg-freq", "bb", "bbf", "begin", "cluster-constraint", "container", "contiguous"),
        *("core-spec", "cores-per-socket", "cpu-freq", "deadline", "delay-boot", "dependency"),
        *("distribution", "exclusive", "extra-node-info", "gpu-bind", "gpu-freq", "gres-flags"),
        *("hint", "hold", "licenses", "mail-type", "mail-user", "mcs-label", "mem-bind"),
        *("mem-per-cpu", "mem-per-gpu", "network", "nice", "nodelist", "oversubscribe"),
        *("power", "prefer", "priority", "profile", "propagate", "reboot", "sockets-per-node"),
        *("spread-job", "switches", "thread-spec", "threads-per-core", "time-min", "tmp"),
        *("use-min-nodes", "wait-all-nodes", "wckey"),
    }
)
"""Further options of sbatch that a job may give. A list of what is allowed, because sbatch
takes any abbreviation of an option."""

SRUN = frozenset(
    {
        *("container-env", "container-image", "container-mount-home", "container-mounts"),
        *("container-name", "container-remap-root", "container-workdir", "container-writable"),
        *("cpu-bind", "cpu-freq", "distribution", "gpu-bind", "gpu-freq", "gres-flags", "hint"),
        *("mem-bind", "mpi", "network", "no-container-mount-home", "no-container-remap-root"),
        *("overlap", "profile", "propagate", "threads-per-core"),
    }
)
"""Options of srun that a job may give (containers: those of the pyxis plugin)."""

_OPTION = re.compile(r"--([a-z][a-z0-9-]*)(?:=([A-Za-z0-9_.,:;+@%/\[\]()*&|!=-]+))?")


def option_fault(option: str, allowed: Collection[str] | None) -> tuple[str, str] | None:
    """What is wrong with `--name` or `--name=value`, and the cure; None if nothing is.

    allowed: names of options; None = every one that is not ours.
    """
    found = _OPTION.fullmatch(option)
    if found is None:
        return (
            f"{option[:80]!r} is no plain option",
            "write --name or --name=value, without blanks or quotes",
        )
    name = found[1]
    if name in OURS:
        return f"--{name} is set by qvl-orchestrate", _elsewhere(name)
    if allowed is None or name in allowed:
        return None
    hint = did_you_mean(name, allowed)
    return f"--{name} is not allowed here", hint or "ask your administrator: allow_options"


def _elsewhere(name: str) -> str:
    """Where a job says what that option says."""
    if name in ("partition", "qos", "account", "reservation", "constraint", "exclude", "comment"):
        return f"use slurm.{name}"
    return {
        "nodes": "use resources.nodes",
        "time": "use resources.time_limit",
        "mem": "use resources.memory_gb",
        "cpus-per-task": "use resources.cpus_per_gpu",
        "cpus-per-gpu": "use resources.cpus_per_gpu",
        "gpus": "use resources.gpus_per_node",
        "gpus-per-node": "use resources.gpus_per_node",
        "gres": "use resources.gpus_per_node and slurm.gpu_type",
        "signal": "use slurm.signal_s",
        "export": "use env and secrets",
        "job-name": "use name",
    }.get(name, "remove it")
