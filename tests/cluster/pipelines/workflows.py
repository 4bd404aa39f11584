"""Runs of the workflows of a release: started, looked at, killed."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx

from tests.cluster.kube import Namespace
from tests.cluster.release import Release

END_SECONDS = 180.0
_ENDED = ("Succeeded", "Failed", "Error")
_APPROVE = ("--node-field-selector", "displayName=approve")

# Ends the step's process, as the kernel does when memory runs out.
_KILL = """
import os, pathlib, signal, time
def commands():
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            yield int(process.name), (process / "cmdline").read_bytes()
        except OSError:
            pass  # it has ended
until = time.monotonic() + 20
while time.monotonic() < until:
    for process, command in commands():
        if b"\\0-m\\0genaifactory_pipelines.workflows\\0" in command and b"argoexec" not in command:
            os.kill(process, signal.SIGKILL)
            print("killed", end="")
            raise SystemExit
"""


class Workflows:
    """Runs of the workflows of a release."""

    def __init__(self, release: Release, api: httpx.Client) -> None:
        self.release = release
        self.api = api
        self.namespace: Namespace = release.namespace

    def argo(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs the argo command line."""
        command = ("argo", *arguments, "--namespace", self.namespace.name)
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"argo {' '.join(arguments)}: {done.stderr.strip()}"
        return done

    def submit(self, workflow: str, name: str, *, kind: str = "workflowtemplate", **parameters: str) -> str:
        """Starts one; its name. kind: cronwf: with the parameters of its schedule."""
        given = itertools.chain.from_iterable(("--parameter", f"{key}={value}") for key, value in parameters.items())
        self.argo("submit", "--from", f"{kind}/{self.release.name}-{workflow}", "--name", name, *given)
        return name

    def status(self, name: str) -> dict[str, Any]:
        """Of a run."""
        found: dict[str, Any] = self.namespace.get("workflow", name).get("status", {})
        return found

    def nodes(self, name: str, kind: str = "Pod") -> list[dict[str, Any]]:
        """Its pods, those that failed as well."""
        nodes = self.status(name).get("nodes", {}).values()
        return [each for each in nodes if each["type"] == kind]

    def pods(self, name: str, task: str) -> list[dict[str, Any]]:
        """The pods of a task that there are: Argo may give the one after a deleted one the same name."""
        path = f"/api/v1/namespaces/{self.namespace.name}/pods"
        found = self.api.get(path, params={"labelSelector": f"workflows.argoproj.io/workflow={name}"})
        return [each for each in found.raise_for_status().json()["items"] if f"-{task}-" in each["metadata"]["name"]]

    def end(self, name: str, seconds: float = END_SECONDS) -> dict[str, Any]:
        """Waits for its end; its status."""
        self.namespace.wait(lambda: self.status(name).get("phase") in _ENDED, seconds, f"the end of {name}")
        return self.status(name)

    def outputs(self, name: str) -> dict[str, str]:
        """What it returned."""
        found = self.status(name).get("outputs", {}).get("parameters", ())
        return {each["name"]: each["value"] for each in found}

    def read(self, path: str) -> str:
        """A file of the volume, as a person reads it."""
        return self.release.tools("cat", f"/pipelines/{path}")

    def result(self, name: str, step: str) -> dict[str, Any]:
        """What a step of a run returned."""
        found: dict[str, Any] = json.loads(self.read(f"runs/{name}/{step}/result.json"))
        return found

    def messages(self, name: str) -> str:
        """What its nodes say."""
        return "\n".join(each.get("message", "") for each in self.status(name)["nodes"].values())

    def waits(self, name: str) -> bool:
        """Whether it waits for a person's decision."""
        return any(each["phase"] == "Running" for each in self.nodes(name, "Suspend"))

    def decide(self, name: str, decision: str, reason: str) -> None:
        """Once it waits for that, as a person does it."""
        self.namespace.wait(lambda: self.waits(name), END_SECONDS, f"{name} waits for a decision")
        supplied = ("--output-parameter", f"decision={decision}", "--output-parameter", f"reason={reason}")
        self.argo("node", "set", name, *supplied, *_APPROVE)
        self.argo("resume", name, *_APPROVE)

    def ask_again(self, name: str, **parameters: str) -> None:
        """Retries a run that was not approved from its approval on."""
        given = itertools.chain.from_iterable(("--parameter", f"{key}={value}") for key, value in parameters.items())
        self.argo("retry", name, "--restart-successful", *_APPROVE, *given)

    def kill(self, name: str, task: str, *, amid: str = "", process: bool = False) -> str:
        """Ends the first pod of a task: deletes it as its step runs, or kills the step's process there; the pod's uid.

        amid: files of the run, by a pattern; once one of them has content, the step is in the middle of its work.
        """
        victim: dict[str, Any] = {}

        def runs() -> bool:
            for each in self.pods(name, task):
                assert each["status"].get("phase") != "Succeeded", f"{task} of {name} has ended before it was killed"
                states = {one["name"]: one["state"] for one in each["status"].get("containerStatuses", ())}
                if "running" in states.get("main", {}):  # Argo's own container may run before it
                    victim.update(each["metadata"])
            return bool(victim)

        self.namespace.wait(runs, END_SECONDS, f"{task} of {name} runs", every_seconds=0.05)
        if amid:
            look = f'for file in /pipelines/runs/{name}/{amid}; do test -s "$file" && echo "$file"; done; true'
            self.namespace.wait(lambda: bool(self.release.tools("sh", "-c", look)), 90, amid, every_seconds=0)
        if process:
            command = ("exec", victim["name"], "--container", "main", "--", "python", "-c", _KILL)
            said = self.namespace.kubectl(*command)
            assert said == "killed", said
        else:
            path = f"/api/v1/namespaces/{self.namespace.name}/pods/{victim['name']}"
            self.api.delete(path, params={"gracePeriodSeconds": 0}).raise_for_status()
        return str(victim["uid"])


@contextmanager
def proxied() -> Iterator[httpx.Client]:
    """The API of the cluster, through `kubectl proxy`: a step of a second has ended before kubectl has started."""
    with subprocess.Popen(("kubectl", "proxy", "--port=0"), stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout is not None
        address = proxy.stdout.readline().split()[-1]
        try:
            with httpx.Client(base_url=f"http://{address}", timeout=30, trust_env=False) as client:
                yield client
        finally:
            proxy.terminate()


def now() -> datetime:
    """The time."""
    return datetime.now(UTC)
