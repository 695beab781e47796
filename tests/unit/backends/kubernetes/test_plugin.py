"""submitit finds the plugin by its entry points; a function becomes a Job of its own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import submitit
from submitit.core import core, job_environment, plugins

from orchestrator.backends.kubernetes import plugin
from orchestrator.errors import UserError
from tests.harness.fake_kube import FakeKube


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    plugin._server.cache_clear()
    yield
    plugin._server.cache_clear()


def test_the_entry_points_are_found() -> None:
    assert plugins.get_executors()["kubernetes"] is plugin.KubernetesExecutor
    assert isinstance(plugins.get_job_environments()["kubernetes"], plugin.KubernetesJobEnvironment)


def test_it_never_takes_jobs_that_were_not_meant_for_it() -> None:
    assert plugin.KubernetesExecutor.affinity() == 0
    assert submitit.AutoExecutor.which() != "kubernetes"


@pytest.mark.parametrize("name", sorted(plugins.get_executors()))
def test_executors_are_as_submitit_wants_them(name: str) -> None:
    """The pattern of submitit's own tests of plugins."""
    executor = plugins.get_executors()[name]
    assert issubclass(executor, core.Executor)
    assert executor.name() == name
    assert executor.affinity() in (-1, 0, 1, 2)
    first = next(iter(inspect.signature(executor).parameters))
    assert first == "folder"
    generic = set(submitit.AutoExecutor._valid_parameters())
    assert not {p for p in executor._valid_parameters() if "_" not in p} & {"folder"}
    assert generic


@pytest.mark.parametrize("name", sorted(plugins.get_job_environments()))
def test_environments_are_as_submitit_wants_them(name: str) -> None:
    environment = plugins.get_job_environments()[name]
    assert isinstance(environment, job_environment.JobEnvironment)
    assert type(environment).name() == name
    if name != "debug":
        assert type(environment)._requeue is not job_environment.JobEnvironment._requeue


def test_a_function_becomes_a_job(fake: FakeKube, tmp_path: Path) -> None:
    executor = submitit.AutoExecutor(tmp_path, cluster="kubernetes")
    executor.update_parameters(
        gpus_per_node=2,
        mem_gb=4,
        timeout_min=1,
        cpus_per_task=3,
        kubernetes_image="example.org/f:1",
        kubernetes_volumes=[{"path": str(tmp_path), "claim": "shared"}],
    )
    job = executor.submit(sum, [1, 2])
    [sent] = fake.all("jobs")
    assert sent["metadata"]["name"] == job.job_id
    main = sent["spec"]["template"]["spec"]["containers"][0]
    assert main["command"] == ["python3", "-u", "-m", "submitit.core._submit", str(tmp_path)]
    assert main["resources"]["limits"] == {"nvidia.com/gpu": 2, "memory": "4096Mi"}
    assert main["resources"]["requests"]["cpu"] == 3
    assert sent["spec"]["activeDeadlineSeconds"] == 60
    assert {"name": "SUBMITIT_EXECUTOR", "value": "kubernetes"} in main["env"]
    assert job.watcher.get_state(job.job_id, mode="force") in ("PENDING", "RUNNING")
    assert job.paths.submitted_pickle.exists()
    job.cancel()
    assert fake.all("jobs") == []


def test_unknown_and_wrong_parameters_are_refused(tmp_path: Path) -> None:
    executor = submitit.AutoExecutor(tmp_path, cluster="kubernetes")
    with pytest.raises(NameError, match="imge"):
        executor.update_parameters(kubernetes_imge="x")
    executor.update_parameters(kubernetes_image="a b")
    with pytest.raises(UserError, match="no name of an image"):
        executor.submit(sum, [1])


def test_where_a_function_finds_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "kubernetes")
    monkeypatch.setenv("SUBMITIT_KUBERNETES_JOB", "submitit-1")
    found: Any = job_environment.JobEnvironment()
    assert isinstance(found, plugin.KubernetesJobEnvironment)
    assert (found.job_id, found.global_rank, found.num_nodes) == ("submitit-1", 0, 1)
