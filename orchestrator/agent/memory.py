"""Whether the kernel has killed processes of this job because their memory limit was reached.

The counter `oom_kill` of the process's own control group: memory.events (cgroup v2) or
memory.oom_control (v1), see the kernel's Documentation/admin-guide/cgroup-v{1,2}.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def oom_kills(mount: Path = MOUNT, own: Path = OWN) -> int:
    """How many so far; 0 where the kernel does not tell."""
    for path in _files(mount, own):
        with suppress(OSError, ValueError):
            counters = dict(line.split() for line in path.read_text().splitlines())
            return int(counters.get("oom_kill", 0))
    return 0


def _files(mount: Path, own: Path) -> Iterator[Path]:
    """Where the counter may stand. In a container the group's own path may not be visible: there
    it is the mount itself.
    """
    with suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                yield from (mount / path[1:] / "memory.events", mount / "memory.events")
            elif "memory" in controllers.split(","):
                base = mount / "memory"
                yield from (base / path[1:] / "memory.oom_control", base / "memory.oom_control")
