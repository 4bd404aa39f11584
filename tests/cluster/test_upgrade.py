"""What is in the platform outlives upgrade, rollback, uninstall and the node's restart.

Needs the platform's images on the cluster (`make images`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import uuid
from pathlib import Path

import httpx
import pytest
import yaml

from tests.cluster import node
from tests.cluster.kube import Namespace
from tests.cluster.release import CHART, ROOT, SERVICES, Release, helm

PROFILE = ("--values", str(CHART / "profiles" / "laptop.yaml"))
ANNUAL_LEAVE = "How many days of annual leave do I have?"

KINDS = (
    *("deployments", "statefulsets", "jobs", "cronjobs", "pods", "services", "secrets", "configmaps"),
    *("serviceaccounts", "roles", "rolebindings", "networkpolicies", "poddisruptionbudgets"),
    *("horizontalpodautoscalers", "ingresses"),
)

pytestmark = [pytest.mark.timeout(900), pytest.mark.allow_blocking]


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart of the last version that was tagged; before there is one, this version's under a lower number."""
    folder = tmp_path_factory.mktemp("previous")
    tags = subprocess.run(
        ("git", "tag", "--list", "v*", "--sort=-v:refname"), cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    if tags:
        archive = subprocess.run(
            ("git", "archive", tags[0], "charts"), cwd=ROOT, check=True, capture_output=True
        ).stdout
        subprocess.run(("tar", "x", "-C", str(folder)), input=archive, check=True)
        return folder / "charts" / "genai-factory"
    shutil.copytree(ROOT / "charts", folder / "charts", symlinks=True)
    chart = folder / "charts" / "genai-factory"
    text = yaml.safe_load((chart / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(yaml.safe_dump({**text, "version": "0.0.9"}))
    return chart


@pytest.fixture(scope="module")
def release(namespace: Namespace, previous: Path) -> Release:
    """The previous version, with documents, a conversation and records."""
    release = Release(namespace)
    release.install(*PROFILE, chart=previous)
    release.ask("Who approves annual leave?", route="chat", conversation="kept")
    return release


@pytest.fixture
def before(release: Release) -> set[str]:
    """Ids of what is on record when a test begins."""
    assert release.ask(ANNUAL_LEAVE)["annotations"]
    wait_for_records(release)
    return {record["request_id"] for record in release.records()}


def wait_for_records(release: Release) -> None:
    """Until nothing is on its way to the record."""
    known = -1
    deadline = time.monotonic() + 30
    while (count := len(release.records())) != known or count == 0:
        known = count
        time.sleep(1)
        assert time.monotonic() < deadline


def assert_kept(release: Release, before: set[str]) -> None:
    """Documents, records and conversations are there."""
    assert release.ask(ANNUAL_LEAVE)["annotations"], "the documents are gone"
    assert before <= {record["request_id"] for record in release.records()}, "records are gone"
    kept, new = (prompt_tokens(release, conversation) for conversation in ("kept", uuid.uuid4().hex))
    assert kept > new, "the conversation is gone"


def prompt_tokens(release: Release, conversation: str) -> int:
    """How much a model is given to read for a short question: the turns before it, too."""
    completion = release.completion("And then?", route="chat", conversation=conversation)
    return int(completion["usage"]["prompt_tokens"])


def test_an_upgrade_keeps_what_is_there(release: Release, before: set[str]) -> None:
    key = release.key
    certificates = {service: release.secret(f"{service}-tls") for service in SERVICES}
    release.upgrade(*PROFILE, "--set", "global.logLevel=DEBUG")
    (installed,) = json.loads(helm("list", "--namespace", release.namespace.name, "--output", "json").stdout)
    assert installed["chart"] == f"genai-factory-{yaml.safe_load((CHART / 'Chart.yaml').read_text())['version']}"
    assert release.key == key
    assert {service: release.secret(f"{service}-tls") for service in SERVICES} == certificates
    assert_kept(release, before)


def test_a_rollback_keeps_what_is_there(release: Release, before: set[str]) -> None:
    release.helm("rollback", "1", "--wait", "--timeout", "6m")
    assert_kept(release, before)


def test_a_change_of_factory_yaml_is_in_force_without_a_restart(release: Release) -> None:
    pods = set(release.pods())
    tenant = "factory.tenants[0].name=main,factory.tenants[0].limits.requests_per_minute=4321"
    release.upgrade(*PROFILE, "--set", tenant)
    with release.namespace.refreshed():
        release.namespace.wait(lambda: requests_per_minute(release) == 4321, 150, "the new limit in force")
    assert set(release.pods()) == pods


def requests_per_minute(release: Release) -> int:
    """The tenant's limit, as the gateway tells its clients."""
    headers = {"authorization": f"Bearer {release.key}"}
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hello"}]}
    url = f"http://{release.address()}/v1/chat/completions"
    response = httpx.post(url, json=body, headers=headers, timeout=60, trust_env=False)
    return int(response.headers["x-ratelimit-limit-requests"])


def test_documents_are_backed_up_and_restored_as_the_docs_say(release: Release) -> None:
    namespace = release.namespace
    (workload,) = release.names("retriever")
    namespace.kubectl("scale", workload, "--replicas=0")
    # A pod that ends still writes: what is copied then changes while it is read.
    namespace.kubectl("wait", "pod/factory-retriever-0", "--for=delete", "--timeout=60s")
    namespace.kubectl("apply", "--filename", str(ROOT / "docs" / "backup-pod.yaml"))
    namespace.kubectl("wait", "pod/backup", "--for=condition=Ready", "--timeout=60s")
    kubectl = ("kubectl", "--namespace", namespace.name, "exec", "--stdin", "backup", "--")
    tar = subprocess.run((*kubectl, "sh", "-c", "cd /data && tar czf - *"), check=True, capture_output=True).stdout
    namespace.exec("backup", "sh", "-c", "rm -rf /data/*")
    assert namespace.exec("backup", "ls", "/data") == ""
    subprocess.run((*kubectl, "tar", "xzf", "-", "-C", "/data"), check=True, input=tar)
    namespace.kubectl("delete", "pod/backup")
    namespace.kubectl("scale", workload, "--replicas=1")
    namespace.wait(lambda: release.ready("retriever"), 90, "the retriever back")
    assert release.ask(ANNUAL_LEAVE)["annotations"]


def test_an_uninstall_leaves_the_volumes_and_a_new_installation_finds_them(release: Release, before: set[str]) -> None:
    release.helm("uninstall", "--wait")
    namespace = release.namespace
    namespace.wait(lambda: not namespace.get("pods"), 90, "no pod left")
    left = set(namespace.kubectl("get", ",".join(KINDS), "--output", "name").split())
    assert left <= {"serviceaccount/default", "configmap/kube-root-ca.crt"}, left
    volumes = namespace.kubectl("get", "persistentvolumeclaims", "--output", "name").split()
    assert {volume.rpartition("data-factory-")[2] for volume in volumes} == {
        "orchestrator-0",
        "retriever-0",
        "monitor-0",
    }
    release.install(*PROFILE, "--set", "samples.enabled=false")
    assert_kept(release, before)


# It waits for the tests that run beside it.
@pytest.mark.timeout(1800)
def test_a_restart_of_the_node_loses_nothing_and_needs_nobody(release: Release, before: set[str]) -> None:
    script = os.environ.get("GENAIFACTORY_TEST_CLUSTER")
    if not script:
        pytest.skip("GENAIFACTORY_TEST_CLUSTER does not name the script that stops and starts the cluster")
    last = release.ask("Who approves a business trip?")
    assert last["content"]
    stopped = containers(release)
    with node.alone():
        for command in (("down", "--keep"), ("up", "kserve")):
            done = subprocess.run((script, *command), check=False, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stdout + done.stderr
        # What the API server knows of pods is from before, until the kubelet has looked.
        seconds = release.namespace.wait(
            lambda: release.ready() and not containers(release) & stopped, 240, "every pod ready again"
        )
    print(f"\nready {seconds:.0f} s after the node")
    assert_kept(release, before)
    assert "Who approves a business trip?" in str(release.records())


def containers(release: Release) -> set[str]:
    """Ids of the services' containers."""
    return {
        status.get("containerID", "")
        for pod in release.pods().values()
        for status in pod["status"].get("containerStatuses", ())
    }


def test_an_uninstall_that_is_told_to_leaves_nothing(release: Release) -> None:
    keep = [f"{service}.persistence.whenDeleted=Delete" for service in ("orchestrator", "retriever", "monitor")]
    release.upgrade(*PROFILE, *(argument for each in keep for argument in ("--set", each)))
    release.helm("uninstall", "--wait")
    release.namespace.wait(
        lambda: not release.namespace.kubectl("get", "persistentvolumeclaims,pods", "--output", "name").split(),
        90,
        "no volume left",
    )
