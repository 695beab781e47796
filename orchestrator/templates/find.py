"""Finding a template, with everything that it extends or includes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.contract.jsonio import MalformedJson
from orchestrator.contract.regular import open_regular
from orchestrator.errors import CheckpointError, InternalError, UserError
from orchestrator.resources import resource
from orchestrator.templates.template import (
    API,
    SHIPPED,
    Kind,
    Origin,
    Source,
    Template,
    canonical_name,
    freeze,
    sha256_of,
    thaw,
)

SLURM_TEMPLATE = "train.sbatch.j2"
"""The batch file of a job."""
BACKENDS: Mapping[str, tuple[Kind, str]] = {
    "slurm": ("slurm", SLURM_TEMPLATE),
    "kubernetes": ("k8s", "job.yaml.j2"),
}
"""Kind and name of the template that a backend's jobs are rendered with."""
MAX_BYTES = 256 * 1024
MAX_FILES = 32

_MARK = re.compile(r"\{#-?\s*qvl-template\s+api=(\d{1,6})\s*-?#\}")


def find_template(
    kind: Kind, name: str, *, explicit: Path | None = None, site_dir: Path | None = None
) -> Template:
    """The template in force: the one given, the site's (`<site_dir>/<kind>/<name>`), ours.

    Raises UserError, with file and line, for a file that cannot be read or parsed.
    """
    if explicit is not None:
        return _read(kind, "user", f"./{explicit.name}", explicit, site_dir)
    if site_dir is not None and (own := site_dir / kind / name).is_file():
        return _read(kind, "site", f"site/{name}", own, site_dir)
    return shipped_template(kind, name)


def shipped_template(kind: Kind, name: str) -> Template:
    """Ours, whatever the site has."""
    path = resource(f"{kind}/{name}")
    inside = Path(__file__).resolve().parents[1]
    origin: Origin = "package" if path.is_relative_to(inside) else "checkout"
    return _read(kind, origin, f"{kind}/{name}", path, None)


def find_for(kind: Kind, name: str, block: Mapping[str, Any]) -> Template:
    """The template of a resolved job: the frozen one, else by `template` and `templates_dir`.

    Raises UserError, and CheckpointError for a frozen one that is damaged.
    """
    if block.get("frozen") is not None:
        try:
            return thaw(block["frozen"])
        except MalformedJson as fault:
            raise CheckpointError(f"resolved.json: {fault}") from None
    explicit, site_dir = block.get("template"), block.get("templates_dir")
    return find_template(
        kind,
        name,
        explicit=Path(explicit) if explicit else None,
        site_dir=Path(site_dir) if site_dir else None,
    )


def with_frozen(kind: Kind, name: str, block: Mapping[str, Any]) -> Mapping[str, Any]:
    """The block of a resolved job with the text of its template in it."""
    return {**block, "frozen": freeze(find_for(kind, name, block))}


def _read(kind: Kind, origin: Origin, name: str, path: Path, site_dir: Path | None) -> Template:
    first = _source(name, path)
    api = _api(first)
    sources = tuple(_closure(first, _Roots(kind, path.parent, site_dir)))
    return Template(origin, path, first.text, sha256_of(sources), api, kind, sources)


@dataclass(frozen=True, slots=True)
class _Roots:
    kind: Kind
    beside: Path
    site_dir: Path | None

    def path(self, name: str) -> Path:
        prefix, _, rest = name.partition("/")
        if prefix in SHIPPED:
            try:
                return resource(name)
            except OSError:  # pragma: no cover - a name that the system refuses
                return Path(name)
        if prefix == "site":
            root = self.site_dir / self.kind if self.site_dir else self.beside
            return root / rest
        return self.beside / rest


def _closure(first: Source, roots: _Roots) -> Iterator[Source]:
    """The file and all that it needs, each once."""
    waiting, seen = [first], {first.name}
    while waiting:
        source = waiting.pop(0)
        yield source
        for line, wanted in _references(source):
            name = canonical_name(wanted, source.name)
            if name in seen:
                continue
            if len(seen) == MAX_FILES:
                raise UserError(f"{source.path}: more than {MAX_FILES} files belong to it")
            seen.add(name)
            waiting.append(_needed(source, line, wanted, name, roots))


def _needed(source: Source, line: int, wanted: str, name: str, roots: _Roots) -> Source:
    try:
        found = _source(name, roots.path(name))
    except InternalError:
        raise UserError(
            f"{source.path}:{line}: {wanted!r} is none of our templates",
            hint="`qvl-orchestrate template show --ours` prints the one that ships",
        ) from None
    except UserError as fault:
        raise UserError(f"{source.path}:{line}: {fault.message}", hint=fault.hint) from None
    if _MARK.match(found.text):
        _api(found)
    return found


def _references(source: Source) -> Iterator[tuple[int, str]]:
    """Line and name of every file that a source extends, includes or imports."""
    from jinja2 import nodes

    from orchestrator.templates.environment import parse

    kinds = (nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)
    for node in parse(source).find_all(kinds):
        for name in _names(getattr(node, "template")):  # noqa: B009 - each of these has it
            if name is None:
                raise UserError(
                    f"{source.path}:{node.lineno}: the name of the file is not written out",
                    hint="name it in quotes: what a template consists of must be known before",
                )
            yield node.lineno, name


def _names(node: Any) -> list[str | None]:
    from jinja2 import nodes

    if isinstance(node, nodes.Const) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, nodes.List | nodes.Tuple):
        return [name for item in node.items for name in _names(item)]
    return [None]


def _source(name: str, path: Path) -> Source:
    try:
        with open_regular(path) as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as fault:
        raise UserError(
            f"template {path}: {fault.strerror}",
            hint="`qvl-orchestrate template show` says which template is in force",
        ) from None
    if len(raw) > MAX_BYTES:
        raise UserError(f"template {path}: more than {MAX_BYTES // 1024} KiB")
    try:
        text = raw.decode()
    except UnicodeDecodeError as fault:
        line = raw[: fault.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8 text") from None
    for bad, what in (("\0", "a NUL character"), ("\r", "a carriage return")):
        if bad in text:
            line = text[: text.index(bad)].count("\n") + 1
            hint = "save it with Unix line ends (dos2unix)" if bad == "\r" else "remove it"
            raise UserError(f"{path}:{line}: {what}", hint=hint)
    return Source(name, str(path), text)


def _api(source: Source) -> int:
    """The version in the first line. Raises UserError if it is absent or not ours."""
    found = _MARK.match(source.text)
    mark = f"{{# qvl-template api={API} #}}"
    if found is None:
        raise UserError(
            f"{source.path}:1: the version of the template is missing",
            hint=f"make this its first line: {mark}",
        )
    api = int(found[1])
    if api != API:
        what = "older" if api < API else "newer"
        raise UserError(
            f"{source.path}:1: written for api={api}, {what} than this version's api={API}",
            hint=f"`qvl-orchestrate template diff` shows what has changed; then write {mark}"
            if api < API
            else "install the version of qvl-orchestrate that the template was written for",
        )
    return api
