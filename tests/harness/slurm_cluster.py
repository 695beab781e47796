"""A real Slurm on this host: munged, slurmctld and four slurmds in a folder of their own.

Needs root and Debian's packages (installed if they are missing and apt may); everything
listens on 127.0.0.1 and ends with the test session. Four virtual nodes qn1..qn4, four fake
GPUs each; partitions preemptible (grace 20 s), nograce (grace 0), high (preempts both).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

CONFIG = Path(__file__).parent / "slurm"
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
DBD_PACKAGES = ("slurmdbd", "mariadb-server")
NODES = ("qn1", "qn2", "qn3", "qn4")
CLIENT_S = 20
"""Every Slurm client runs under this limit: some wait for minutes for what does not come."""
PR_SET_PDEATHSIG = 1


def missing(*, dbd: bool = False) -> str | None:
    """Why there can be no cluster here, with the cure; None if there can. May install."""
    if os.geteuid() != 0:
        return "a Slurm of our own needs root (node daemons, device files): run as root"
    wanted = (*PACKAGES, *(DBD_PACKAGES if dbd else ()))
    programs = ("slurmctld", "slurmd", "munged", "sbatch", *(("slurmdbd",) if dbd else ()))
    if all(_program(p) for p in programs):
        return None
    if shutil.which("apt-get") is None:
        return f"no Slurm here and no apt-get to install it: install {' '.join(wanted)}"
    why = _install(wanted)
    if why is None and all(_program(p) for p in programs):
        return None
    return f"Slurm could not be installed ({why}): apt-get install {' '.join(wanted)}"


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def version() -> tuple[int, ...]:
    """Of the installed Slurm: (year, month)."""
    said = subprocess.run(["slurmd", "-V"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in said.split()[1].split(".")[:2])


def _install(packages: Sequence[str]) -> str | None:
    """Install from the configured mirrors; no daemon is started (RUNLEVEL, policy-rc.d)."""
    environ = {**os.environ, "RUNLEVEL": "1", "DEBIAN_FRONTEND": "noninteractive"}
    argv = ["apt-get", "-o", "DPkg::Lock::Timeout=120", "install", "-y"]
    argv += ["--no-install-recommends", *packages]
    for before in ([], ["apt-get", "update"]):
        if before:
            subprocess.run(before, env=environ, capture_output=True, timeout=120, check=False)
        done = subprocess.run(
            argv, env=environ, capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode == 0:
            return None
    return (done.stderr.strip().splitlines() or ["no reason given"])[-1]


@dataclass
class Cluster:
    """One Slurm. `start` returns when all nodes are idle; `stop` ends every process of it."""

    folder: Path
    dbd: bool = False
    settings: dict[str, str] = field(default_factory=dict)
    """Lines of slurm.conf that replace or add to those of slurm.conf.in."""
    _daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _base: int = 0

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    def environ(self) -> dict[str, str]:
        """For clients of this cluster."""
        return {**os.environ, "SLURM_CONF": str(self.conf)}

    # --- life

    def start(self) -> None:
        for name in ("run", "log", "spool/ctld", "dev", *(f"spool/{n}" for n in NODES)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(4):
            device = self.folder / "dev" / f"gpu{number}"
            if not device.exists():
                os.mknod(device, 0o600 | 0o020000, os.makedev(1, 3))
        self._base = _free_ports()
        self._start_munge()
        if self.dbd:
            self._start_database()
        self.write_config()
        self._spawn("slurmctld", ["slurmctld", "-D", "-f", str(self.conf)])
        for node in NODES:
            self.start_node(node)
        self.wait_idle()

    def stop(self) -> None:
        """End everything, jobs first."""
        if "slurmctld" in self._daemons:
            with suppress(AssertionError):
                self.cancel_all(seconds=10)
        for name in reversed(list(self._daemons)):
            self.kill(name, signal.SIGTERM if name in ("database", "slurmdbd") else signal.SIGKILL)
        self._end_leftovers()

    def write_config(self, **settings: str) -> None:
        """slurm.conf and its companions; `settings` are added to those of the cluster."""
        lines = (CONFIG / "slurm.conf.in").read_text().splitlines()
        chosen = {**self.settings, **settings}
        if self.dbd:
            chosen |= {
                "AccountingStorageType": "accounting_storage/slurmdbd",
                "AccountingStorageHost": "127.0.0.1",
                "AccountingStoragePort": f"{self._base // 10}5",
                "AccountingStoragePass": f"{self.folder}/run/munge.socket",
            }
        kept = [x for x in lines if x.partition("=")[0] not in chosen]
        text = "\n".join([*kept, *(f"{k}={v}" for k, v in chosen.items()), ""])
        self.conf.write_text(self._filled(text))
        (self.folder / "gres.conf").write_text(self._filled((CONFIG / "gres.conf.in").read_text()))
        (self.folder / "cgroup.conf").write_text(
            "CgroupPlugin=disabled\n" if version() >= (23, 2) else "CgroupAutomount=no\n"
        )

    def reconfigure(self, **settings: str) -> None:
        """Other settings for a running cluster; without any, those it was started with."""
        self.write_config(**settings)
        self.client("scontrol", "reconfigure")

    def start_node(self, node: str) -> None:
        self._spawn(node, ["slurmd", "-D", "-f", str(self.conf), "-N", node])

    def start_controller(self) -> None:
        self._spawn("slurmctld", ["slurmctld", "-D", "-f", str(self.conf)])

    def wait_saved(self, seconds: float = 30.0) -> None:
        """Until slurmctld has stored the jobs as they are now: what it forgets when it is killed
        before, it starts a second time.
        """
        since = time.time()
        state = self.folder / "spool" / "ctld" / "job_state"
        _wait_for(lambda: state.exists() and state.stat().st_mtime > since, seconds)

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """End a daemon: `slurmctld` or a node's name."""
        process = self._daemons.pop(name, None)
        if process is not None:
            process.send_signal(number)
            process.wait(timeout=15)

    # --- clients

    def client(self, *argv: str, check: bool = True) -> str:
        """Output of a Slurm command. AssertionError if it fails, unless `check` is off."""
        done = subprocess.run(
            ["timeout", str(CLIENT_S), *argv],
            env=self.environ(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, job_id: str) -> dict[str, str]:
        """`scontrol show job` as a mapping."""
        words = self.client("scontrol", "-o", "show", "job", job_id).split()
        return dict(w.split("=", 1) for w in words if "=" in w)

    def take_nodes(self, seconds: float = 1.0, *, nodes: int = len(NODES), on: str = "") -> str:
        """A job of the partition that preempts the others, on whole nodes; returns its id."""
        where = ["-w", on] if on else []
        text = self.client(
            *("sbatch", "--parsable", "-p", "high", f"-N{nodes}", "--exclusive"),
            *("-o", "/dev/null", "-J", "taker", *where, "--wrap", f"sleep {seconds}"),
        )
        return text.strip()

    def cancel_all(self, *, seconds: float = 30.0) -> None:
        """End every job for good and wait until the queue is empty."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            jobs = self.client("squeue", "-h", "-o", "%i", check=False).split()
            if not jobs:
                return
            for job in jobs:
                self.client("scontrol", "update", f"jobid={job}", "requeue=0", check=False)
            self.client("scancel", "--signal=KILL", "--full", *jobs, check=False)
            self.client("scancel", *jobs, check=False)
            time.sleep(0.3)
        raise AssertionError("jobs do not end")

    def wait_idle(self, seconds: float = 30.0) -> None:
        """Until all four nodes take jobs."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            states = self.client("sinfo", "-h", "-N", "-p", "high", "-o", "%N %t", check=False)
            if states.split().count("idle") == len(NODES):
                return
            time.sleep(0.1)
        raise AssertionError(f"nodes are not idle:\n{states}\n{self.logs()}")

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        files = sorted((self.folder / "log").glob("*"))
        return "\n".join(f"== {f.name}\n{f.read_text(errors='replace')[-1500:]}" for f in files)

    # --- daemons

    def _filled(self, text: str) -> str:
        host = socket.gethostname().split(".")[0]
        ports = str(self._base // 10)
        return text.replace("@R@", str(self.folder)).replace("@HOST@", host).replace("@P@", ports)

    def _spawn(self, name: str, argv: Sequence[str]) -> None:
        program = _program(argv[0])
        assert program is not None, f"{argv[0]} is not installed"
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                [program, *argv[1:]],
                env=self.environ(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_end_with_parent,
                cwd=self.folder,
            )

    def _start_munge(self) -> None:
        key = self.folder / "run" / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        run = self.folder / "run"
        argv = ["munged", "-F", "-f", f"--key-file={key}", f"--socket={run}/munge.socket"]
        argv += [f"--log-file={self.folder}/log/munged.log", f"--pid-file={run}/munged.pid"]
        self._spawn("munged", [*argv, f"--seed-file={run}/munge.seed"])
        _wait_for((run / "munge.socket").exists)

    def _start_database(self) -> None:
        data, run = self.folder / "mysql", self.folder / "run"
        subprocess.run(
            ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root"],
            check=True,
            capture_output=True,
            timeout=60,
        )
        port = f"{self._base // 10}6"
        argv = ["mariadbd", "--no-defaults", f"--datadir={data}", "--user=root"]
        argv += [f"--socket={run}/mysql.socket", f"--port={port}", "--bind-address=127.0.0.1"]
        self._spawn("database", argv)
        _wait_for(lambda: self._sql("select 1"))
        assert self._sql(
            "create database slurm_acct_db; create user slurm@'%' identified by 'slurm';"
            "create user slurm@localhost identified by 'slurm';"
            "grant all on slurm_acct_db.* to slurm@'%', slurm@localhost"
        )
        conf = self.folder / "slurmdbd.conf"
        conf.write_text(self._filled((CONFIG / "slurmdbd.conf.in").read_text()))
        conf.chmod(0o600)
        self.write_config()
        self._spawn("slurmdbd", ["slurmdbd", "-D"])
        add = ("sacctmgr", "-i", "add", "cluster", "qvl")
        _wait_for(lambda: "dding Cluster" in self.client(*add, check=False))

    def _sql(self, text: str) -> bool:
        argv = ["mariadb", "--no-defaults", f"--socket={self.folder}/run/mysql.socket", "-e", text]
        return subprocess.run(argv, capture_output=True, check=False, timeout=20).returncode == 0

    def _end_leftovers(self) -> None:
        """Step daemons and tasks of this cluster that lost their node daemon."""
        marker = f"SLURM_CONF={self.conf}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, ValueError):
                if int(folder.name) == os.getpid():
                    continue
                if marker in (folder / "environ").read_bytes().split(b"\0"):
                    os.kill(int(folder.name), signal.SIGKILL)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait_for(condition: object, seconds: float = 30.0) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "a daemon did not come up"
        time.sleep(0.1)


def _free_ports() -> int:
    """The first of ten free ports; a multiple of ten."""
    for base in range(16800 + 10 * (os.getpid() % 300), 32000, 10):
        with suppress(OSError):
            for port in range(base, base + 10):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return base
    raise AssertionError("no ten free ports in a row")
