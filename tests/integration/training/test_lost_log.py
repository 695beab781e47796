"""A real training loses its log between two attempts, and goes on exactly once that is repaired."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.harness import lostlog
from tests.harness.training import Disturbance, TrainingBench

pytestmark = [pytest.mark.training, pytest.mark.timeout(1200)]


def test_repaired_it_equals_an_undisturbed_run(bench: TrainingBench) -> None:
    job = bench.job()
    job = replace(job, training={**job.training, "max_steps": 4, "eval_steps": 4})
    notice = Disturbance("micro", 2, "SIGTERM", to="agent", code=75, committed=2, micro=1)
    run = bench.disturbed(job, [notice])
    run.drive(lambda s: s.row["attempt"] == 1 and run.verdicts() == [75], seconds=600)
    run.wait_gone()
    before = lostlog.held_with_everything_there(run, lostlog.everything)
    lostlog.repaired_and_finished(run, before)
    straight = bench.probed(job, [])
    assert straight.finish().state == "SUCCEEDED"
    assert run.outcome() == straight.outcome()
    assert run.final_state() == straight.final_state()
