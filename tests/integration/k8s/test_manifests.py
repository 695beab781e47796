"""Everything that is sent or shipped, against a real server's dry run; hostile values too."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.kubernetes import controllers, manifest
from orchestrator.backends.kubernetes.api import Refused, ServerApi
from orchestrator.backends.kubernetes.backend import KubernetesBackend
from orchestrator.config.load import resolve_file
from orchestrator.config.models.site import SiteConfig
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.errors import UserError
from tests.harness.kube_cluster import MANIFESTS, NAMESPACE
from tests.harness.kube_contract import make_spec
from tests.harness.kube_runs import KubeBench
from tests.harness.runs import ROOT

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(300)]

EXAMPLES = sorted(
    p for p in (ROOT / "examples").glob("*.yaml") if "backend: kubernetes\n" in p.read_text()
)
EVERYTHING: dict[str, Any] = {
    "queue": None,
    "service_account": "trainer",
    "priority_class": "low",
    "runtime_class": "nvidia",
    "scheduler": "other-scheduler",
    "node_selector": {"pool": "spot", "example.org/zone": "a"},
    "tolerations": [{"key": "x", "operator": "Equal", "value": "y", "effect": "NoExecute"}],
    "image_pull_secrets": ["registry"],
    "volumes": [
        {"claim": "data", "path": "/data", "sub_path": "a/b", "read_only": True},
        {"host_path": "/mnt", "path": "/mnt"},
    ],
    "shm_gb": 1.5,
    "scratch_gb": 20,
    "env": {"A": "$(HOME) {{ x }}\n---\nkind: Pod"},
    "env_from_secrets": ["s3"],
    "env_from_config": ["proxy"],
    "run_as_user": 1000,
    "run_as_group": 1000,
    "fs_group": 1000,
}


def tried(job: ResolvedJob, run_id: str = "run-261124-abcdef") -> dict[str, Any]:
    """The Job as the server would keep it; Refused, or UserError where it would change it."""
    spec = make_spec(job, run_id)
    sent = manifest.parse(KubernetesBackend(ServerApi).prepare(job, spec).text, spec)
    kept = ServerApi().create("jobs", NAMESPACE, sent, dry_run=True)
    manifest.check_kept(sent, kept)
    return kept


def tried_controller(job: ResolvedJob) -> dict[str, Any]:
    sent = controllers.render_job(job, make_spec(job, "run-261124-abcdef"))
    kept = ServerApi().create("jobs", NAMESPACE, sent, dry_run=True)
    manifest.check_kept(sent, kept)
    return kept


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples(bench: KubeBench, path: Path) -> None:
    job = resolve_file(path, (f"kubernetes.namespace={NAMESPACE}",), SiteConfig())
    pod = tried(job)["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == job.preemption.grace_s > 0
    limits = pod["containers"][0]["resources"]["limits"]
    assert (limits["nvidia.com/gpu"], limits["memory"]) == ("4", "256Gi")
    tried_controller(job)


def test_every_setting(bench: KubeBench) -> None:
    job = replace(bench.job(), secrets=("WORD",))
    job = replace(job, kubernetes={**job.kubernetes, **EVERYTHING})
    assert tried(job)["spec"]["template"]["spec"]["priorityClassName"] == "low"
    tried_controller(job)


def test_a_queue_needs_a_server_that_knows_suspend(bench: KubeBench) -> None:
    job = bench.job(kubernetes={"queue": "team"})
    if bench.cluster.version() >= (1, 24):
        assert tried(job)["spec"]["suspend"] is True
        return
    with pytest.raises(UserError, match=r"spec.suspend") as caught:
        tried(job)
    assert caught.value.hint == "this server is too old for Kueue: remove kubernetes.queue"


@pytest.mark.parametrize("name", ["rbac.yaml", "controller.yaml"])
def test_what_administrators_apply(bench: KubeBench, name: str) -> None:
    out = bench.cluster.kubectl("apply", "--dry-run=server", "-f", str(MANIFESTS / name))
    assert "server dry run" in out


def test_the_template_of_the_guide(bench: KubeBench, tmp_path: Path) -> None:
    guide = (MANIFESTS / "README.md").read_text()
    start = guide.index("{# qvl-template")
    mine = tmp_path / "mine.yaml.j2"
    mine.write_text(guide[start : guide.index("```", start)])
    kept = tried(bench.job(kubernetes={"template": str(mine)}))
    [spread] = kept["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert spread["topologyKey"] == "topology.kubernetes.io/zone"


def test_hostile_values_stay_values_or_are_refused_by_name(bench: KubeBench) -> None:
    """Whatever is not refused here or there is kept to the letter; no text becomes a field."""
    rng = random.Random(20261124)
    alphabet = "aZ09-_./ :#{}[]'\"\\\n\t$()%&*!|>@`~^,;?=+é\u2028\U0001f600"
    plain = {*tried(bench.job())["spec"]["template"]["spec"], "nodeSelector"}
    kept_some = 0
    for _ in range(60):

        def text(most: int) -> str:
            return "".join(rng.choice(alphabet) for _ in range(rng.randint(0, most)))

        value, label, key = text(80), text(12), text(12)
        settings = {"env": {"A": value}, "node_selector": {"pool": label}}
        if rng.random() < 0.5:
            settings = {"env": {"A": value}, "tolerations": [{"key": key, "operator": "Exists"}]}
        try:
            kept = tried(bench.job(kubernetes={**settings, "env": {"A": value}}))
        except UserError:
            continue
        except Refused as fault:
            assert fault.status == 422, fault.message
            assert "nodeSelector" in fault.message or "tolerations" in fault.message
            continue
        kept_some += 1
        pod = kept["spec"]["template"]["spec"]
        [stored] = [e for e in pod["containers"][0]["env"] if e["name"] == "A"]
        assert stored.get("value", "").replace("$$", "$") == value
        assert set(pod) <= plain, set(pod) - plain
    assert kept_some > 5


@pytest.mark.parametrize("name", ["a", "a" * 40, "x-1", "0", "a-controller"])
def test_names(bench: KubeBench, name: str) -> None:
    """The longest that a job file may have, and those that look like something else."""
    run_id = f"{name}-261124-abcdef"
    assert tried(bench.job(), run_id)["metadata"]["name"] == f"{run_id}-1"
