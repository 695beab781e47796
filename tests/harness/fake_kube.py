"""An API server over HTTP with a Job controller and pods that only pretend, for quick tests.

Answers as servers were seen to answer. `old`: 1.20, which drops fields that it does not know,
gives no cause of a disruption and replaces a pod while the first one still saves; else 1.36.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Raw = dict[str, Any]
KINDS = {
    "jobs": "Job",
    "pods": "Pod",
    "configmaps": "ConfigMap",
    "secrets": "Secret",
    "events": "Event",
}
_PATH = re.compile(
    r"/(?:api|apis/batch)/v1/namespaces/(?P<ns>[^/]+)/(?P<kind>\w+)(?:/(?P<name>[^/]+))?(?P<sub>/eviction)?"
)
_NEW_FIELDS = ("podReplacementPolicy", "podFailurePolicy", "suspend", "completionMode")


class Fault(Exception):
    """An answer other than success."""

    def __init__(self, status: int, reason: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"kind": "Status", "reason": reason, "message": message, **more}


class FakeKube:
    """One server. `mutate` plays an admission plugin; `save_s` is how long a pod takes to end."""

    def __init__(self, folder: Path, *, old: bool = False, save_s: float = 0.3) -> None:
        self.old = old
        self.save_s = save_s
        self.mutate: Callable[[Raw], None] = lambda job: None
        self.faults: list[Fault] = []
        """Answers to the next requests, whatever they ask."""
        self.requests: list[str] = []
        self.objects: dict[tuple[str, str, str], Raw] = {}
        self.oldest = 0
        """Versions before this one are no longer kept: a watch from there is told 410."""
        self._version = 0
        self._noted: dict[tuple[str, str, str], tuple[str | None, int, Raw]] = {}
        self._lock = threading.RLock()
        self._numbers = itertools.count(1)
        self._dying: list[tuple[float, str, str]] = []
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()
        self.kubeconfig = folder / "fake-kubeconfig"
        self.kubeconfig.write_text(json.dumps(self._config()))

    # --- life

    def start(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler())
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _config(self) -> Raw:
        server = {"server": f"http://127.0.0.1:{self._port}"}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": server}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [
                {"name": "fake", "context": {"cluster": "fake", "user": "u", "namespace": "mine"}}
            ],
        }

    # --- for tests

    def all(self, kind: str) -> list[Raw]:
        with self._lock:
            self._tick()
            return [copy.deepcopy(o) for (_, k, _), o in self.objects.items() if k == kind]

    def put(self, kind: str, body: Raw, namespace: str = "mine") -> None:
        with self._lock:
            self.objects[namespace, kind, body["metadata"]["name"]] = body

    # --- requests

    def answer(self, method: str, url: str, body: Raw | None) -> tuple[int, Raw]:
        parts = urlsplit(url)
        found = _PATH.fullmatch(parts.path)
        with self._lock:
            self.requests.append(f"{method} {url}")
            self._tick()
            try:
                if self.faults:
                    raise self.faults.pop(0)
                if found is None:
                    raise Fault(404, "NotFound", "the server could not find the resource")
                query = {k: v[0] for k, v in parse_qs(parts.query).items()}
                return self._do(method, found, query, body or {})
            except Fault as fault:
                return fault.status, fault.body

    def _do(
        self, method: str, found: re.Match[str], query: dict[str, str], body: Raw
    ) -> tuple[int, Raw]:
        namespace, kind, name = found["ns"], found["kind"], found["name"]
        if namespace == "forbidden":
            raise Fault(403, "Forbidden", f'{kind} is forbidden: User "u" cannot {method} here')
        if found["sub"]:
            return self._evict(namespace, name, body)
        if method == "POST":
            return self._create(namespace, kind, body, dry_run=query.get("dryRun") == "All")
        if method == "GET" and name is None:
            return 200, self._list(namespace, kind, query)
        key = (namespace, kind, name)
        if key not in self.objects:
            raise Fault(404, "NotFound", f'{kind} "{name}" not found')
        if method == "GET":
            return 200, self.objects[key]
        if method == "PATCH":
            _merge(self.objects[key], body)
            if kind == "jobs":
                self._suspend(namespace, self.objects[key], (body.get("spec") or {}).get("suspend"))
            return 200, self.objects[key]
        assert method == "DELETE"
        _same(self.objects[key], body)
        self._delete(key)
        return 200, {"kind": "Status", "status": "Success"}

    def _create(self, namespace: str, kind: str, body: Raw, *, dry_run: bool) -> tuple[int, Raw]:
        name = body["metadata"]["name"]
        if (namespace, kind, name) in self.objects:
            raise Fault(409, "AlreadyExists", f'{kind} "{name}" already exists')
        kept = copy.deepcopy(body)
        kept["metadata"] |= {"uid": str(uuid.uuid4()), "namespace": namespace}
        kept["metadata"]["creationTimestamp"] = _stamp(time.time())
        kept.setdefault("status", {})
        if kind == "jobs":
            if self.old:
                for field in _NEW_FIELDS:
                    kept["spec"].pop(field, None)
            self.mutate(kept)
        if not dry_run:
            self.objects[namespace, kind, name] = kept
            if kind == "jobs" and not kept["spec"].get("suspend"):
                for _ in range(kept["spec"].get("parallelism", 1)):
                    self._start_pod(namespace, kept)
        return 201, kept

    def _list(self, namespace: str, kind: str, query: dict[str, str]) -> Raw:
        wanted = dict(x.split("=", 1) for x in query.get("labelSelector", "").split(",") if x)
        fields = dict(x.split("=", 1) for x in query.get("fieldSelector", "").split(",") if x)
        rows = [o for (n, k, _), o in self.objects.items() if (n, k) == (namespace, kind)]
        rows = [o for o in rows if wanted.items() <= o["metadata"].get("labels", {}).items()]
        rows = [o for o in rows if all(_at(o, path) == v for path, v in fields.items())]
        start, limit = int(query.get("continue", 0)), int(query.get("limit", 500))
        rest = str(start + limit) if start + limit < len(rows) else ""
        self._note_changes()
        about = {"continue": rest, "resourceVersion": str(self._version)}
        return {"items": rows[start : start + limit], "metadata": about}

    def _note_changes(self) -> None:
        """Give what has changed since the last look the next versions, as etcd does."""
        for (namespace, kind, _), job in list(self.objects.items()):
            if kind == "jobs":
                pods = self._pods_of(namespace, job)
                living = [p for p in pods if p["status"].get("phase") in ("Pending", "Running")]
                active = [p for p in living if "deletionTimestamp" not in p["metadata"]]
                job["status"] |= {"active": len(active), "failed": len(pods) - len(living)}
        for key in {*self.objects, *self._noted}:
            found = self.objects.get(key)
            text = None if found is None else json.dumps(found)
            before = self._noted.get(key)
            if before is None or before[0] != text:
                self._version += 1
                labels = before[2] if found is None and before else found["metadata"].get("labels")
                self._noted[key] = (text, self._version, labels or {})

    def watched(self, url: str) -> Raw | None:
        """The first event of a watch, or None when its time is over."""
        parts = urlsplit(url)
        found = _PATH.fullmatch(parts.path)
        query = {k: v[0] for k, v in parse_qs(parts.query).items()}
        assert found is not None
        wanted = dict(x.split("=", 1) for x in query["labelSelector"].split(","))
        self.requests.append(f"WATCH {url}")
        since, end = int(query["resourceVersion"]), time.time() + int(query["timeoutSeconds"])
        if since < self.oldest:
            return {"type": "ERROR", "object": {"code": 410, "reason": "Expired"}}
        while time.time() < end and self._server is not None:
            with self._lock:
                self._tick()
                self._note_changes()
                for (ns, kind, _), (_, version, labels) in self._noted.items():
                    mine = (ns, kind) == (found["ns"], found["kind"]) and version > since
                    if mine and wanted.items() <= labels.items():
                        return {"type": "MODIFIED", "object": {}}
            time.sleep(0.02)
        return None

    def _evict(self, namespace: str, name: str, body: Raw) -> tuple[int, Raw]:
        if self.old and body["apiVersion"] == "policy/v1":
            raise Fault(
                400, "BadRequest", 'no kind "Eviction" is registered for version "policy/v1"'
            )
        pod = self.objects.get((namespace, "pods", name))
        if pod is None:
            raise Fault(404, "NotFound", f'pods "{name}" not found')
        _same(pod, body.get("deleteOptions") or {})
        if not self.old:
            _condition(pod, "DisruptionTarget", "EvictionByEvictionAPI")
        self._end_pod(namespace, pod)
        return 201, {"kind": "Status", "status": "Success"}

    def _delete(self, key: tuple[str, str, str]) -> None:
        namespace, kind, _ = key
        gone = self.objects[key]
        if kind == "pods":
            self._end_pod(namespace, gone)
            return
        del self.objects[key]
        uid = gone["metadata"]["uid"]
        for other, value in list(self.objects.items()):
            owners = value["metadata"].get("ownerReferences", ())
            if any(o["uid"] == uid for o in owners) and other in self.objects:
                self._delete(other)

    # --- Jobs and pods

    def _suspend(self, namespace: str, job: Raw, wanted: bool | None) -> None:
        """Its pods save and go, uncounted; without the flag, new ones start in their place."""
        if self.old:
            job["spec"].pop("suspend", None)
        elif wanted:
            _condition(job, "Suspended", "JobSuspended")
            for pod in self._pods_of(namespace, job):
                self._end_pod(namespace, pod)
        elif wanted is False:
            [said] = [c for c in job["status"]["conditions"] if c["type"] == "Suspended"]
            said |= {"status": "False", "reason": "JobResumed"}
            for _ in range(job["spec"]["parallelism"]):
                self._start_pod(namespace, job)

    def _start_pod(self, namespace: str, job: Raw) -> None:
        name = f"{job['metadata']['name']}-{next(self._numbers)}"
        template = job["spec"]["template"]["metadata"]["labels"]
        meta = {
            "name": name,
            "labels": {**template, "job-name": job["metadata"]["name"]},
            "ownerReferences": [{"uid": job["metadata"]["uid"]}],
            "uid": str(uuid.uuid4()),
            "creationTimestamp": _stamp(time.time()),
        }
        names = [c["name"] for c in job["spec"]["template"]["spec"]["containers"]]
        # The server's order is its own.
        states = [{"name": name, "state": {"running": {}}} for name in reversed(names)]
        status = {"phase": "Running", "containerStatuses": states}
        self.put(
            "pods", {"metadata": meta, "spec": {"nodeName": "n1"}, "status": status}, namespace
        )

    def _end_pod(self, namespace: str, pod: Raw) -> None:
        """SIGTERM: it saves, then ends with 75. The old server replaces it at once."""
        if "deletionTimestamp" in pod["metadata"]:
            return
        now = time.time()
        pod["metadata"]["deletionTimestamp"] = _stamp(now + 30)
        self._dying.append((now + self.save_s, namespace, pod["metadata"]["name"]))
        job = self.objects.get((namespace, "jobs", pod["metadata"]["labels"]["job-name"]))
        if job is not None and self.old:
            self._start_pod(namespace, job)

    def _tick(self) -> None:
        """What has happened since the last request."""
        now = time.time()
        for item in [d for d in self._dying if d[0] <= now]:
            self._dying.remove(item)
            _, namespace, name = item
            pod = self.objects.pop((namespace, "pods", name), None)
            if pod is None:
                continue
            job = self.objects.get((namespace, "jobs", pod["metadata"]["labels"]["job-name"]))
            if job is not None:
                self._job_lost_a_pod(namespace, job, pod)

    def _job_lost_a_pod(self, namespace: str, job: Raw, pod: Raw) -> None:
        if job["spec"].get("suspend"):
            return
        if self.old:
            # The object has gone; the replacement finds its slot taken.
            for other in self._pods_of(namespace, job):
                if (
                    other["status"]["phase"] == "Running"
                    and "deletionTimestamp" not in other["metadata"]
                ):
                    _terminate(other, 79)
        else:
            _terminate(pod, 75)
            self.objects[namespace, "pods", pod["metadata"]["name"]] = pod
            _condition(job, "FailureTarget", "BackoffLimitExceeded")
            for other in self._pods_of(namespace, job):
                if other["status"]["phase"] == "Running":
                    self._end_pod(namespace, other)
        if all(p["status"]["phase"] == "Failed" for p in self._pods_of(namespace, job)):
            _condition(job, "Failed", "BackoffLimitExceeded")

    def _pods_of(self, namespace: str, job: Raw) -> list[Raw]:
        name = job["metadata"]["name"]
        return [
            o
            for (n, k, _), o in list(self.objects.items())
            if (n, k) == (namespace, "pods") and o["metadata"]["labels"].get("job-name") == name
        ]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _watch(self) -> None:
                event = fake.watched(self.path)
                with suppress(BrokenPipeError, ConnectionResetError):
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Connection", "close")
                    self.end_headers()
                    if event is not None:
                        self.wfile.write(json.dumps(event).encode() + b"\n")
                self.close_connection = True

            def _serve(self) -> None:
                if "watch=1" in self.path and not fake.faults:
                    self._watch()
                    return
                size = int(self.headers.get("Content-Length") or 0)
                raw = self.rfile.read(size)
                body = json.loads(raw) if raw else None
                status, found = fake.answer(self.command, self.path, body)
                data = json.dumps(found).encode()
                with suppress(BrokenPipeError, ConnectionResetError):
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.send_header("Connection", "close")
                    self.end_headers()
                    self.wfile.write(data)
                self.close_connection = True

            do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                return

        return Handler


def _same(found: Raw, options: Raw) -> None:
    wanted = (options.get("preconditions") or {}).get("uid", found["metadata"]["uid"])
    if wanted != found["metadata"]["uid"]:
        raise Fault(409, "Conflict", "the UID in the precondition does not match")


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _condition(raw: Raw, kind: str, reason: str) -> None:
    found = raw["status"].setdefault("conditions", [])
    if all(c["type"] != kind for c in found):
        found.append({"type": kind, "status": "True", "reason": reason, "message": ""})


def _terminate(pod: Raw, code: int) -> None:
    state = {"terminated": {"exitCode": code, "reason": "Error"}}
    pod["status"] |= {"phase": "Failed", "containerStatuses": [{"state": state}]}


def _merge(into: Raw, patch: Raw) -> None:
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _at(value: Any, path: str) -> Any:
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value
