"""Variables of the environment that a job or a site must not set."""

from __future__ import annotations

ENV_NAMES = frozenset(
    {
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        "NODE_RANK",
        "CUDA_VISIBLE_DEVICES",
        "CROSS_RANK",
        "CROSS_SIZE",
    }
)
"""Variables that the agent sets for each rank."""
ENV_PREFIXES = ("QVL_", "MASTER_", "ACCELERATE_", "SLURM_", "SUBMITIT_", "TORCHELASTIC_")
"""Prefixes of variables that belong to the agent, the launcher or the scheduler."""

LOADS_CODE = frozenset(
    {
        "BASH_ENV",
        "ENV",
        "GCONV_PATH",
        "PYTHONBREAKPOINT",
        "PYTHONEXECUTABLE",
        "PYTHONHOME",
        "PYTHONINSPECT",
        "PYTHONPLATLIBDIR",
        "PYTHONPYCACHEPREFIX",
        "PYTHONSTARTUP",
        "PYTHONUSERBASE",
        "PYTHONWARNINGS",
    }
)
"""Variables by which every program or shell that starts loads or runs something unseen. Not PATH
and PYTHONPATH: they say where what is named elsewhere is looked for, and many jobs need them.
"""
LOADS_CODE_PREFIXES = ("LD_", "BASH_FUNC_")


def is_reserved_env(name: str) -> bool:
    """True for a variable that the agent or the scheduler sets."""
    return name in ENV_NAMES or name.startswith(ENV_PREFIXES)


def is_start_hook(name: str) -> bool:
    """True for a variable that makes every program load or run code: `LD_PRELOAD` and its like."""
    return name in LOADS_CODE or name.startswith(LOADS_CODE_PREFIXES)
