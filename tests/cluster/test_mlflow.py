"""Runs of retrain in MLflow on a cluster: recorded and registered once, whatever is killed, and by workflows alone.

Needs Argo Workflows and, beside the platform's images, image-mlflow and image-test-postgres.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from tests.cluster.images.test_images import POSTGRES, VERSION, pod
from tests.cluster.kube import Namespace
from tests.cluster.release import CHART, Release
from tests.unit.pipelines.test_workflows_in_mlflow import judged

GIVEN = {"route": "chat", "base": "/models/x", "model": "support"}
# What MLflow has: runs by their verdicts, and versions of the model.
LOOK = """
import json
from mlflow import MlflowClient
client = MlflowClient()
runs = client.search_runs([each.experiment_id for each in client.search_experiments(filter_string="name='retrain'")])
versions = client.search_model_versions("name='support'")
gates = {each.info.run_name: each.data.tags["genaifactory.gate"] for each in runs}
print(json.dumps([gates, len(runs), len(versions)]))
"""
# Whether a pod comes as far as MLflow.
REACH = """
import socket
try:
    socket.create_connection(("factory-mlflow", 5000), timeout=3).close()
    print("reached")
except OSError as error:
    print(type(error).__name__)
"""

# How far MLflow's own role comes in the PostgreSQL that it shares with the record.
PEEK = """
import os, psycopg
own = os.environ["MLFLOW_BACKEND_STORE_URI"].replace("+psycopg", "")
psycopg.connect(own, connect_timeout=5).close()
try:
    psycopg.connect(own.removesuffix("/mlflow") + "/genaifactory", connect_timeout=5).close()
    print("reached")
except psycopg.OperationalError as error:
    print(error)
"""
REFUSED = ("TimeoutError", "ConnectionRefusedError")
"""What becomes of a connection that a policy forbids, by the network's plugin."""

pytestmark = [pytest.mark.timeout(600), pytest.mark.allow_blocking]


@dataclass(frozen=True)
class Registrations:
    """Runs of the step register alone, in a release."""

    release: Release

    @property
    def namespace(self) -> Namespace:
        """Of the release."""
        return self.release.namespace

    def start(self, name: str) -> None:
        """On the run of this name, which lies on the volume."""
        parameters = [word for key, value in GIVEN.items() for word in ("--parameter", f"{key}={value}")]
        template = ("--from", "workflowtemplate/factory-retrain", "--entrypoint", "register")
        command = ("argo", "submit", *template, "--name", name, *parameters, "--namespace", self.namespace.name)
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    def lose_pod(self, name: str) -> None:
        """Deletes the first pod of a run once its step is running."""

        def running() -> list[str]:
            pods = self.namespace.get("pods", "--selector", f"workflows.argoproj.io/workflow={name}")
            states = {
                pod["metadata"]["name"]: {each["name"]: each["state"] for each in pod["status"]["containerStatuses"]}
                for pod in pods
                if "containerStatuses" in pod["status"]
            }
            return [pod for pod, containers in states.items() if "running" in containers["main"]]

        self.namespace.wait(lambda: bool(running()), 120, f"{name} runs", every_seconds=0.1)
        self.namespace.kubectl("delete", "pod", *running(), "--grace-period=0", "--force")

    def end(self, name: str) -> dict[str, Any]:
        """Waits for it; the status of the run."""

        def status() -> dict[str, Any]:
            found: dict[str, Any] = self.namespace.get("workflow", name).get("status", {})
            return found

        self.namespace.wait(
            lambda: status().get("phase") in ("Succeeded", "Failed", "Error"), 300, f"the end of {name}"
        )
        return status()

    def found(self) -> Any:
        """The verdict of each run in MLflow by its name, how many runs there are, and how many versions."""
        return json.loads(self.release.tools("python", "-c", LOOK))


def version(status: dict[str, Any]) -> str:
    """Of the model, that a run returned."""
    outputs = {each["name"]: each["value"] for each in status["outputs"]["parameters"]}
    return str(outputs["version"])


def messages(status: dict[str, Any]) -> str:
    """What the pods of a run say."""
    return "\n".join(each.get("message", "") for each in status["nodes"].values())


@pytest.fixture(scope="module")
def registrations(namespace: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Registrations:
    """The laptop profile with workflows, and MLflow on the built-in PostgreSQL."""
    if shutil.which("argo") is None:
        pytest.skip("argo is not installed: its command line starts the workflows")
    values = tmp_path_factory.mktemp("mlflow") / "values.yaml"
    repository, _, tag = POSTGRES.rpartition(":")
    installed = {
        "global": {"postgresql": {"enabled": True}},
        "postgresql": {"image": {"repository": repository, "tag": tag}},
        "pipelines": {"enabled": True},
        "mlflow": {"enabled": True},
    }
    values.write_text(yaml.safe_dump(installed))
    release = Release(namespace)
    release.install("--values", str(CHART / "profiles" / "laptop.yaml"), "--values", str(values))
    return Registrations(release)


@pytest.fixture(scope="module")
def runs(registrations: Registrations, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Judged runs on the volume: two that passed their gate, and one that did not."""
    registrations.release.tools("mkdir", "-p", "/pipelines/inputs", "/pipelines/runs")
    for name, right in (("killed", 30), ("waits", 29), ("stopped", 0)):
        volume = tmp_path_factory.mktemp(name)
        run = asyncio.run(judged(volume, name=name, right=right)).run
        for file in (*run.glob("*/.attempt"), run / "plan.json"):
            file.write_text(file.read_text().replace(str(volume), f"/pipelines/inputs/{name}"))
        (volume / "factory.yaml").unlink()
        registrations.namespace.copy(volume, registrations.release.shell(), f"/pipelines/inputs/{name}")
        registrations.release.tools("mv", f"/pipelines/inputs/{name}/runs/{name}", "/pipelines/runs/")
        # kubectl cp leaves its own time in files, in the order of their names.
        registrations.release.tools("touch", f"/pipelines/runs/{name}/evaluate/.attempt")


def test_a_registration_whose_pods_are_killed_leaves_one_run_and_one_version(
    registrations: Registrations, runs: None
) -> None:
    registrations.start("killed")
    registrations.lose_pod("killed")
    status = registrations.end("killed")
    assert status["phase"] == "Succeeded", messages(status)
    assert version(status) == "1"
    assert registrations.found() == [{"killed": "passed"}, 1, 1]
    assert "support" in registrations.release.tools("genaifactory", "registry", "list")


def test_a_run_that_the_gate_stopped_is_recorded_and_not_registered(registrations: Registrations, runs: None) -> None:
    registrations.start("stopped")
    status = registrations.end("stopped")
    assert status["phase"] == "Failed"
    assert "was not passed: nothing is registered" in messages(status)
    assert registrations.found() == [{"killed": "passed", "stopped": "not passed"}, 2, 1]


def test_a_step_waits_while_mlflow_is_away(registrations: Registrations, runs: None) -> None:
    namespace, mlflow = registrations.namespace, "deployment/factory-mlflow"
    namespace.kubectl("scale", mlflow, "--replicas=0")
    namespace.wait(lambda: not registrations.release.pods("mlflow"), 60, "MLflow is away")
    registrations.start("waits")
    log = ("logs", "--selector", "workflows.argoproj.io/workflow=waits", "--container", "main", "--tail", "-1")
    namespace.wait(lambda: "Waiting." in namespace.kubectl(*log, check=False), 120, "the step waits")
    namespace.kubectl("scale", mlflow, "--replicas=1")
    status = registrations.end("waits")
    assert status["phase"] == "Succeeded", messages(status)
    assert version(status) == "2"
    assert registrations.found()[1:] == [3, 2]


def test_no_other_pod_comes_as_far_as_mlflow_and_it_as_far_as_its_own_database(registrations: Registrations) -> None:
    namespace, release = registrations.namespace, registrations.release
    namespace.apply(pod("stranger", f"docker.io/genaifactory/tools:{VERSION}", command=["sleep", "600"]))
    namespace.kubectl("wait", "pod/stranger", "--for=condition=Ready", "--timeout=120s")
    assert release.tools("python", "-c", REACH).strip() == "reached"
    assert namespace.exec("stranger", "python", "-c", REACH).strip() in REFUSED
    (server,) = release.pods("mlflow")
    gateway = REACH.replace('"factory-mlflow", 5000', '"factory-gateway", 50051')
    assert namespace.exec(server, "python", "-c", gateway).strip() in REFUSED
    assert namespace.exec("stranger", "python", "-c", gateway).strip() == "reached"
    assert "permission denied for database" in namespace.exec(server, "python", "-c", PEEK)
