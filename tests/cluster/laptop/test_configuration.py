"""A wrong factory.yaml on a cluster: Helm refuses it before anything changes, and pods refuse one edited by hand.

Both in the words of `genaifactory config check`. Needs the platform's images on the cluster (`make images`).
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import subprocess
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from genaifactory_common import specs
from tests.cluster.kube import Namespace
from tests.cluster.laptop.profile import VALUES
from tests.cluster.release import CHART, Release

DOCUMENT: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))["factory"]
FOLLOWERS = ("gateway", "safety", "orchestrator", "retriever", "modelserver")
MOUNTED = "/etc/genaifactory/factory.yaml"
# Where a pod sees a change of its ConfigMap, at the kubelet's leisure.
SYNC_SECONDS = 180.0

Fault = Callable[[dict[str, Any]], object]
VLLM = {"type": "vllm", "model": "llama", "source": "/models/llama", "args": {"max_model_length": 100}}
# None of them is one for the schema of the values, whose words are Helm's.
WRONG: dict[str, Fault] = {
    "an entity": lambda document: document["policies"][0]["rules"][1]["entities"].append("SHOE_SIZE"),
    "a template": lambda document: document["prompts"][0].update(system="{{ company }}"),
    "an engine's argument": lambda document: document.update(engines=[VLLM, {"type": "extractive"}]),
    "a route": lambda document: document["routes"][0].update(models=["gpt"]),
}

# What is read first is reported alone, what services derive from it together.
TOGETHER = (("a route",), ("an entity", "a template", "an engine's argument"))

pytestmark = [pytest.mark.timeout(900), pytest.mark.allow_blocking]


def spoilt(faults: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The document with some of the faults, and the lines of `config check`, one for each."""
    document = copy.deepcopy(DOCUMENT)
    for fault in faults:
        WRONG[fault](document)
    with pytest.raises(specs.InvalidConfiguration) as refused:
        specs.parse(yaml.safe_dump(document), source=MOUNTED)
    assert len(refused.value.lines) == len(faults)
    return document, list(refused.value.lines)


def refused_by_helm(release: Release, command: str, faults: Sequence[str], folder: Path) -> list[str]:
    """Runs helm install or upgrade with the faults; the lines of the job. Fails if Helm does not."""
    document, lines = spoilt(faults)
    (folder / "wrong.yaml").write_text(yaml.safe_dump({"factory": document}), encoding="utf-8")
    arguments = (command, release.name, str(CHART), *VALUES, "--values", str(folder / "wrong.yaml"), "--timeout", "5m")
    done = subprocess.run(
        ("helm", *arguments, "--namespace", release.namespace.name),
        check=False, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert all(line in said for line in lines), said
    return lines


def objects(namespace: Namespace, release: Release) -> dict[str, str]:
    """Version of everything that belongs to the release, but of what the check leaves."""
    kinds = "deployments,statefulsets,pods,services,secrets,configmaps,serviceaccounts,networkpolicies,jobs,cronjobs"
    found = namespace.get(kinds, "--selector", f"app.kubernetes.io/instance={release.name}")
    return {
        f"{each['kind']}/{each['metadata']['name']}": json.dumps(
            each.get("spec", each.get("data")), sort_keys=True
        )
        for each in found
        if not each["metadata"]["name"].startswith(f"{release.name}-check")
    }  # fmt: skip


def metrics(pod: dict[str, Any]) -> str:
    """What a pod reports."""
    with urllib.request.urlopen(f"http://{pod['status']['podIP']}:9090/metrics", timeout=10) as response:
        text: str = response.read().decode()
    return text


def all_report(release: Release, digest: str, *, refused: bool) -> bool:
    """Whether every pod has the document of this digest in force, and refuses its file's or not."""
    every = release.pods_by_service()
    for service in FOLLOWERS:
        for text in map(metrics, every[service].values()):
            in_force = re.findall(r'^genaifactory_configuration_info\{digest="(\w+)"\} 1\.0$', text, re.MULTILINE)
            state = re.findall(r"^genaifactory_configuration_refused (.*)$", text, re.MULTILINE)
            if (in_force, state) != ([digest], ["1.0" if refused else "0.0"]):
                return False
    return True


def installed(release: Release) -> str:
    """The document of the release."""
    return str(release.namespace.get("configmap", f"{release.name}-factory")["data"]["factory.yaml"])


def digest(text: str) -> str:
    """As services report it."""
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("faults", TOGETHER, ids=", ".join)
def test_an_upgrade_to_it_fails_with_the_words_and_changes_nothing(
    release: Release, faults: tuple[str, ...], tmp_path: Path
) -> None:
    before = objects(release.namespace, release)
    lines = refused_by_helm(release, "upgrade", faults, tmp_path)
    assert objects(release.namespace, release) == before
    assert all_report(release, digest(installed(release)), refused=False)
    assert release.ask()["content"]
    # For those whose Helm prints no logs, the pod stays with the words.
    logs = release.namespace.kubectl("logs", f"job/{release.name}-check")
    assert logs.splitlines() == lines
    uid = release.namespace.get("job", f"{release.name}-check")["metadata"]["uid"]
    (pod,) = release.namespace.get("pods", "--selector", f"batch.kubernetes.io/controller-uid={uid}")
    (status,) = pod["status"]["containerStatuses"]
    assert all(line in status["state"]["terminated"]["message"] for line in lines)


def test_an_upgrade_to_a_good_one_goes_on_and_leaves_nothing_of_the_check(release: Release) -> None:
    release.upgrade(*VALUES)
    namespace = release.namespace

    def left() -> str:
        return namespace.kubectl("get", "jobs,configmaps,pods", "--output", "name")

    namespace.wait(lambda: f"/{release.name}-check" not in left(), 60, "nothing of the check is left")


def test_a_first_installation_of_it_makes_nothing(namespace: Namespace, release: Release, tmp_path: Path) -> None:
    second = Release(namespace, "second")
    refused_by_helm(second, "install", ["an entity"], tmp_path)
    assert objects(namespace, second) == {}
    second.helm("uninstall", "--wait")
    # All that is left of a check that failed.
    namespace.kubectl("delete", "job/second-check")


def test_every_pod_refuses_one_that_is_edited_by_hand_and_no_request_fails(release: Release) -> None:
    good = installed(release)
    wrong = yaml.safe_load(good)
    WRONG["an entity"](wrong)
    with pytest.raises(specs.InvalidConfiguration) as refused:
        specs.parse(yaml.safe_dump(wrong), source=MOUNTED)
    (words,) = refused.value.lines
    name, namespace = f"{release.name}-factory", release.namespace
    assert all_report(release, digest(good), refused=False)
    with release.load() as load, namespace.refreshed():
        patch(namespace, name, yaml.safe_dump(wrong))
        namespace.wait(
            lambda: all_report(release, digest(good), refused=True), SYNC_SECONDS, "every pod refuses the document"
        )
        for service in FOLLOWERS:
            for pod in release.pods(service):
                assert words in namespace.kubectl("logs", pod)
        patch(namespace, name, good)
        namespace.wait(
            lambda: all_report(release, digest(good), refused=False), SYNC_SECONDS, "every pod follows the good one"
        )
    assert load.failures() == []


def patch(namespace: Namespace, name: str, text: str) -> None:
    """Writes a document into a ConfigMap, as `kubectl edit` does."""
    body = json.dumps({"data": {"factory.yaml": text}})
    namespace.kubectl("patch", "configmap", name, "--type", "merge", "--patch", body)
