"""The nodes that new jobs keep away from, as commands show them."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.cli.common import registry
from orchestrator.clock import SystemClock, iso
from orchestrator.controller.node_exclusion import excluded
from orchestrator.domain.node_exclusion import ExcludedNode


def excluded_now() -> Sequence[ExcludedNode]:
    """The nodes that new jobs keep away from."""
    return excluded(registry(), SystemClock().now())


def node_line(node: ExcludedNode) -> str:
    """One node in words."""
    return (
        f"{node.node}  excluded until {iso(node.until)[:16]}Z: {node.deaths} attempts died there "
        f"quickly ({node.error})"
    )
