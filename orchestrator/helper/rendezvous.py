"""Where the ranks of an attempt meet: an address of this node, of either family, and a port."""

from __future__ import annotations

import ipaddress
import os
import random
import socket
from collections.abc import Mapping
from contextlib import suppress

from orchestrator.errors import StorageError

PORTS = range(10_000, 30_000)
"""Below those that kernels give to outgoing connections and Kubernetes to its services."""
PORT_TRIES = 100
_ALONE = ("127.0.0.1", "::1")


def meeting_point(nodes: int) -> tuple[str, int]:
    """An address others can reach and a port that is free now."""
    for address in _ALONE if nodes == 1 else addresses(os.environ):
        if _is_ours(address):
            return address, free_port()
    raise StorageError("this node has no address that the other nodes could reach")


def free_port() -> int:
    """A port that is free now and that nobody is given by chance until rank 0 listens on it."""
    for port in random.SystemRandom().sample(PORTS, PORT_TRIES):
        if all(_is_free(family, port) for family in (socket.AF_INET, socket.AF_INET6)):
            return port
    raise StorageError("this node has no free port for its ranks to meet at")


def addresses(environ: Mapping[str, str]) -> list[str]:
    """Addresses of this node, the best first: those of its names, loopback last.

    Debian gives a host its own name on a loopback address; what Slurm calls the node, and
    the address that srun was started on (node 0 itself), lead the others here.
    """
    found = []
    for name in (environ.get("SLURMD_NODENAME"), socket.gethostname()):
        found += _resolved(name) if name else []
    if environ.get("SLURM_NODEID") == "0":
        found += _resolved(environ.get("SLURM_LAUNCH_NODE_IPADDR", ""))
    return sorted(dict.fromkeys(found), key=lambda a: ipaddress.ip_address(a).is_loopback)


def _resolved(name: str) -> list[str]:
    """What a name stands for, IPv4 first; addresses that hold on one link only lead nowhere."""
    if not name:
        return []
    found = []
    with suppress(OSError):
        for _, _, _, _, where in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM):
            with suppress(ValueError):
                found.append(ipaddress.ip_address(str(where[0])))
    usable = [a for a in found if not a.is_link_local]
    return [str(a) for a in sorted(usable, key=lambda a: a.version)]


def _is_ours(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(family) as probe:
        probe.bind((address, 0))
        return True
    return False


def _is_free(family: socket.AddressFamily, port: int) -> bool:
    """A node that lacks the family has nobody on it."""
    try:
        probe = socket.socket(family)
    except OSError:
        return True
    with probe:
        try:
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(("", port))
        except OSError:
            return False
    return True
