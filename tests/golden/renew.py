"""The batch files of three shapes as our template gives them; writes them anew when run."""

from __future__ import annotations

from pathlib import Path

from orchestrator.config.models.site import SiteConfig
from orchestrator.operations.site_templates import SHAPES, sample_values, site_template
from orchestrator.templates.render import render

FOLDER = Path(__file__).parent


def name(nodes: int, gpus: int) -> str:
    return f"train-{nodes}x{gpus}.sbatch"


def text(nodes: int, gpus: int) -> str:
    """The rendered text, without what depends on where the project lies."""
    values = {**sample_values(SiteConfig(), nodes, gpus), "python_path": "/opt/qvl"}
    return render(site_template(SiteConfig(), None), values).text


if __name__ == "__main__":
    for shape in SHAPES:
        (FOLDER / name(*shape)).write_text(text(*shape))
