"""An installation of the platform's chart in a namespace of a test, and what tests do with it."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.cluster.kube import Namespace, condition

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "genai-factory"
HERE = Path(__file__).parent
SERVICES = ("gateway", "safety", "orchestrator", "retriever", "modelserver", "monitor")
COMPONENT = "app.kubernetes.io/component"
QUESTION = "How many days of annual leave do I have?"


def helm(*arguments: str, seconds: float = 420, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs helm. Fails with what it says."""
    done = subprocess.run(("helm", *arguments), check=False, capture_output=True, text=True, timeout=seconds)
    assert not check or done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr.strip()}"
    return done


@dataclass(frozen=True)
class Release:
    """The release `name`. Every method blocks."""

    namespace: Namespace
    name: str = "factory"

    def helm(self, command: str, *arguments: str, seconds: float = 420, check: bool = True) -> str:
        """helm COMMAND RELEASE …; its output."""
        done = helm(command, self.name, *arguments, "--namespace", self.namespace.name, seconds=seconds, check=False)
        assert not check or done.returncode == 0, f"helm {command}: {done.stderr[-2000:]}\n{self.namespace.state()}"
        return done.stdout

    def install(self, *arguments: str, chart: Path = CHART) -> str:
        """helm install, until everything is ready."""
        printed = self.helm("install", str(chart), "--wait", "--wait-for-jobs", "--timeout", "6m", *arguments)
        # Helm waits for pods; a busy node's kube-proxy may lead the service to them later.
        seconds = self.namespace.wait(self._accepts, 60, "the gateway's service accepts connections", every_seconds=0.2)
        print(f"\nthe service accepts connections {seconds:.1f} s after helm install")
        return printed

    def _accepts(self) -> bool:
        try:
            socket.create_connection((self.address(), 80), timeout=5).close()
        except OSError:
            return False
        return True

    def upgrade(self, *arguments: str, chart: Path = CHART) -> str:
        """helm upgrade, until everything is ready."""
        return self.helm("upgrade", str(chart), "--wait", "--wait-for-jobs", "--timeout", "6m", *arguments)

    def secret(self, name: str) -> dict[str, bytes]:
        """What a Secret of the release holds."""
        found = self.namespace.get("secret", f"{self.name}-{name}")
        return {key: base64.b64decode(value) for key, value in found.get("data", {}).items()}

    @property
    def key(self) -> str:
        """The API key that the installation made."""
        return self.secret("api-key")["GENAIFACTORY_API_KEY"].decode()

    def address(self, service: str = "gateway") -> str:
        """The cluster's address of a service."""
        return str(self.namespace.get("service", f"{self.name}-{service}")["spec"]["clusterIP"])

    def ask(self, text: str = QUESTION, *, route: str = "rag", conversation: str | None = None) -> dict[str, Any]:
        """One question to the service that an ingress leads to; the answer's message as OpenAI's clients see it."""
        answer: dict[str, Any] = self.completion(text, route=route, conversation=conversation)["choices"][0]["message"]
        return answer

    def completion(self, text: str, *, route: str, conversation: str | None = None) -> dict[str, Any]:
        """As `ask`: the whole of what comes back."""
        body = {"model": route, "messages": [{"role": "user", "content": text}]}
        if conversation is not None:
            body["conversation_id"] = conversation
        response = httpx.post(
            f"http://{self.address()}/v1/chat/completions",
            json=body,
            headers={"authorization": f"Bearer {self.key}"},
            timeout=60,
            trust_env=False,
        )
        assert response.status_code == 200, response.text
        completion: dict[str, Any] = response.json()
        return completion

    def pods(self, component: str | None = None) -> dict[str, dict[str, Any]]:
        """Pods of a component, or of the six services, that are not ending, by name."""
        wanted = component or ",".join(SERVICES)
        selector = f"app.kubernetes.io/instance={self.name},{COMPONENT} in ({wanted})"
        return {
            pod["metadata"]["name"]: pod
            for pod in self.namespace.get("pods", "--selector", selector)
            if "deletionTimestamp" not in pod["metadata"]
        }

    def ready(self, component: str | None = None) -> bool:
        """Whether every pod is ready."""
        pods = self.pods(component)
        return bool(pods) and all(condition(pod["status"], "Ready") for pod in pods.values())

    def pods_by_service(self) -> dict[str, dict[str, dict[str, Any]]]:
        """`pods` of each of the six services, asked for at once."""
        found: dict[str, dict[str, dict[str, Any]]] = {service: {} for service in SERVICES}
        for name, pod in self.pods().items():
            found[pod["metadata"]["labels"][COMPONENT]][name] = pod
        return found

    def workloads(self, *services: str) -> list[dict[str, Any]]:
        """The Deployment or StatefulSet of each of the services, asked for at once."""
        found = self.namespace.get("deployments,statefulsets", "--selector", f"{COMPONENT} in ({','.join(services)})")
        named = {each["metadata"]["name"]: each for each in found}
        return [named[f"{self.name}-{service}"] for service in services]

    def names(self, *services: str) -> list[str]:
        """KIND/NAME of each service's workload."""
        return [f"{each['kind'].lower()}/{each['metadata']['name']}" for each in self.workloads(*services)]

    def shell(self) -> str:
        """Name of the tools' pod."""
        (pod,) = self.namespace.get(
            "pods", "--selector", "genaifactory.io/role=shell", "--field-selector", "status.phase=Running"
        )
        return str(pod["metadata"]["name"])

    def tools(self, *command: str, seconds: float = 120) -> str:
        """Runs a command in the tools' pod; its output."""
        return self.namespace.exec(self.shell(), *command, seconds=seconds)

    def records(self) -> list[dict[str, Any]]:
        """Every interaction on record, oldest first."""
        return [json.loads(line) for line in self.tools("genaifactory", "export").splitlines()]

    @contextmanager
    def load(self, **environment: str) -> Iterator[Load]:
        """A pod that asks without pause inside the block; it goes on until the block is left."""
        load = Load(self)
        load.start(environment)
        try:
            yield load
        finally:
            load.stop()


@dataclass(frozen=True)
class Load:
    """The clients of load.py, in a pod of their own."""

    release: Release

    def start(self, environment: dict[str, str]) -> None:
        """Returns when the first answers have come."""
        release, namespace = self.release, self.release.namespace
        tools = namespace.get("deployment", f"{release.name}-tools")["spec"]["template"]["spec"]
        # A client of the platform: the tools' image and files, none of their labels.
        (container,) = tools["containers"]
        container["command"] = ["python", "/load/load.py", release.name]
        container["volumeMounts"].append({"name": "load", "mountPath": "/load"})
        container["env"] += [{"name": name, "value": value} for name, value in environment.items()]
        volumes = [*tools["volumes"], {"name": "load", "configMap": {"name": "load"}}]
        pod = {
            **tools,
            "containers": [container],
            "volumes": volumes,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 90,
        }
        namespace.kubectl("delete", "pod/load", "configmap/load", "--ignore-not-found")
        namespace.apply(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "load"},
                "data": {"load.py": (HERE / "load.py").read_text()},
            },
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "load", "labels": {"app": "load"}}, "spec": pod},
        )
        namespace.wait(lambda: self.answered() > 20, 90, "load that is answered")

    def stop(self) -> None:
        """Lets the running questions end."""
        self.release.namespace.kubectl("exec", "load", "--", "python", "-c", "import os; os.kill(1, 15)")
        self.release.namespace.wait(
            lambda: bool(self.lines()) and "ended" in self.lines()[-1], 90, "the end of the load"
        )

    def lines(self) -> list[dict[str, Any]]:
        """What it has said."""
        text = self.release.namespace.kubectl("logs", "load", check=False)
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def answered(self) -> int:
        """Questions answered so far."""
        return max((line["answered"] for line in self.lines() if "answered" in line), default=0)

    def failures(self) -> list[dict[str, Any]]:
        """What failed so far."""
        return [line for line in self.lines() if "failure" in line]

    def summary(self) -> dict[str, Any]:
        """The last summary."""
        return next(line for line in reversed(self.lines()) if "answered" in line)

    def ids(self) -> list[str]:
        """Ids of the requests that were answered. While the pod runs."""
        return self.release.namespace.exec("load", "cat", "/tmp/answered").split()
