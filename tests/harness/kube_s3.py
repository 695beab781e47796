"""The tests' S3 server where pods reach it."""

from __future__ import annotations

import os
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from tests.harness.kube_cluster import NAMESPACE
from tests.harness.kube_runs import KubeBench
from tests.harness.weed import Weed, missing

SECRET = "qvl-storage"


@contextmanager
def s3_for_pods(
    bench: KubeBench, weed: Weed, patch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    """Run directories on S3 for the bench's next runs; what their `kubernetes:` blocks need."""
    address = os.environ.get("QVL_TEST_HOST_ADDRESS")
    if address is None or missing():
        pytest.skip("QVL_TEST_HOST_ADDRESS does not say where pods reach this machine")
    endpoint = f"http://{address}:{weed.port}"
    weed.use(patch, endpoint)
    bench.folder.chmod(0o755)
    bench.uri = "s3://qvl-test/k8s"
    bench.cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": SECRET, "namespace": NAMESPACE},
            "stringData": weed.environment(endpoint),
        }
    )
    try:
        with forwarded(address, weed.port):
            yield {"env_from_secrets": [SECRET]}
    finally:
        bench.cluster.kubectl("delete", "secret", SECRET)


@contextmanager
def forwarded(address: str, port: int) -> Iterator[None]:
    """The same port on another address of this machine."""

    class Forward(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", port)) as inner:
                back = threading.Thread(target=pump, args=(inner, self.request))
                back.start()
                pump(self.request, inner)
                back.join()

    with socketserver.ThreadingTCPServer((address, port), Forward) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


def pump(source: socket.socket, target: socket.socket) -> None:
    """Pass everything on; at its end, end the other side too."""
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
