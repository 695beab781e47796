"""A template as it was read, all its files in it, and as one value of resolved.json."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from orchestrator.contract.jsonio import Json, MalformedJson, digest, from_json, to_json
from orchestrator.errors import UserError

Kind = Literal["slurm", "k8s"]
Origin = Literal["user", "site", "checkout", "package"]
API = 1
"""The version of names and blocks that templates may rely upon."""
SHIPPED = ("slurm", "k8s")
"""First parts of the names of our own files."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a template. Its name says where it comes from: `slurm/` and `k8s/` are ours,
    `site/` is the site's directory, `./` is the folder of the user's file.
    """

    name: str
    path: str
    text: str

    @property
    def ours(self) -> bool:
        """True if it ships with the project."""
        return self.name.partition("/")[0] in SHIPPED


@dataclass(frozen=True, slots=True)
class Template:
    """A template as it was read; `sources` are all its files, itself first."""

    origin: Origin
    path: Path
    text: str
    sha256: str
    """Over the file and everything that it extends or includes."""
    api: int
    kind: Kind = "slurm"
    sources: tuple[Source, ...] = ()

    @property
    def template_id(self) -> str:
        """Where it came from, for people: `site:/etc/...`, `checkout:slurm/train.sbatch.j2`."""
        first = self.sources[0]
        return f"{self.origin}:{first.name if first.ours else self.path}"


def freeze(template: Template) -> Json:
    """The template as one JSON value, from which `thaw` makes it again without its files."""
    return {**to_json(replace(template, path=Path())), "path": str(template.path)}


def thaw(value: Json) -> Template:
    """Inverse of `freeze`. Raises MalformedJson if it is not what was frozen."""
    if not isinstance(value, dict) or not isinstance(value.get("path"), str):
        raise MalformedJson("not a frozen template")
    found = from_json(_Frozen, value)
    template = Template(
        origin=found.origin,
        path=Path(found.path),
        text=found.text,
        sha256=found.sha256,
        api=found.api,
        kind=found.kind,
        sources=found.sources,
    )
    if not found.sources or sha256_of(found.sources) != found.sha256:
        raise MalformedJson("a frozen template does not match its checksum")
    return template


@dataclass(frozen=True, slots=True)
class _Frozen:
    origin: Origin
    path: str
    text: str
    sha256: str
    api: int
    kind: Kind
    sources: tuple[Source, ...]


def canonical_name(name: str, parent: str) -> str:
    """The name of a file that `parent` extends or includes: without a prefix it lies beside it.

    Raises UserError for a name that leaves its folder.
    """
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or any(p in ("", "..") for p in parts):
        raise UserError(
            f"{parent}: {name!r} is no name of a template",
            hint="give slurm/NAME (ours), site/NAME (the site's), or a name beside the file",
        )
    if parts[0] in (*SHIPPED, "site", ".") and len(parts) > 1:
        return name
    return f"{parent.partition('/')[0]}/{name}"


def sha256_of(sources: tuple[Source, ...]) -> str:
    """The checksum of a template; the folders that its files lie in do not count."""
    return digest([[s.name, s.text] for s in sorted(sources, key=lambda s: s.name)])
