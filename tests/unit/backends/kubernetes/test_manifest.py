"""What is sent: the promises in the pod, hostile values, templates that go too far."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.backends.kubernetes import manifest, values
from orchestrator.backends.kubernetes.backend import KubernetesBackend
from orchestrator.config.settings import kubernetes_settings
from orchestrator.contract.jsonio import from_json, loads
from orchestrator.contract.resolved import PreemptionSpec, ResolvedJob
from orchestrator.contract.spec import TrainSpec
from orchestrator.errors import UserError
from tests.harness.jobs import job as make_job
from tests.harness.kube_contract import make_spec

HERE = Path("/nowhere")


def a_job(**settings: Any) -> ResolvedJob:
    return replace(
        make_job(HERE), backend="kubernetes", kubernetes={"image": "example.org/qvl:1", **settings}
    )


def prepared(job: ResolvedJob, spec: TrainSpec | None = None) -> tuple[dict[str, Any], str]:
    spec = spec or make_spec(job, "run-261124-abcdef")
    submission = KubernetesBackend(_never).prepare(job, spec)
    return yaml.safe_load(submission.text), submission.text


def _never() -> Any:
    raise AssertionError("to prepare needs no server")


def container(job: dict[str, Any]) -> dict[str, Any]:
    return job["spec"]["template"]["spec"]["containers"][0]


def environment(job: dict[str, Any]) -> dict[str, str]:
    return {e["name"]: e["value"].replace("$$", "$") for e in container(job)["env"] if "value" in e}


def test_the_promises_stand_in_the_pod(job: ResolvedJob) -> None:
    sent, _ = prepared(replace(job, preemption=PreemptionSpec(grace_s=59.2)))
    pod = sent["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 60
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    main = container(sent)
    assert main["command"] == ["python3", "-u", "-m", "orchestrator.agent", "-"]
    assert main["securityContext"]["readOnlyRootFilesystem"] is True
    amounts = main["resources"]
    assert amounts["requests"] == {"nvidia.com/gpu": 2, "memory": "16384Mi", "cpu": 8}
    assert amounts["limits"] == {"nvidia.com/gpu": 2, "memory": "16384Mi"}
    volumes = {v["name"]: v for v in pod["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "8192Mi"}
    keys = {t["key"] for t in pod["tolerations"]}
    assert {"cloud.google.com/gke-spot", "nvidia.com/gpu"} <= keys


def test_nothing_of_the_submitter_s_machine_travels(job: ResolvedJob) -> None:
    spec = replace(
        make_spec(job, "run-261124-abcdef"), secrets_file="/home/me/secret", devices_dir="/home/me"
    )
    sent, text = prepared(job, spec)
    assert "/home/me" not in text
    assert "/submitter/python" not in text
    travelled = from_json(TrainSpec, loads(environment(sent)["QVL_SPEC"].encode()))
    assert travelled == values.pod_spec(job, spec)


def test_user_zero_is_said_to_be_root() -> None:
    sent, _ = prepared(a_job(run_as_user=0, run_as_group=7, fs_group=8))
    context = sent["spec"]["template"]["spec"]["securityContext"]
    assert (context["runAsNonRoot"], context["runAsUser"]) == (False, 0)
    assert (context["runAsGroup"], context["fsGroup"]) == (7, 8)


def test_settings_reach_the_pod() -> None:
    sent, _ = prepared(
        a_job(
            node_selector={"pool": "spot"},
            priority_class="low",
            service_account="trainer",
            image_pull_secrets=["reg"],
            tolerations=[{"key": "x", "operator": "Exists"}],
            env_from_secrets=["s3"],
            env_from_config=["proxy"],
            volumes=[{"claim": "data", "path": "/data", "read_only": True}],
            gpu_resource=None,
            queue="team",
            namespace="ml",
            scratch_gb=1,
        )
    )
    pod, main = sent["spec"]["template"]["spec"], container(sent)
    assert sent["metadata"]["namespace"] == "ml"
    assert sent["spec"]["suspend"] is True
    assert (pod["nodeSelector"], pod["priorityClassName"]) == ({"pool": "spot"}, "low")
    assert (pod["serviceAccountName"], pod["imagePullSecrets"]) == ("trainer", [{"name": "reg"}])
    assert pod["tolerations"][-1] == {"key": "x", "operator": "Exists"}
    assert main["envFrom"] == [{"configMapRef": {"name": "proxy"}}, {"secretRef": {"name": "s3"}}]
    assert main["volumeMounts"][-1] == {"name": "volume-0", "mountPath": "/data", "readOnly": True}
    assert main["resources"] == {"requests": {}, "limits": {}}


HOSTILE = [
    "$(HOME)",
    "a: b",
    "- x",
    "#",
    "{{ x }}",
    "'\"\\",
    "\n\nkind: Pod",
    "---",
    "!!python/x",
    "ÿ\u2028",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_values_stay_values(text: str) -> None:
    job = replace(a_job(env={"A": text}), env={"B": text})
    sent, _ = prepared(job)
    assert environment(sent)["A"] == text
    assert from_json(TrainSpec, loads(environment(sent)["QVL_SPEC"].encode())).env["B"] == text


ANY = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=60)


@given(ANY, ANY, ANY)
def test_whatever_a_value_holds_it_changes_only_itself(one: str, two: str, three: str) -> None:
    plain, _ = prepared(a_job(env={"A": "x"}, tolerations=[{"key": "x"}]))
    try:
        odd = a_job(env={"A": one}, tolerations=[{"key": two}])
        sent, _ = prepared(replace(odd, env={"B": three}))
    except UserError:
        return  # what looks like a secret is refused
    assert environment(sent)["A"] == one
    assert sent["spec"]["template"]["spec"]["tolerations"][-1] == {"key": two}
    travelled = from_json(TrainSpec, loads(environment(sent)["QVL_SPEC"].encode()))
    assert travelled.env["B"] == three
    _put(sent, plain)
    assert sent == plain


def _put(sent: dict[str, Any], plain: dict[str, Any]) -> None:
    """What was varied, made the same again."""
    container(sent)["env"] = container(plain)["env"]
    sent["spec"]["template"]["spec"]["tolerations"] = plain["spec"]["template"]["spec"][
        "tolerations"
    ]


def template(tmp_path: Path, body: str) -> str:
    file = tmp_path / "mine.yaml.j2"
    file.write_text("{# qvl-template api=1 #}\n" + body)
    return str(file)


def test_a_site_s_template_may_add_what_it_likes(tmp_path: Path) -> None:
    mine = template(
        tmp_path,
        '{% extends "k8s/job.yaml.j2" %}{% block scheduling %}\n'
        "      topologySpreadConstraints: []\n      hostname: {{ name }}\n{% endblock %}",
    )
    sent, _ = prepared(a_job(template=mine))
    assert sent["spec"]["template"]["spec"]["hostname"] == "test"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("backoffLimit: 0", "backoffLimit: 6", "spec.backoffLimit: 6, not 0"),
        ("restartPolicy: Never", "restartPolicy: OnFailure", "restartPolicy"),
        ("Seconds: {{ grace_s }}", "Seconds: 5", "terminationGracePeriodSeconds: 5"),
        ("parallelism: {{ nodes }}", "parallelism: 3", "parallelism"),
        ("name: {{ job_name }}", "name: mine", "metadata.name"),
        ("labels: {{ job_labels }}", "labels: {a: b}", "metadata.labels.qvl-orchestrate/run"),
        ("command: {{ command }}", "command: [sh, -c, x]", "the agent as its command"),
        ("env: {{ env }}", "env: []", "QVL_SPEC"),
        ("limits: {{ limits }}", 'limits: {"nvidia.com/gpu": 8}', "nvidia.com/gpu"),
        ("kind: Job", "kind: CronJob", "kind"),
    ],
)
def test_a_template_may_not_change_what_the_supervisor_depends_upon(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    from orchestrator.resources import resource

    ours = resource("k8s/job.yaml.j2").read_text()
    assert old in ours
    mine = tmp_path / "mine.yaml.j2"
    mine.write_text(ours.replace(old, new))
    with pytest.raises(UserError, match="changes what the supervisor depends upon") as caught:
        prepared(a_job(template=str(mine)))
    assert words in str(caught.value)


@pytest.mark.parametrize("body", ["a: [", "", "- x", "--- \na: 1\n--- \nb: 2"])
def test_a_template_that_gives_no_job(tmp_path: Path, body: str) -> None:
    with pytest.raises(UserError, match="template"):
        prepared(a_job(template=template(tmp_path, body)))


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({}, "kubernetes.image: is missing"),
        ({"image": "a b"}, "no name of an image"),
        ({"imge": "x"}, "unknown field"),
        ({"namespace": "../x"}, "no namespace"),
        ({"namespace": "a/b"}, "no namespace"),
        ({"volumes": [{"path": "/x"}]}, "give claim"),
        ({"volumes": [{"path": "x", "claim": "c"}]}, "no absolute path"),
        ({"volumes": [{"path": "/x", "claim": "c", "host_path": "/y"}]}, "give claim"),
        ({"volumes": [{"path": "/x", "claim": "c", "sub_path": "../y"}]}, "no sub_path"),
        ({"volumes": [{"pth": "/x"}]}, "kubernetes.volumes[0].pth: unknown field"),
        ({"volumes": "x"}, "kubernetes.volumes: must be a list"),
        ({"node_selector": {"a": 1}}, "kubernetes.node_selector.a: must be text, not 1"),
        ({"tolerations": [{"kee": "x"}]}, "kubernetes.tolerations[0].kee: unknown field"),
        ({"run_as_user": True}, "kubernetes.run_as_user: must be a whole number, not true"),
        ({"shm_gb": -1}, "kubernetes.shm_gb: must be more than 0, not -1"),
        ({"image_pull_policy": "always"}, "IfNotPresent"),
        ({"env": {"QVL_SPEC": "x"}}, "cannot be set"),
        ({"env": {"AWS_SECRET_ACCESS_KEY": "x"}}, "looks like a secret"),
        ({"priority_class": "A B"}, "no name"),
        ({"gpu_resource": "a b"}, "name of a resource"),
    ],
)
def test_settings_that_cannot_be(block: dict[str, Any], words: str) -> None:
    given_ = block if not block or "image" in block else {"image": "i", **block}
    with pytest.raises(UserError) as caught:
        kubernetes_settings(given_)
    assert words in str(caught.value)


def test_a_long_environment_is_refused() -> None:
    job = replace(a_job(), env={"A": "x" * 100_000})
    with pytest.raises(UserError, match="more than an environment variable holds"):
        prepared(job)


def test_what_a_server_dropped_is_found() -> None:
    sent = {"a": 1, "b": {"c": "x", "d": []}, "e": [{"name": "n", "v": 2}], "f": False, "g": 4}
    kept = {"a": 1, "b": {"c": "y"}, "e": [{"name": "m"}, {"name": "n", "v": 3}], "g": "4"}
    assert manifest.dropped(sent, kept) == ["e[0].v"]
    assert manifest.dropped(sent, {**kept, "b": {}}) == ["b.c", "e[0].v"]
    assert manifest.dropped(json.loads(json.dumps(sent)), sent) == []
