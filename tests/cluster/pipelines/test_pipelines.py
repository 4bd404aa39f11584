"""The workflows on a real Argo: started by hand and by their schedule, killed, judged, approved, kept in bounds.

Needs Argo Workflows and the platform's images on the cluster (`make images`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from tests.cluster.laptop.test_install import CONNECT
from tests.cluster.pipelines.conftest import QUESTIONS
from tests.cluster.pipelines.workflows import END_SECONDS, Workflows, now
from tests.cluster.release import CHART, Release, helm

CONVERSATIONS = 24
# Prints what the code of a step could do: whether it has the account's token, and what it may write.
INSIDE = """
import os, pathlib
print(os.getuid(), pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount").exists())
try:
    open("/opt/genaifactory/x", "w")
except OSError as error:
    print(error.strerror)
"""


pytestmark = [pytest.mark.timeout(900), pytest.mark.allow_blocking]


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
    window = {"reference_since": before, "reference_until": until, "since": start, "until": end}
    return {**window, "least": "20", "route": "rag"}


def recorded(release: Release, since: datetime) -> int:
    return sum(
        each["route"] == "rag" and datetime.fromisoformat(each["start_time"]) >= since for each in release.records()
    )


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
        workflows.decide(names[decision], decision, "seen by An")
    ends = {decision: workflows.end(name)["phase"] for decision, name in names.items()}
    assert ends == {"approve": "Succeeded", "refuse": "Failed", "nobody": "Failed"}
    assert "It was refused: seen by An." in workflows.messages(names["refuse"])
    assert "Nobody has approved it in time." in workflows.messages(names["nobody"])
    for decision, name in names.items():
        kept = json.loads(workflows.read(f"runs/{name}/approval.json"))
        assert kept == {"decision": decision, "reason": "" if decision == "nobody" else "seen by An"}


def test_a_check_whose_pods_are_killed_comes_to_one_verdict(workflows: Workflows, weeks: dict[str, str]) -> None:
    name = workflows.submit("drift-check", "killed", **weeks)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda task: workflows.kill(name, task), ("reference", "current")))
    workflows.kill(name, "drift")
    assert workflows.end(name)["phase"] == "Succeeded", workflows.messages(name)
    verdict = json.loads(workflows.read(f"runs/{name}/drift/verdict.json"))
    assert verdict["drifted"] == (workflows.outputs(name)["drifted"] == "true")
    assert workflows.outputs(name)["report_id"]


def test_drift_is_checked_by_the_schedule_and_reported(workflows: Workflows, weeks: dict[str, str]) -> None:
    schedule = {"schedule": "* * * * *", "parameters": {**weeks, "needed": 1, "of": 1}}
    workflows.release.upgrade("--reuse-values", "--set-json", f"pipelines.schedules.drift-check={json.dumps(schedule)}")
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
    workflows.kill("again", "reindex", process=True)
    assert workflows.end("again")["phase"] == "Succeeded", workflows.messages("again")
    made = workflows.outputs("again")
    assert (made["before"], made["passed"]) == (before, "true")
    assert serving() == {"active": made["version"], "previous": before}
    assert "<html" in workflows.read("runs/again/reindex/report.html")

    workflows.submit("rollback", "back")
    workflows.kill("back", "rollback")
    assert workflows.end("back")["phase"] == "Succeeded", workflows.messages("back")
    assert workflows.outputs("back") == {"active": before, "before": made["version"]}
    assert serving() == {"active": before, "previous": made["version"]}
    assert workflows.release.ask()["annotations"]


def test_the_folder_of_an_old_run_is_removed_and_those_of_others_stay(workflows: Workflows) -> None:
    folder = "/pipelines/runs/ancient"
    made = f"mkdir -p {folder}/gate && touch -d '40 days ago' {folder}/gate {folder}"
    workflows.release.tools("sh", "-c", made)
    before = workflows.release.tools("ls", "/pipelines/runs", "/pipelines/inputs").split()
    workflows.submit("tidy", "tidied", keep_days="30")
    assert workflows.end("tidied")["phase"] == "Succeeded", workflows.messages("tidied")
    assert workflows.outputs("tidied") == {"removed": "1", "kept": "0"}
    after = workflows.release.tools("ls", "/pipelines/runs", "/pipelines/inputs").split()
    assert set(before) - set(after) == {"ancient"}
