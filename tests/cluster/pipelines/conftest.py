"""A platform with workflows and a small Llama on vLLM, installed once for the tests of this folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import yaml

from tests.cluster.images.test_images import pod
from tests.cluster.kube import Namespace, new_namespace
from tests.cluster.pipelines import desk
from tests.cluster.pipelines.workflows import Workflows, proxied
from tests.cluster.release import CHART, Release
from tests.cluster.test_kserve import IMAGE, START_SECONDS, tiny_llama, volume_claim

QUESTIONS = (
    "How many days of annual leave do I have?",
    "Who approves annual leave?",
    "How long is the warranty of a gateway?",
    "How do I report a lost laptop?",
)
LONG = 60
MODELS = {"models": "/models", "pipelines": "/pipelines"}
CLAIMS = {"models": "models", "pipelines": "factory-pipelines"}
RUN, SCHEDULED = "november", "sunday"
KILLED = {
    "plan": "",
    "collect": "",
    "curate": "",
    "train": "train/checkpoints/*",
    "load": "",
    "evaluate": "evaluate/candidate.jsonl",
    "gate": "",
    "decide": "",
    "finish": "",
}
"""Tasks in their order, and what is in the run's folder when one is amid its work, and its pod is deleted."""


@pytest.fixture(scope="package")
def namespace() -> Iterator[Namespace]:
    with new_namespace("pipelines") as namespace:
        yield namespace


@pytest.fixture(scope="package")
def workflows(namespace: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workflows]:
    """The laptop profile with workflows and the Llama, golden sets on their volume."""
    if shutil.which("argo") is None:
        pytest.skip("argo is not installed: its command line starts the workflows")
    folder = tmp_path_factory.mktemp("pipelines")
    put_models(namespace)
    values = folder / "values.yaml"
    values.write_text(yaml.safe_dump(installed(namespace)))
    release = Release(namespace)
    release.install("--values", str(CHART / "profiles" / "laptop.yaml"), "--values", str(values))
    inputs = folder / "inputs"
    inputs.mkdir()
    # Long ones keep a step busy while it is looked at.
    for name, items in (("golden", 5 * len(QUESTIONS)), ("longer", 10 * LONG)):
        lines = [
            {"id": str(number), "input": f"{QUESTIONS[number % len(QUESTIONS)]} ({number})", "output": "20 days"}
            for number in range(items)
        ]
        (inputs / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    desk.golden(inputs / desk.GOLDEN)
    namespace.copy(inputs, release.shell(), "/pipelines/inputs")
    with proxied() as api:
        yield Workflows(release, api)


@pytest.fixture(scope="package", autouse=True)
def killed(workflows: Workflows) -> Iterator[Future[dict[str, str]]]:
    """Two runs of retrain on a record of corrections, begun before other tests, since they take minutes: one by the
    schedule's own parameters, and one of whose tasks each loses a pod; the uid of that by the task."""
    release = workflows.release
    count = desk.people_ask_and_correct(release)
    release.namespace.wait(
        lambda: sum(each["route"] == desk.NAME for each in release.records()) >= count, 60, "the answers on record"
    )
    workflows.submit("retrain", SCHEDULED, kind="cronwf")
    workflows.submit("retrain", RUN, **desk.PARAMETERS, approval_seconds="1")
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(lambda: {task: workflows.kill(RUN, task, amid=amid) for task, amid in KILLED.items()})


def put_models(namespace: Namespace) -> None:
    """The Llama on a volume of its own, under two names."""
    mounted = {
        "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
        "volumeMounts": [{"name": "models", "mountPath": "/models"}],
    }
    security = {"runAsUser": 65532, "fsGroup": 65532}
    namespace.apply(volume_claim(), pod("models", IMAGE, command=["sleep", "300"], security=security, **mounted))
    namespace.kubectl("wait", "pod/models", "--for=condition=Ready", "--timeout=120s")
    for name in (desk.BASE, desk.SAME_BASE):
        namespace.copy(tiny_llama(), "models", name)
    namespace.kubectl("delete", "pod", "models", "--grace-period=0", "--force")


def installed(namespace: Namespace) -> dict[str, Any]:
    """Values beside the profile's."""
    default = yaml.safe_load((CHART / "values.yaml").read_text())["factory"]
    prompts = [{**default["prompts"][0], "version": version} for version in (1, 2)]
    # A gate that every candidate passes and one that none does.
    gates = [
        {"name": "default", "rules": [{"metric": "failed", "at_most": 0}]},
        {"name": "impossible", "rules": [{"metric": "exact_match", "at_least": 1, "least_items": 2}]},
        desk.BETTER,
    ]
    api = namespace.get(
        "endpointslices", "--namespace", "default", "--selector", "kubernetes.io/service-name=kubernetes"
    )
    addresses = [address for each in api for endpoint in each["endpoints"] for address in endpoint["addresses"]]
    return {
        "factory": {
            **default,
            "prompts": prompts,
            "gates": gates,
            "engines": [desk.ENGINE, {"type": "extractive"}, {"type": "minilm"}],
            "models": [*default["models"], desk.MODEL],
            "routes": [*default["routes"], desk.ROUTE],
        },
        "pipelines": {
            "enabled": True,
            "modelsClaim": "models",
            "schedules": {"retrain": {"suspend": False, "parameters": desk.BY_SCHEDULE}},
            "kubernetesApi": {"to": [{"ipBlock": {"cidr": f"{address}/32"}} for address in addresses]},
            "resources": {
                "default": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}},
                "train": {"requests": {"cpu": "50m", "memory": "512Mi"}, "limits": {"memory": "4Gi"}},
            },
        },
        # As docs/pipelines.md has it under "Train".
        "modelserver": {
            "image": {"repository": "genaifactory/modelserver", "tag": "cpu"},
            "startup": {"seconds": int(START_SECONDS)},
            "resources": {"requests": {"cpu": "50m", "memory": "512Mi"}, "limits": {"memory": "6Gi"}},
            "extraVolumes": [
                {"name": name, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
                for name, claim in CLAIMS.items()
            ],
            "extraVolumeMounts": [{"name": name, "mountPath": path, "readOnly": True} for name, path in MODELS.items()],
        },
    }
