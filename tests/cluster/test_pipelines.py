"""The workflows on a real Argo: started by hand and by their schedule, killed at each step, judged, kept in bounds.

Needs Argo Workflows and the platform's images on the cluster (`make images`).
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.cluster.kube import Namespace
from tests.cluster.laptop.test_install import CONNECT
from tests.cluster.release import CHART, Release, helm

END_SECONDS = 180.0
CONVERSATIONS = 24
LONG = 60
QUESTIONS = (
    "How many days of annual leave do I have?",
    "Who approves annual leave?",
    "How long is the warranty of a gateway?",
    "How do I report a lost laptop?",
)
# A prompt that answers as the first one does, a gate that every candidate passes and one that none does.
FACTORY = {
    "gates": [
        {"name": "default", "rules": [{"metric": "failed", "at_most": 0}]},
        {"name": "impossible", "rules": [{"metric": "exact_match", "at_least": 1, "least_items": 2}]},
    ]
}
# Prints what the code of a step could do: whether it has the account's token, and what it may write.
INSIDE = """
import os, pathlib
print(os.getuid(), pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount").exists())
try:
    open("/opt/genaifactory/x", "w")
except OSError as error:
    print(error.strerror)
"""

# Ends the step's process, as the kernel does when memory runs out.
KILL = """
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

pytestmark = [pytest.mark.timeout(900), pytest.mark.allow_blocking]


class Workflows:
    """Runs of the workflows of a release."""

    def __init__(self, release: Release) -> None:
        self.release = release
        self.namespace = release.namespace

    def argo(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs the argo command line."""
        command = ("argo", *arguments, "--namespace", self.namespace.name)
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"argo {' '.join(arguments)}: {done.stderr.strip()}"
        return done

    def submit(self, workflow: str, name: str, **parameters: str) -> str:
        """Starts one; its name."""
        given = itertools.chain.from_iterable(("--parameter", f"{key}={value}") for key, value in parameters.items())
        self.argo("submit", "--from", f"workflowtemplate/{self.release.name}-{workflow}", "--name", name, *given)
        return name

    def status(self, name: str) -> dict[str, Any]:
        """Of a run."""
        found: dict[str, Any] = self.namespace.get("workflow", name).get("status", {})
        return found

    def nodes(self, name: str, kind: str = "Pod") -> list[dict[str, Any]]:
        """Its pods, those that failed as well."""
        nodes = self.status(name).get("nodes", {}).values()
        return [each for each in nodes if each["type"] == kind]

    def end(self, name: str, seconds: float = END_SECONDS) -> dict[str, Any]:
        """Waits for its end; its status."""
        self.namespace.wait(
            lambda: self.status(name).get("phase") in ("Succeeded", "Failed", "Error"), seconds, f"the end of {name}"
        )
        return self.status(name)

    def outputs(self, name: str) -> dict[str, str]:
        """What it returned."""
        found = self.status(name).get("outputs", {}).get("parameters", ())
        return {each["name"]: each["value"] for each in found}

    def read(self, path: str) -> str:
        """A file of the volume, as a person reads it."""
        return self.release.tools("cat", f"/pipelines/{path}")

    def messages(self, name: str) -> str:
        """What its nodes say."""
        return "\n".join(each.get("message", "") for each in self.status(name)["nodes"].values())


@pytest.fixture(scope="module")
def workflows(namespace: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Workflows:
    """The laptop profile with workflows, a golden set on their volume, and some questions on record."""
    if shutil.which("argo") is None:
        pytest.skip("argo is not installed: its command line starts the workflows")
    folder = tmp_path_factory.mktemp("pipelines")
    values = folder / "values.yaml"
    default = yaml.safe_load((CHART / "values.yaml").read_text())["factory"]
    prompts = [{**default["prompts"][0], "version": version} for version in (1, 2)]
    api = namespace.get(
        "endpointslices", "--namespace", "default", "--selector", "kubernetes.io/service-name=kubernetes"
    )
    addresses = [address for each in api for endpoint in each["endpoints"] for address in endpoint["addresses"]]
    values.write_text(
        yaml.safe_dump(
            {
                "factory": {**default, **FACTORY, "prompts": prompts},
                "pipelines": {
                    "enabled": True,
                    "kubernetesApi": {"to": [{"ipBlock": {"cidr": f"{address}/32"}} for address in addresses]},
                },
            }
        )
    )
    release = Release(namespace)
    release.install("--values", str(CHART / "profiles" / "laptop.yaml"), "--values", str(values))
    inputs = folder / "inputs"
    inputs.mkdir()
    # Long ones keep a step busy while it is killed, and while it is looked at.
    for name, items in (("golden", 5 * len(QUESTIONS)), ("long", LONG), ("longer", 10 * LONG)):
        lines = [
            {"id": str(number), "input": f"{QUESTIONS[number % len(QUESTIONS)]} ({number})", "output": "20 days"}
            for number in range(items)
        ]
        (inputs / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    namespace.copy(inputs, release.shell(), "/pipelines/inputs")
    return Workflows(release)


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def weeks(workflows: Workflows) -> dict[str, str]:
    """Two windows of the record: the same questions again and again, and others that no document answers."""
    release = workflows.release

    def ask(questions: Sequence[str]) -> tuple[str, str]:
        start = now()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(release.ask, list(questions) * (CONVERSATIONS // len(questions))))
        release.namespace.wait(lambda: recorded(release, start) >= CONVERSATIONS, 60, "the questions on record")
        return start.isoformat(), now().isoformat()

    before, until = ask(QUESTIONS)
    start, end = ask(["zzz qqq", "Xin chào", "qwx", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20"])
    return {"reference_since": before, "reference_until": until, "since": start, "until": end, "least": "20"}


def recorded(release: Release, since: datetime) -> int:
    return sum(datetime.fromisoformat(each["start_time"]) >= since for each in release.records())


def test_argo_finds_nothing_wrong_with_the_workflows(workflows: Workflows, tmp_path: Path) -> None:
    values = "pipelines.enabled=true,pipelines.schedules.drift-check.parameters.least=20"
    rendered = helm("template", "factory", str(CHART), "--set", values, "--show-only", "templates/workflows.yaml")
    (tmp_path / "workflows.yaml").write_text(rendered.stdout)
    kinds = "--kinds=workflowtemplates,cronworkflows"
    done = workflows.argo("lint", "--offline", kinds, str(tmp_path / "workflows.yaml"))
    assert "no linting errors found" in done.stdout


def test_a_candidate_is_evaluated_and_judged_and_its_reports_are_on_the_volume(workflows: Workflows) -> None:
    name = workflows.submit("evaluate", "passes", route="rag", prompt="rag@1")
    assert workflows.end(name)["phase"] == "Succeeded", workflows.messages(name)
    assert workflows.outputs(name)["passed"] == "true"
    assert json.loads(workflows.read(f"runs/{name}/gate/result.json"))["gate"] == "default"
    for step in ("evaluate", "gate"):
        assert "<html" in workflows.read(f"runs/{name}/{step}/report.html")
    # The name says which run it is: an operator that asks twice for one gets one.
    template = ("--from", "workflowtemplate/factory-evaluate", "--parameter", "route=rag")
    again = workflows.argo("submit", *template, "--name", name, check=False)
    assert "already exists" in again.stderr


def test_a_gate_that_is_not_passed_and_a_wrong_parameter_are_named_and_not_tried_again(workflows: Workflows) -> None:
    wrong = {
        "stopped": ({"prompt": "rag@1", "gate": "impossible"}, "The gate 'impossible' was not passed: exact_match"),
        "no-gate": ({"gate": "none"}, "There is no gate 'none' in factory.yaml; there are: default, impossible"),
        "no-file": ({"golden": "../runs/x"}, "'../runs/x' is no name of a file below the volume's folder 'inputs'"),
        "no-number": ({"at_once": "many"}, "Parameter at_once"),
    }
    for name, (parameters, _) in wrong.items():
        workflows.submit("evaluate", name, route="rag", **parameters)
    for name, (_, message) in wrong.items():
        assert workflows.end(name)["phase"] == "Failed"
        assert message in workflows.messages(name)
        assert max(each["displayName"].endswith("(0)") for each in workflows.nodes(name)), workflows.nodes(name)
    assert workflows.outputs("stopped") == {"passed": "false"}


def test_a_candidate_is_approved_refused_or_left_alone_by_a_person_and_that_is_on_record(workflows: Workflows) -> None:
    names = {name: f"approval-{name}" for name in ("approve", "refuse", "nobody")}
    for decision, name in names.items():
        seconds = "5" if decision == "nobody" else "600"
        workflows.submit("evaluate", name, route="rag", prompt="rag@1", approval="required", approval_seconds=seconds)
    for decision in ("approve", "refuse"):
        name = names[decision]

        def waits(name: str = name) -> bool:
            return any(each["phase"] == "Running" for each in workflows.nodes(name, "Suspend"))

        workflows.namespace.wait(waits, END_SECONDS, f"{name} waits for a decision")
        assert "decision" not in workflows.outputs(name)
        selector = ("--node-field-selector", "displayName=approve")
        supplied = ("--output-parameter", f"decision={decision}", "--output-parameter", "reason=seen by An")
        workflows.argo("node", "set", name, *supplied, *selector)
        workflows.argo("resume", name, *selector)
    ends = {decision: workflows.end(name)["phase"] for decision, name in names.items()}
    assert ends == {"approve": "Succeeded", "refuse": "Failed", "nobody": "Failed"}
    assert "It was refused: seen by An." in workflows.messages(names["refuse"])
    assert "Nobody has approved it in time." in workflows.messages(names["nobody"])
    for decision, name in names.items():
        kept = json.loads(workflows.read(f"runs/{name}/approval.json"))
        assert kept == {"decision": decision, "reason": "" if decision == "nobody" else "seen by An"}


def killed(workflows: Workflows, name: str, task: str, *, amid: str = "", process: bool = False) -> None:
    """Ends the first pod of a task: deletes it at once, or kills the step's process there.

    amid: a file of the run, with a line of which the pod is in the middle of its work.
    """
    namespace = workflows.namespace

    def pod() -> str:
        selector = f"workflows.argoproj.io/workflow={name}"
        running = namespace.get("pods", "--selector", selector, "--field-selector", "status.phase=Running")
        return next((each["metadata"]["name"] for each in running if f"-{task}-" in each["metadata"]["name"]), "")

    namespace.wait(lambda: bool(pod()), END_SECONDS, f"{task} of {name} runs", every_seconds=0.2)
    victim = pod()
    if amid:
        path = f"/pipelines/runs/{name}/{amid}"
        namespace.wait(
            lambda: bool(workflows.release.tools("sh", "-c", f"cat {path} 2>/dev/null || true")),
            60,
            path,
            every_seconds=0,
        )
    if process:

        def runs() -> bool:
            (found,) = namespace.get("pods", "--field-selector", f"metadata.name={victim}")
            states = {each["name"]: each["state"] for each in found["status"].get("containerStatuses", ())}
            return "running" in states.get("main", {})  # Argo's own container may run before it

        namespace.wait(runs, END_SECONDS, f"the step of {victim} runs", every_seconds=0.2)
        said = namespace.kubectl("exec", victim, "--container", "main", "--", "python", "-c", KILL)
        assert said == "killed", said
    else:
        namespace.kubectl("delete", "pod", victim, "--grace-period=0", "--force")


def test_pods_that_are_killed_at_each_step_come_back_and_go_on_with_one_result(
    workflows: Workflows, weeks: dict[str, str]
) -> None:
    release = workflows.release
    since = now()
    evaluated = workflows.submit("evaluate", "killed", route="rag", prompt="rag@1", golden="long.jsonl", at_once="1")
    checked = workflows.submit("drift-check", "killed-too", **weeks)

    def kill_of_drift() -> None:
        killed(workflows, checked, "reference")
        killed(workflows, checked, "current")
        killed(workflows, checked, "drift")

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(kill_of_drift)
        killed(workflows, evaluated, "evaluate", amid="evaluate/candidate.jsonl")
        killed(workflows, evaluated, "gate")
        other.result()
    for name in (evaluated, checked):
        assert workflows.end(name)["phase"] == "Succeeded", workflows.messages(name)
        attempts = {each["displayName"].rpartition("(")[0]: 0 for each in workflows.nodes(name)}
        for each in workflows.nodes(name):
            attempts[each["displayName"].rpartition("(")[0]] += 1
        print(f"\n{name}: {attempts}")
    answers = workflows.read(f"runs/{evaluated}/evaluate/candidate.jsonl").splitlines()
    assert len({json.loads(each)["item"] for each in answers}) == len(answers) == LONG
    asked = [each for each in release.records() if each.get("evaluation") == evaluated]
    print(f"asked {len(asked)} of {2 * LONG}, since {since:%H:%M:%S}")
    assert 2 * LONG <= len(asked) <= 2 * LONG + 4  # those that were on their way
    verdict = json.loads(workflows.read(f"runs/{checked}/drift/verdict.json"))
    assert verdict["drifted"] == (workflows.outputs(checked)["drifted"] == "true")
    assert workflows.outputs(checked)["report_id"]


def test_drift_is_checked_by_the_schedule_and_reported(workflows: Workflows, weeks: dict[str, str]) -> None:
    schedule = {"drift-check": {"schedule": "* * * * *", "parameters": {**weeks, "needed": 1, "of": 1}}}
    workflows.release.upgrade("--reuse-values", "--set-json", f"pipelines.schedules={json.dumps(schedule)}")
    selector = ("workflow", "--selector", "workflows.argoproj.io/cron-workflow=factory-drift-check")
    workflows.namespace.wait(lambda: bool(workflows.namespace.get(*selector)), 90, "a workflow by the schedule")
    workflows.argo("cron", "suspend", "factory-drift-check")
    name = workflows.namespace.get(*selector)[0]["metadata"]["name"]
    assert workflows.end(name)["phase"] == "Succeeded", workflows.messages(name)
    outputs = workflows.outputs(name)
    assert (outputs["outcome"], outputs["drifted"]) == ("alarm", "true")
    assert outputs["report_id"]
    assert "<html" in workflows.read(f"runs/{name}/drift/report.html")


def test_the_account_of_workflows_reports_results_and_may_do_nothing_else(workflows: Workflows) -> None:
    name = workflows.namespace.name
    account = f"system:serviceaccount:{name}:factory-pipelines"
    listed = workflows.namespace.kubectl("auth", "can-i", "--list", f"--as={account}", "--no-headers")
    allowed = {
        words[0]: words[-2:]
        for line in listed.splitlines()
        if (words := line.replace("[", " ").replace("]", " ").split()) and not line.startswith(" ")
    }
    own = {"workflowtaskresults.argoproj.io": ["create", "patch"]}
    # What every account may do: ask who it is and what it may do.
    everyones = {"selfsubjectreviews.authentication.k8s.io", "selfsubjectaccessreviews.authorization.k8s.io"}
    everyones.add("selfsubjectrulesreviews.authorization.k8s.io")
    assert {key: value for key, value in allowed.items() if key not in everyones} == own


def test_a_step_has_no_token_of_the_account_and_reaches_the_gateway_alone(workflows: Workflows) -> None:
    release, namespace = workflows.release, workflows.namespace
    workflows.submit("evaluate", "inside", route="rag", prompt="rag@1", golden="longer.jsonl", at_once="1")

    def running() -> list[str]:
        """Pods whose step runs: a pod runs before its step does."""
        return [
            pod["metadata"]["name"]
            for pod in namespace.get("pods", "--selector", "workflows.argoproj.io/workflow=inside")
            for container in pod["status"].get("containerStatuses", ())
            if container["name"] == "main" and "running" in container["state"]
        ]

    namespace.wait(lambda: bool(running()), END_SECONDS, "a step that runs", every_seconds=0.2)
    (pod,) = running()
    addresses = [
        (component, each["status"]["podIP"], 50051)
        for component, pods in release.pods_by_service().items()
        for each in pods.values()
    ]
    inside = ("exec", pod, "--container", "main", "--", "python", "-c")
    assert namespace.kubectl(*inside, INSIDE).splitlines() == ["65532 False", "Read-only file system"]
    assert json.loads(namespace.kubectl(*inside, CONNECT, json.dumps(addresses))) == ["gateway"]
    workflows.argo("terminate", "inside")
    assert workflows.end("inside")["phase"] == "Failed"


def test_the_key_of_workflows_may_do_what_their_steps_do(workflows: Workflows) -> None:
    key = workflows.release.secret("pipelines-key")["GENAIFACTORY_API_KEY"].decode()
    url = f"http://{workflows.release.address()}/v1/models"
    refused = httpx.get(url, headers={"authorization": f"Bearer {key}"}, timeout=30, trust_env=False)
    assert refused.status_code == 403, refused.text


def test_an_index_is_built_again_checked_and_served_and_goes_back_once(workflows: Workflows) -> None:
    def serving() -> dict[str, str]:
        found = json.loads(workflows.release.tools("genaifactory", "indexes", "list", "--json"))
        return {each["state"]: each["version"] for each in found if each["state"] in ("active", "previous")}

    before = serving()["active"]
    workflows.submit("reindex", "again")
    killed(workflows, "again", "reindex", process=True)
    assert workflows.end("again")["phase"] == "Succeeded", workflows.messages("again")
    made = workflows.outputs("again")
    assert (made["before"], made["passed"]) == (before, "true")
    assert serving() == {"active": made["version"], "previous": before}
    assert "<html" in workflows.read("runs/again/reindex/report.html")

    workflows.submit("rollback", "back")
    killed(workflows, "back", "rollback")
    assert workflows.end("back")["phase"] == "Succeeded", workflows.messages("back")
    assert workflows.outputs("back") == {"active": before, "before": made["version"]}
    assert serving() == {"active": before, "previous": made["version"]}
    assert workflows.release.ask()["annotations"]
