"""Where ranks meet: addresses of either family, ports that nobody is given by chance."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from orchestrator.errors import StorageError
from orchestrator.helper import rendezvous
from orchestrator.helper.rendezvous import free_port
from trainer.collectives.tcp import TcpGroup

ROOT = Path(__file__).resolve().parents[3]


def resolving(monkeypatch: pytest.MonkeyPatch, known: dict[str, list[str]]) -> None:
    real = socket.getaddrinfo

    def lookup(name: str, *args: object, **named: object) -> list[tuple]:
        if name in known:
            return [(0, 0, 0, "", (address, 0)) for address in known[name]]
        if not name[0].isdigit():
            raise socket.gaierror(name)
        return real(name, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(socket, "gethostname", lambda: "debian")


def test_nodes_meet_where_others_can_reach_them(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, {"gpu7": ["10.0.0.7"], "debian": ["127.0.1.1"]})
    assert rendezvous.addresses({"SLURMD_NODENAME": "gpu7"}) == ["10.0.0.7", "127.0.1.1"]
    launched = {"SLURMD_NODENAME": "qn1", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.9"}
    assert rendezvous.addresses({**launched, "SLURM_NODEID": "0"}) == ["10.0.0.9", "127.0.1.1"]
    assert rendezvous.addresses({**launched, "SLURM_NODEID": "1"}) == ["127.0.1.1"]


@pytest.mark.parametrize(
    ("of_name", "found"),
    [
        (["fd00::7"], ["fd00::7"]),
        (["fd00::7", "10.0.0.7"], ["10.0.0.7", "fd00::7"]),
        (["::1", "fd00::7"], ["fd00::7", "::1"]),
        (["::1", "127.0.1.1"], ["127.0.1.1", "::1"]),
        (["fe80::1%eth0", "fd00::7"], ["fd00::7"]),
    ],
)
def test_addresses_of_either_family(
    monkeypatch: pytest.MonkeyPatch, of_name: list[str], found: list[str]
) -> None:
    """IPv4 first where there are both; nothing that holds on one link only."""
    resolving(monkeypatch, {"debian": of_name})
    assert rendezvous.addresses({}) == found


def test_a_node_whose_names_cannot_be_bound_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "addresses", lambda _: ["192.0.2.1", "2001:db8::1"])
    with pytest.raises(StorageError, match="no address"):
        rendezvous.meeting_point(2)


def test_ranks_meet_at_a_port_that_no_outgoing_connection_is_given() -> None:
    first, _, _ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().partition("\t")
    assert free_port() < int(first)


@pytest.mark.parametrize("address", ["", "::"])
def test_a_node_without_a_free_port_says_so(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Taken in either family is taken."""
    family = socket.AF_INET6 if address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        taken = server.getsockname()[1]
        monkeypatch.setattr(rendezvous, "PORTS", range(taken, taken + 1))
        monkeypatch.setattr(rendezvous, "PORT_TRIES", 1)
        with pytest.raises(StorageError, match="no free port"):
            free_port()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_ranks_agree_over_either_family(address: str) -> None:
    port, found = free_port(), {}

    def come(rank: int) -> None:
        group = TcpGroup(rank, 2, address, port, 10.0)
        found[rank] = group.gather(f"rank {rank}")
        group.close()

    threads = [threading.Thread(target=come, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: ["rank 0", "rank 1"], 1: ["rank 0", "rank 1"]}


IN_A_POD = """
import subprocess, sys
from orchestrator.helper.rendezvous import meeting_point
address, port = meeting_point(2)
assert address == "fd00::7", address
rank = '''
import sys
from datetime import timedelta
import torch.distributed as dist
from trainer.collectives.gloo import make_group
rank, port = int(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
group = make_group(60.0)
assert group.gather(f"rank {rank}") == ["rank 0", "rank 1"]
group.close()
'''
import os
environ = {**os.environ, "MASTER_ADDR": address, "MASTER_PORT": str(port)}
ranks = [subprocess.Popen([sys.executable, "-c", rank, str(n), str(port)], env=environ)
         for n in range(2)]
assert [r.wait(100) for r in ranks] == [0, 0]
print("met at", address)
"""


@pytest.mark.torch
@pytest.mark.timeout(180)
def test_a_gang_meets_where_there_is_no_ipv4_at_all(tmp_path: Path) -> None:
    """A network namespace like that of an IPv6-only pod: real gloo, under the node's own name."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-nm", "true"]).returncode:
        pytest.skip("no right to make a network namespace")
    hosts = tmp_path / "hosts"
    hosts.write_text(f"::1 localhost\nfd00::7 {socket.gethostname()}\n")
    network = (
        f"mount --bind {hosts} /etc/hosts && ip link set lo up && ip addr del 127.0.0.1/8 dev lo "
        '&& ip addr add fd00::7/128 dev lo nodad && exec "$@"'
    )
    argv = ["unshare", "-nm", "sh", "-c", network, "sh", sys.executable, "-c", IN_A_POD]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "met at fd00::7\n"
