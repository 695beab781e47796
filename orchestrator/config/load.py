"""Reading job files: from a path to a checked, and to a resolved, job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from orchestrator.config.faults import Fault, Place, locate, raise_faults
from orchestrator.config.faults import Path as FieldPath
from orchestrator.config.models.job import JobSpec
from orchestrator.config.models.site import SiteConfig
from orchestrator.config.reading.document import parse, read_small
from orchestrator.config.reading.explain import text_as_written
from orchestrator.config.reading.job import check_data
from orchestrator.config.reading.overrides import apply
from orchestrator.config.reading.site import load_site
from orchestrator.config.resolving.job import absolute, model_faults, resolve, site_faults
from orchestrator.config.resolving.named_files import (
    deepspeed_file_faults,
    file_faults,
    is_hub_model,
    read_deepspeed,
)
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.errors import JobFileError, UserError

__all__ = ["LoadedJob", "load_job", "load_site", "parse_job", "resolve_file", "resolve_loaded"]

_INIT = "`qvl-orchestrate init` writes one to start from"


@dataclass(frozen=True, slots=True)
class LoadedJob:
    """A job file that was read and is right by itself; what it names was not looked at."""

    spec: JobSpec
    text: str
    """The file as it stands, without the overrides."""
    path: Path
    base_dir: Path
    """Absolute folder that relative paths start from: that of the file."""
    overrides: tuple[str, ...] = ()
    places: Mapping[FieldPath, Place] = field(default_factory=dict, repr=False)


def load_job(path: Path, overrides: Sequence[str] = ()) -> LoadedJob:
    """Read and check a job file.

    `overrides` are `dotted.key=value` (values are YAML), applied in order. Raises
    JobFileError: one for a file that cannot be read or parsed, else JobFaults with all faults.
    """
    return parse_job(read_small(path, str(path), _INIT), path, overrides)


def parse_job(source: bytes | str, path: Path, overrides: Sequence[str] = ()) -> LoadedJob:
    """The same for a file's content; `path` names it and gives `base_dir`. Reads nothing."""
    document = apply(parse(source, str(path)), overrides)
    if not isinstance(document.data, dict):
        empty = document.data is None
        raise JobFileError(
            "the file is empty" if empty else "a job file is a mapping of fields",
            file=str(path),
            hint=_INIT,
        )
    spec, faults = check_data(text_as_written(JobSpec, document))
    raise_faults(locate(faults, document.places))
    assert spec is not None, "no spec and no fault"
    text = source if isinstance(source, str) else source.decode("utf-8-sig")
    base_dir = Path(absolute(str(path), Path.cwd())).parent
    return LoadedJob(spec, text, path, base_dir, tuple(overrides), document.places)


def resolve_file(
    path: Path, overrides: Sequence[str] = (), site: SiteConfig | None = None
) -> ResolvedJob:
    """`load_job`, then `resolve_loaded`; `site` is read from its usual place if None."""
    return resolve_loaded(load_job(path, overrides), load_site() if site is None else site)


def resolve_loaded(
    job: LoadedJob,
    site: SiteConfig,
    *,
    environ: Mapping[str, str] = MappingProxyType({}),
    template: Path | None = None,
) -> ResolvedJob:
    """Resolve a job after a look at the files that it names.

    `environ`: the submitter's variables, of which the site may carry some; `template`: a
    template of the user's own. Raises JobFaults: a missing model, index, folder or DeepSpeed
    file, and what `resolve` or the site refuses. Absolute paths of a Kubernetes job are taken
    to be the pod's, and not looked at.
    """
    spec, base_dir = job.spec, job.base_dir
    config, unread = read_deepspeed(spec, base_dir)
    from_hub = is_hub_model(spec, base_dir)
    found = (
        *unread,
        *model_faults(spec, from_hub=from_hub),
        *file_faults(spec, base_dir),
        *site_faults(spec, site),
    )
    inside: tuple[Fault, ...] = ()
    if config is not None:
        shown = str(job.path.parent / str(spec.deepspeed.config))
        inside = deepspeed_file_faults(spec, base_dir, config, shown)
    raise_faults((*locate(found, job.places), *inside))
    return resolve(
        spec,
        base_dir=base_dir,
        site=site,
        from_hub=from_hub,
        deepspeed_config=config,
        environ=environ,
        template=_own_template(template, site),
    )


def _own_template(template: Path | None, site: SiteConfig) -> str | None:
    if template is None:
        return None
    if not site.allow_user_template:
        raise UserError(
            f"{template}: this site does not allow templates of users",
            hint="leave out --template, or ask your administrator: allow_user_template",
        )
    return absolute(str(template), Path.cwd())
