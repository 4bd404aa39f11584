"""Runs of the workflows of a release: started, looked at, killed."""

from __future__ import annotations

import itertools
import json
import subprocess
from datetime import UTC, datetime
from typing import Any

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

    def __init__(self, release: Release) -> None:
        self.release = release
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

    def attempts(self, name: str) -> dict[str, int]:
        """How many pods each task of a run has had."""
        found: dict[str, int] = {}
        for each in self.nodes(name):
            task = each["displayName"].rpartition("(")[0].removeprefix(f"{name}.")
            found[task] = found.get(task, 0) + 1
        return found

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

    def kill(self, name: str, task: str, *, amid: str = "", process: bool = False) -> None:
        """Ends the first pod of a task: deletes it as it runs, or kills the step's process there.

        amid: files of the run, by a pattern; once one of them has content, the pod is in the middle of its work.
        """
        namespace = self.namespace

        def pod() -> str:
            selector = f"workflows.argoproj.io/workflow={name}"
            running = namespace.get("pods", "--selector", selector, "--field-selector", "status.phase=Running")
            return next((each["metadata"]["name"] for each in running if f"-{task}-" in each["metadata"]["name"]), "")

        namespace.wait(lambda: bool(pod()), END_SECONDS, f"{task} of {name} runs", every_seconds=0.2)
        victim = pod()
        if amid:
            look = f'for file in /pipelines/runs/{name}/{amid}; do test -s "$file" && echo "$file"; done; true'
            namespace.wait(lambda: bool(self.release.tools("sh", "-c", look)), 90, amid, every_seconds=0)
        if process:

            def runs() -> bool:
                (found,) = namespace.get("pods", "--field-selector", f"metadata.name={victim}")
                states = {each["name"]: each["state"] for each in found["status"].get("containerStatuses", ())}
                return "running" in states.get("main", {})  # Argo's own container may run before it

            namespace.wait(runs, END_SECONDS, f"the step of {victim} runs", every_seconds=0.2)
            said = namespace.kubectl("exec", victim, "--container", "main", "--", "python", "-c", _KILL)
            assert said == "killed", said
        else:
            namespace.kubectl("delete", "pod", victim, "--grace-period=0", "--force")


def now() -> datetime:
    """The time."""
    return datetime.now(UTC)
