"""What tests ask a cluster, through kubectl."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import node
from tests.full import FULL

REFRESH_SECONDS = 4.0


@dataclass(frozen=True)
class Namespace:
    """Objects of one namespace. Every method blocks."""

    name: str

    def kubectl(self, *arguments: str, text: str | None = None, seconds: float = 120, check: bool = True) -> str:
        """Runs kubectl; its output. Fails with what it says, unless `check` is off."""
        done = self._run(*arguments, text=text, seconds=seconds)
        assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr.strip()}"
        return done.stdout

    def _run(self, *arguments: str, text: str | None = None, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        command = ("kubectl", "--namespace", self.name, *arguments)
        return subprocess.run(command, check=False, input=text, capture_output=True, text=True, timeout=seconds)

    def apply(self, *objects: dict[str, Any]) -> None:
        """Makes or changes objects."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        self.kubectl("apply", "--filename", "-", text=text)

    def get(self, *what: str) -> Any:
        """An object, or with a selector a list of them."""
        found = json.loads(self.kubectl("get", *what, "--output", "json"))
        return found["items"] if found["kind"] == "List" else found

    def exec(self, pod: str, *command: str, seconds: float = 120) -> str:
        """What a command in the pod prints."""
        return self.kubectl("exec", pod, "--", *command, seconds=seconds)

    def copy(self, folder: Path, pod: str, target: str) -> None:
        """A folder into a pod."""
        self.kubectl("cp", str(folder), f"{pod}:{target}")

    def wait(self, what: Callable[[], bool], seconds: float, until: str, *, every_seconds: float = 1.0) -> float:
        """Returns when `what` holds, after how many seconds; fails with the state of the namespace."""
        started = time.monotonic()
        while not what():
            if time.monotonic() - started > seconds:
                raise AssertionError(f"not {until} after {seconds:.0f} s\n{self.state()}")
            time.sleep(every_seconds)
        return time.monotonic() - started

    @contextmanager
    def refreshed(self) -> Iterator[None]:
        """Inside the block, a changed ConfigMap or Secret appears in the pods that mount it within seconds.

        A change of a pod makes its kubelet write the mounted files anew; left alone, it does so every 60 to 90 s. With
        FULL=1 it is left alone.
        """
        stop = threading.Event()

        def touch() -> None:
            while not stop.wait(REFRESH_SECONDS):
                mark = f"genaifactory.io/refreshed={time.monotonic_ns()}"
                self.kubectl("annotate", "pods", "--all", "--overwrite", mark, check=False)

        thread = threading.Thread(target=touch, daemon=True)
        if not FULL:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            if thread.is_alive():
                thread.join()

    def state(self) -> str:
        """Pods, the latest events and ends of logs, for a person."""
        parts = [
            self.kubectl("get", "deployments,statefulsets,jobs,pods", "--output", "wide"),
            "\n".join(self.kubectl("get", "events", "--sort-by", ".lastTimestamp").splitlines()[-20:]),
        ]
        for pod in self.get("pods"):
            logs = self._run("logs", pod["metadata"]["name"], "--tail", "20")
            parts.append(f"--- {pod['metadata']['name']}\n{logs.stdout}{logs.stderr}")
        return "\n".join(parts)


@contextmanager
def new_namespace(name: str) -> Iterator[Namespace]:
    """One that admits only restricted pods; removed at the end. Skips the test where there is no cluster."""
    if "KUBECONFIG" not in os.environ:
        pytest.skip("KUBECONFIG is not set: these tests need a Kubernetes cluster with KServe in Standard mode")
    found = Namespace(f"{name}-{uuid.uuid4().hex[:6]}")
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    with node.used():
        found.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": found.name, "labels": restricted}})
        yield found
        found.kubectl("delete", "namespace", found.name, "--wait=false")


def condition(status: dict[str, Any], kind: str) -> bool:
    """Whether a condition in an object's status is true."""
    return any(each["type"] == kind and each["status"] == "True" for each in status.get("conditions", ()))
