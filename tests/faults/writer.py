"""`python -m tests.faults.writer SOCKET`: does what `scene` says, in a child for each request.

Everything is imported before the first fork, so that a tracer which is attached to a child
sees nothing but the work. Over the socket (whole messages): the test sends {"work", "root"},
the child answers {"pid"} and waits for "go"; then come {"said"} for each promise, {"error"}
if the work failed with an error of ours, and {"ended"} with its wait status.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from orchestrator.errors import QvlError
from orchestrator.run_directory import checkpoints
from tests.faults import scene
from trainer.checkpoint import shards

PR_SET_PTRACER, ANYBODY = 0x59616D61, -1
UNEXPECTED = 99


class OneByOne:
    """In the place of a thread pool: the order of system calls is the same in every run."""

    def __init__(self, _threads: int, _name: str = "") -> None:
        return

    def __enter__(self) -> OneByOne:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def map(self, act: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return map(act, items)

    def submit(self, act: Callable[[], Any]) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(act())
        except Exception as fault:
            done.set_exception(fault)
        return done

    def shutdown(self) -> None:
        return


def serve(link: socket.socket) -> None:
    """Until the test closes its end."""
    while request := link.recv(1 << 16):
        child = os.fork()
        if child == 0:
            os._exit(_child(link, **json.loads(request)))
        _, status = os.waitpid(child, 0)
        link.send(json.dumps({"ended": status}).encode())


def _child(link: socket.socket, work: str, root: str) -> int:
    def tell(kind: str, value: Any) -> None:
        link.send(json.dumps({kind: value}).encode())

    ctypes.CDLL(None).prctl(PR_SET_PTRACER, ANYBODY, 0, 0, 0)
    tell("pid", os.getpid())
    link.recv(16)
    try:
        scene.WORK[work](Path(root), lambda text: tell("said", text))
    except QvlError as fault:
        tell("error", str(fault))
        return 1
    except BaseException:
        tell("error", traceback.format_exc())
        return UNEXPECTED
    return 0


if __name__ == "__main__":
    for module in (checkpoints, shards):
        module.ThreadPoolExecutor = OneByOne  # type: ignore[attr-defined]
    serve(socket.socket(fileno=int(sys.argv[1])))
