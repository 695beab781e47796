"""The log of a run on S3 is lost, as a rule that expires objects takes it."""

from __future__ import annotations

import pytest

from tests.harness import lostlog
from tests.harness.runs import Bench

pytestmark = pytest.mark.s3


@pytest.mark.parametrize("lost", [lostlog.everything, lostlog.from_the_newest_commit_on])
def test_it_is_held_and_goes_on_once_repaired(
    bench: Bench, calm: tuple[object, ...], lost: lostlog.Choice
) -> None:
    run = bench.submit(step_s=0.2)
    run.until_step(12)
    run.notify("SIGTERM")
    run.wait_gone()
    newest = max(step for _, step, _ in run.commits())
    before = lostlog.held_with_everything_there(run, lost)
    lostlog.repaired_and_finished(run, before)
    assert run.events("resuming")[-1]["data"]["step"] == newest
    assert run.outcome() == calm
