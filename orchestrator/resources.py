"""Files that ship with the project: templates for administrators, and examples.

Found beside the packages in a checkout or an editable install, inside `orchestrator/_data`
in a wheel.
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import InternalError

_PACKAGE = Path(__file__).resolve().parent


def resource(name: str) -> Path:
    """Path of `slurm/...`, `k8s/...` or `examples/...`. Raises InternalError if it is gone."""
    for root in (_PACKAGE.parent, _PACKAGE / "_data"):
        path = root / name
        if path.exists():
            return path
    raise InternalError(f"{name} is missing in this installation", hint="install it anew")
