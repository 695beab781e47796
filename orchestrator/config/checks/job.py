"""Contradictions and dangers between the settings of a job. Pure: no files are read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from orchestrator.config.checks import training
from orchestrator.config.faults import Fault, Path
from orchestrator.config.models.job import JobSpec
from orchestrator.config.values.sensitive import CURE, known_secret, secret_name, secret_value
from orchestrator.config.values.variables import is_reserved_env, is_start_hook

SCHEMES = ("file", "s3", "gs", "abfs")
"""Schemes of `checkpoint.uri`; without one it is a folder."""

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def job_faults(job: JobSpec) -> tuple[Fault, ...]:
    """Everything that is wrong between the fields of a job whose fields are right by themselves."""
    return (
        *training.faults(job),
        *_shape(job),
        *_image(job),
        *_checkpoint(job),
        *_local_tier(job),
        *_model(job),
        *_env(job),
        *_secrets(job),
        *_leaks(job),
    )


def scheme(uri: str) -> str | None:
    """The scheme of a storage address, or None for a folder."""
    head, mark, _ = uri.partition("://")
    return head.lower() if mark else None


def is_hub_id(path: str) -> bool:
    """True if the text has the form `owner/name`; a folder may have it too."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", path) is not None


def _shape(job: JobSpec) -> Iterator[Fault]:
    if job.backend == "local" and job.resources.nodes > 1:
        yield Fault(
            ("resources", "nodes"),
            f"the local backend has one node, not {job.resources.nodes}",
            "use nodes: 1, or backend: slurm or kubernetes",
        )


def _image(job: JobSpec) -> Iterator[Fault]:
    if job.backend == "kubernetes" and job.kubernetes.image is None:
        hint = "name an image with this program in it (see k8s/)"
        yield Fault(("kubernetes", "image"), "is missing", hint)


def _local_tier(job: JobSpec) -> Iterator[Fault]:
    folder = job.checkpoint.local_dir
    if folder is None:
        return
    if not folder.startswith("/"):
        yield Fault(
            ("checkpoint", "local_dir"),
            f"{folder!r} is not absolute",
            "name a folder on the node's own disk, like /scratch",
        )
    if job.resources.nodes > 1:
        yield Fault(
            ("checkpoint", "local_dir"),
            "a local tier is for runs on one node",
            "remove it, or use resources.nodes: 1",
        )


def _checkpoint(job: JobSpec) -> Iterator[Fault]:
    path: Path = ("checkpoint", "uri")
    limit, minutes = job.checkpoint.max_unsaved, job.checkpoint.every_minutes
    if limit is not None and minutes is not None and limit < 60 * minutes:
        yield Fault(
            ("checkpoint", "max_unsaved"),
            f"{limit} s is shorter than the {minutes:g} minutes between two checkpoints",
            "make it some intervals long",
        )
    uri = job.checkpoint.uri
    kind = scheme(uri)
    if kind is not None and kind not in SCHEMES:
        yield Fault(path, f"{kind}:// is not supported", "use a folder, file:// or s3://")
        return
    if kind is None:
        return
    try:
        parts = urlsplit(uri)
    except ValueError:
        yield Fault(path, "not a valid address")
        return
    if "@" in parts.netloc:
        yield Fault(
            path,
            "the address contains a name or password",
            "remove it; give credentials by name: " + CURE.format(name="AWS_SECRET_ACCESS_KEY"),
        )
    elif parts.query or parts.fragment:
        yield Fault(path, "the address has a query or fragment", "use scheme://bucket/prefix")
    elif kind != "file" and not parts.netloc:
        yield Fault(path, "the bucket is missing", f"use {kind}://bucket/prefix")
    elif kind == "file" and (parts.netloc or not parts.path):
        yield Fault(path, "names no folder of this machine", "use file:///absolute/folder")


def _model(job: JobSpec) -> Iterator[Fault]:
    path, revision = job.model.path, job.model.revision
    if revision is not None and not is_hub_id(path):
        yield Fault(
            ("model", "revision"),
            "a folder has no revision",
            "remove it; the files of the folder are hashed instead",
        )


def _env(job: JobSpec) -> Iterator[Fault]:
    for name, value in job.env.items():
        path: Path = ("env", name)
        if not _ENV_NAME.fullmatch(name):
            yield Fault(path, "is not a name of a variable", "use letters, digits and _")
        elif is_reserved_env(name):
            yield Fault(path, "is set by the agent or the scheduler", "remove it")
        elif is_start_hook(name):
            yield Fault(
                path,
                "would load code into every process that starts",
                "name what runs by python: and code:; what its machine needs beside them, like "
                "LD_LIBRARY_PATH, belongs into a script that python: names, or into the site's "
                "template or image",
            )
        elif name.startswith("AWS_ENDPOINT_URL"):
            yield Fault(
                path,
                "the storage's address is needed by `submit` and the controller too",
                "export it in their environment, or write it to ~/.aws/config",
            )
        elif secret_name(name):
            yield Fault(path, "looks like a secret by its name", CURE.format(name=name))
        elif what := secret_value(value):
            yield Fault(path, f"looks like a secret: {what}", CURE.format(name=name))


def _secrets(job: JobSpec) -> Iterator[Fault]:
    for i, name in enumerate(job.secrets):
        path: Path = ("secrets", i)
        if not _ENV_NAME.fullmatch(name):
            yield Fault(
                path,
                "is not a name of a variable",
                "give the name only; the value is taken from your environment at submit",
            )
        elif is_reserved_env(name):
            yield Fault(path, f"{name} is set by the agent or the scheduler", "remove it")
        elif is_start_hook(name):
            yield Fault(
                path, f"{name} is no secret, but loads code into every process", "remove it"
            )
        elif name in job.env:
            yield Fault(path, f"{name} is also given under env", "remove it there")


def _leaks(job: JobSpec) -> Iterator[Fault]:
    """Well-known secrets anywhere else in the file; the value is never shown."""
    data = job.model_dump(exclude={"env"})
    for path, text in _texts(data, ()):
        if path != ("checkpoint", "uri") and (what := known_secret(text)):
            yield Fault(
                path, f"looks like a secret: {what}", "remove it; " + CURE.format(name="NAME")
            )


def _texts(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _texts(item, (*path, i))
