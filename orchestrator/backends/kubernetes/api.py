"""The API server, as far as this backend talks to it. The one module that uses lightkube."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from orchestrator.errors import QvlError, Unreachable, UserError

Kind = Literal["jobs", "pods", "configmaps", "secrets", "events"]
Raw = dict[str, Any]
LIMIT_S = 15.0
"""Longest time of one request."""
CONTEXT = "QVL_KUBE_CONTEXT"
"""Environment variable: a context of the kubeconfig other than the current one."""
_PATHS: Mapping[str, str] = {
    "jobs": "/apis/batch/v1",
    "pods": "/api/v1",
    "configmaps": "/api/v1",
    "secrets": "/api/v1",
    "events": "/api/v1",
}
_PAGE = 500
_RETRY = (429, 500, 502, 503, 504)
"""Answers of a server that cannot serve now."""
_LOG_IN = "`kubectl get jobs` must work here; set KUBECONFIG, or log in to the cluster"
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


class Listing(NamedTuple):
    """Objects, and the version of the server's data that they show."""

    items: list[Raw]
    version: str


class Refused(QvlError):
    """The server understood and said no."""

    exit_code = 78

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Api(Protocol):
    """Requests to one cluster. Each raises Refused, or Unreachable if nobody answers."""

    @property
    def namespace(self) -> str:
        """The namespace of whoever asks."""

    def get(self, kind: Kind, namespace: str, name: str) -> Raw | None:
        """The object, or None."""

    def list(self, kind: Kind, namespace: str, *, labels: str = "", fields: str = "") -> list[Raw]:
        """All objects that match both selectors."""

    def listing(self, kind: Kind, namespace: str, *, labels: str) -> Listing:
        """The same with the version of the list, from which it can be watched."""

    def changed(
        self, kind: Kind, namespace: str, *, labels: str, since: str, seconds: float
    ) -> bool:
        """True as soon as an object may have changed since that version; False after `seconds`."""

    def create(self, kind: Kind, namespace: str, body: Raw, *, dry_run: bool = False) -> Raw:
        """The object as the server keeps it (dry run: as it would)."""

    def patch(self, kind: Kind, namespace: str, name: str, body: Raw) -> Raw:
        """Merge into an object."""

    def delete(self, kind: Kind, namespace: str, name: str, *, uid: str = "") -> bool:
        """With everything that belongs to it, each with its grace; False if it is gone, or is
        another object than the one of that uid (empty: whatever has the name).
        """

    def evict(self, namespace: str, pod: str, *, uid: str = "") -> bool:
        """As a drain does; False as for `delete`."""


class ServerApi:
    """The cluster of the kubeconfig in force, or the one that this process runs in."""

    def __init__(self) -> None:
        self._client, self.namespace = _connect()
        weakref.finalize(self, self._client.close)
        self._policy = "policy/v1"

    def get(self, kind: Kind, namespace: str, name: str) -> Raw | None:
        try:
            return self._ask("GET", _path(kind, namespace, name))
        except Refused as fault:
            if fault.status == 404:
                return None
            raise

    def list(self, kind: Kind, namespace: str, *, labels: str = "", fields: str = "") -> list[Raw]:
        return self._pages(_path(kind, namespace), labels, fields).items

    def listing(self, kind: Kind, namespace: str, *, labels: str) -> Listing:
        return self._pages(_path(kind, namespace), labels)

    def changed(
        self, kind: Kind, namespace: str, *, labels: str, since: str, seconds: float
    ) -> bool:
        import httpx2

        limit = max(1, math.ceil(seconds))
        params = {"watch": "1", "resourceVersion": since, "timeoutSeconds": str(limit)}
        try:
            with (
                self._translated(),
                self._client.stream(
                    "GET",
                    _path(kind, namespace),
                    params={**params, "labelSelector": labels},
                    timeout=httpx2.Timeout(LIMIT_S, read=limit + LIMIT_S),
                ) as answer,
            ):
                if not answer.is_success:
                    answer.read()
                    _answer(answer)
                # Whatever is said first: an object, or that this version is no longer kept (410).
                return any(line.strip() for line in answer.iter_lines())
        except Refused as fault:
            if fault.status == 410:
                return True
            raise

    def _pages(self, path: str, labels: str, fields: str = "") -> Listing:
        params = {"labelSelector": labels, "fieldSelector": fields, "limit": str(_PAGE)}
        found: list[Raw] = []
        while True:
            try:
                page = self._ask("GET", path, params=params)
            except Refused as fault:
                # The list that was begun is no longer kept: once more from its start.
                if fault.status == 410 and "continue" in params:
                    del params["continue"]
                    found = []
                    continue
                raise
            found += page.get("items") or []
            about = page.get("metadata") or {}
            if not about.get("continue"):
                return Listing(found, str(about.get("resourceVersion") or ""))
            params["continue"] = about["continue"]

    def create(self, kind: Kind, namespace: str, body: Raw, *, dry_run: bool = False) -> Raw:
        params = {"dryRun": "All"} if dry_run else {}
        return self._ask("POST", _path(kind, namespace), params=params, body=body)

    def patch(self, kind: Kind, namespace: str, name: str, body: Raw) -> Raw:
        return self._ask("PATCH", _path(kind, namespace, name), body=body)

    def delete(self, kind: Kind, namespace: str, name: str, *, uid: str = "") -> bool:
        try:
            body = {"propagationPolicy": "Background", **_only(uid)}
            self._ask("DELETE", _path(kind, namespace, name), body=body)
        except Refused as fault:
            if fault.status == 404 or (fault.status == 409 and uid):
                return False
            raise
        return True

    def evict(self, namespace: str, pod: str, *, uid: str = "") -> bool:
        path = f"{_path('pods', namespace, pod)}/eviction"
        while True:
            body = {
                "apiVersion": self._policy,
                "kind": "Eviction",
                "metadata": {"name": pod, "namespace": namespace},
                "deleteOptions": _only(uid),
            }
            try:
                self._ask("POST", path, body=body)
            except Refused as fault:
                # Servers before 1.22 know the older version only, and say so with 400 or 404.
                if self._policy == "policy/v1" and _is_unknown_version(fault):
                    self._policy = "policy/v1beta1"
                    continue
                if fault.status == 404 or (fault.status == 409 and uid):
                    return False
                raise
            return True

    def _ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Raw | None = None,
    ) -> Raw:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        with self._translated():
            answer = self._client.request(
                method,
                path,
                params={k: v for k, v in (params or {}).items() if v},
                json=body,
                headers={"Content-Type": kind} if body is not None else None,
            )
        return _answer(answer)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """What may happen on the way to the server, as errors of ours."""
        import httpx2
        from lightkube.core.exceptions import ConfigError

        try:
            yield
        except (httpx2.TransportError, httpx2.DecodingError) as fault:
            words = str(fault) or type(fault).__name__
            raise Unreachable(f"the API server {self._client.base_url}: {words}") from None
        except ConfigError as fault:
            raise Unreachable(f"no credentials for the cluster: {fault}", hint=_LOG_IN) from None


def _only(uid: str) -> Raw:
    """What makes the server refuse (409) where the name stands for another object by now."""
    return {"preconditions": {"uid": uid}} if uid else {}


def _answer(answer: Any) -> Raw:
    try:
        found = answer.json()
    except ValueError:
        found = {}
    if not isinstance(found, dict):
        found = {}
    if answer.is_success:
        return found
    message = str(found.get("message") or f"the API server answers {answer.status_code}")
    if answer.status_code == 401:
        # A login that has expired is mended by a new one: a controller waits for it.
        raise Unreachable(
            "the API server does not know these credentials", hint="log in to the cluster anew"
        )
    reason = str(found.get("reason") or "")
    if answer.status_code in _RETRY and not _is_policy(found):
        raise Unreachable(f"the API server: {message}")
    raise Refused(answer.status_code, reason, message)


def _is_policy(status: Raw) -> bool:
    """429 is also how an eviction is refused by a PodDisruptionBudget."""
    causes = (status.get("details") or {}).get("causes") or ()
    return any(cause.get("reason") == "DisruptionBudget" for cause in causes)


def _is_unknown_version(fault: Refused) -> bool:
    said = fault.message.lower()
    return fault.status in (400, 404) and ("no kind" in said or "does not match" in said)


def _path(kind: Kind, namespace: str, name: str | None = None) -> str:
    # Names were checked where they came in, so that none of them leaves its place.
    base = f"{_PATHS[kind]}/namespaces/{namespace}/{kind}"
    return base if name is None else f"{base}/{name}"


def _connect() -> tuple[Any, str]:
    """An HTTP client with the cluster's address and credentials, and the namespace."""
    try:
        import httpx2
        from lightkube.config.client_adapter import Client, ConnectionParams
        from lightkube.config.kubeconfig import KubeConfig
        from lightkube.core.exceptions import ConfigError
    except ImportError:
        raise UserError(
            "the Kubernetes client is not installed",
            hint="pip install 'qvl-orchestrate[kubernetes]'",
        ) from None
    try:
        config = _single(KubeConfig)
        client = Client(config, ConnectionParams(timeout=httpx2.Timeout(LIMIT_S)))
    except (ConfigError, OSError, AssertionError, ValueError, TypeError, KeyError) as fault:
        raise UserError(
            f"no usable kubeconfig: {fault or type(fault).__name__}",
            hint=_LOG_IN,
        ) from None
    return client, str(config.namespace or "default")


def kubeconfig_in_force() -> tuple[object, ...]:
    """What `ServerApi` would connect with: changes when another file, or a new one, is used."""
    named = _named()
    file = _file(named)
    try:
        changed = file.stat().st_mtime_ns
    except OSError:
        changed = 0
    return (*named, changed, os.environ.get(CONTEXT))


def _named() -> list[str]:
    return [p for p in os.environ.get("KUBECONFIG", "").split(os.pathsep) if p]


def _file(named: list[str]) -> Path:
    return Path(named[0] if named else "~/.kube/config").expanduser()


def _single(config: Any) -> Any:
    """KUBECONFIG (one file), ~/.kube/config, else the cluster around this process."""
    named = _named()
    if len(named) > 1:
        raise UserError(
            "KUBECONFIG names several files",
            hint="make one of them: `kubectl config view --flatten` prints it; KUBECONFIG names it",
        )
    file = _file(named)
    if not named and not file.exists() and _SERVICE_ACCOUNT.exists():
        return config.from_service_account().get()
    return config.from_file(str(file)).get(context_name=os.environ.get(CONTEXT))
