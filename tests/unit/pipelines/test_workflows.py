"""Workflows without a cluster: what a pod does with Argo's parameters, how it ends, and what Argo is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from pydantic import ValidationError
from rich.console import Console

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_common.errors import FactoryError, InvalidArgument, NotFound, Overloaded, RateLimited, Unavailable
from genaifactory_common.specs.routes import Prompt
from genaifactory_pipelines import exits
from genaifactory_pipelines import retrain as dag
from genaifactory_pipelines.evaluation.scoring import Metric
from genaifactory_pipelines.gateway import Gateway, Patience
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.step import ATTEMPT, RESULT, Attempt, Context, digest
from genaifactory_pipelines.steps import evaluate as evaluating
from genaifactory_pipelines.steps import train
from genaifactory_pipelines.values import Values
from genaifactory_pipelines.workflows import __main__ as pod
from genaifactory_pipelines.workflows import approvals, manifests
from genaifactory_pipelines.workflows.drift_check import Parameters as OfDrift
from genaifactory_pipelines.workflows.evaluate import Parameters as OfEvaluation
from genaifactory_pipelines.workflows.protocol import Approval, Decision, Surroundings, Workflow
from genaifactory_pipelines.workflows.registry import WORKFLOWS
from genaifactory_pipelines.workflows.retrain import Parameters as OfRetrain

pytestmark = pytest.mark.allow_blocking  # a pod runs one task, and nothing waits for its loop

CREATED = datetime(2026, 11, 21, 12, tzinfo=UTC)
FACTORY = """
version: 1
tenants: [{name: acme}]
roles: [{name: user, permissions: [chat]}]
models: [{name: m, backend: {type: modelserver, model: extractive}}]
routes: [{name: chat, task: chat, models: [m]}]
policies: [{name: default}]
gates:
  - {name: easy, rules: [{metric: failed, at_most: 0, least_items: 2}]}
  - {name: hard, rules: [{metric: failed, at_most: -1, least_items: 2}]}
"""


def argo(**parameters: str) -> str:
    """Parameters as Argo writes them."""
    return json.dumps([{"name": name, "value": value, "description": "…"} for name, value in parameters.items()])


def objects() -> dict[str, dict[str, Any]]:
    return {name: yaml.safe_load(text) for name, text in manifests.files().items()}


@pytest.fixture
def around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Surroundings:
    """The volume of workflows, and a run on it that was evaluated."""
    factory = tmp_path / "factory.yaml"
    factory.write_text(FACTORY)
    monkeypatch.setenv("GENAIFACTORY_FACTORY_FILE", str(factory))
    found = Surroundings("november", CREATED, tmp_path, factory)
    folder = found.run / evaluating.evaluate.name
    folder.mkdir(parents=True)
    metric = Metric(better="lower", items=2, candidate=0.0)
    outputs = evaluating.Outputs(items=2, metrics={"failed": metric})
    (folder / RESULT).write_text(outputs.model_dump_json())
    lines = [{"item": item, "slices": {}, "candidate": {"failed": 0.0}, "production": None} for item in "ab"]
    (folder / evaluating.SCORES).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return found


def run(
    around: Surroundings, workflow: str, task: str, decision: str = "", reason: str = "", **parameters: str
) -> tuple[int, str, dict[str, str]]:
    """Runs a task as its pod does; its exit status, its message and its outputs."""
    message, folder = around.volume / "message", around.volume / "outputs"
    message.touch()
    surroundings = ("--name", around.name, "--created", "2026-11-21T12:00:00Z", "--volume", str(around.volume))
    files = ("--outputs", str(folder), "--message", str(message), "--decision", decision, "--reason", reason)
    status = 0
    try:
        pod.main((workflow, task, *surroundings, "--parameters", argo(**parameters), *files))
    except SystemExit as ended:
        status = int(str(ended.code))
    outputs = {file.name: file.read_text() for file in folder.iterdir()} if folder.exists() else {}
    return status, message.read_text(), outputs


def test_a_task_runs_its_step_with_the_parameters_of_argo(around: Surroundings) -> None:
    assert run(around, "evaluate", "gate", route="chat", gate="easy") == (0, "", {"passed": "true"})
    assert json.loads((around.run / "gate" / RESULT).read_text())["gate"] == "easy"


def test_the_evaluation_of_a_prompt_knows_all_that_the_prompt_is(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = Prompt(name="rag", version=2, system="Answer.", refusal={"en": "I do not know."})
    around.factory_file.write_text(f"{FACTORY}\nprompts: [{prompt.model_dump_json()}]\n")
    golden = around.volume / "inputs" / "golden.jsonl"
    golden.parent.mkdir()
    golden.write_text("".join(f'{{"input": "{each}?", "output": "Yes."}}\n' for each in "ab"))
    shutil.rmtree(around.run / "evaluate")
    asked: list[evaluating.Parameters] = []

    async def work(parameters: evaluating.Parameters, *rest: Any) -> evaluating.Outputs:
        asked.append(parameters)
        return evaluating.Outputs(items=2, metrics={})

    monkeypatch.setattr(evaluating, "evaluate", replace(evaluating.evaluate, work=work))
    for given in ({"prompt": "rag@2"}, {}):
        assert run(around, "evaluate", "evaluate", route="chat", gate="easy", **given)[:2] == (0, "")
    assert [each.prompt_sha256 for each in asked] == [evaluating.digest_of(prompt), ""]


def test_a_gate_that_was_not_passed_fails_the_workflow_with_its_rules(around: Surroundings) -> None:
    status, message, outputs = run(around, "evaluate", "gate", route="chat", gate="hard")
    assert (status, outputs) == (exits.NOT_PASSED, {"passed": "false"})
    assert message == "The gate 'hard' was not passed: failed at_most -1."


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "route: "),
        ({"route": "chat", "at_once": "many"}, "at_once: "),
        ({"route": "chat", "rout": "x"}, "rout: "),
        ({"route": "chat", "gate": "none"}, "There is no gate 'none' in factory.yaml; there are: easy, hard."),
    ],
)
def test_a_wrong_parameter_is_named_and_the_pod_is_not_tried_again(
    around: Surroundings, parameters: dict[str, str], message: str
) -> None:
    status, said, outputs = run(around, "evaluate", "evaluate", **parameters)
    assert (status, outputs) == (exits.FAILED, {})
    assert message in said


def test_a_golden_set_too_small_for_the_gate_is_refused_before_it_is_asked(around: Surroundings) -> None:
    golden = around.input("golden.jsonl", "golden")
    golden.parent.mkdir()
    golden.write_text('{"input": "Where is it?", "output": "In Hue."}\n')
    status, said, _ = run(around, "evaluate", "evaluate", route="chat", gate="easy")
    assert status == exits.FAILED
    assert "golden.jsonl has 1 questions, and 2 are needed for the rule 'failed at_most 0' of the gate 'easy'" in said


@pytest.mark.parametrize("name", ["../runs/x", "/etc/passwd", "a/../../b", "", ".hidden", "a//b", "a/" * 9 + "b"])
def test_an_input_is_a_file_below_its_folder(around: Surroundings, name: str) -> None:
    with pytest.raises(InvalidArgument, match="inputs"):
        around.input(name, "golden")


def test_an_input_may_be_in_a_folder_of_inputs(around: Surroundings) -> None:
    assert around.input("vi/golden.jsonl", "golden") == around.volume / "inputs" / "vi" / "golden.jsonl"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Unavailable("x"), exits.TRANSIENT),
        (Overloaded("x"), exits.TRANSIENT),
        (RateLimited("x"), exits.TRANSIENT),
        (InvalidArgument("x"), exits.FAILED),
        (NotFound("x"), exits.FAILED),
    ],
)
def test_only_an_error_that_passes_is_tried_again(error: FactoryError, status: int) -> None:
    assert exits.of(error) == status
    expressions = {
        template["retryStrategy"]["expression"]
        for each in objects().values()
        for template in each["spec"].get("templates", ())
        if "container" in template
    }
    (expression,) = expressions
    again = yaml.safe_load(expression.rpartition(" in ")[2])
    assert (status in again) == (status == exits.TRANSIENT)
    assert exits.NOT_PASSED not in again


def test_texts_of_argo_become_values_of_their_types() -> None:
    found = pod.parsed(OfDrift, argo(least="20", false_discovery_rate="0.05", route="chat"))
    assert isinstance(found, OfDrift)
    assert (found.least, found.false_discovery_rate, found.route, found.of) == (20, 0.05, "chat", 3)
    with pytest.raises(InvalidArgument, match="Argo's JSON"):
        pod.parsed(OfEvaluation, "{}x")


@pytest.mark.parametrize("workflow", WORKFLOWS.values(), ids=WORKFLOWS)
def test_a_workflow_has_titles_bounds_and_a_description_of_each_parameter(workflow: Workflow[Any]) -> None:
    found = objects()[f"{workflow.name}.yaml"]
    annotations = found["metadata"]["annotations"]
    assert annotations["workflows.argoproj.io/title"]
    assert annotations["workflows.argoproj.io/description"]
    spec = found["spec"]
    assert {"activeDeadlineSeconds", "podGC", "ttlStrategy", "parallelism"} <= spec.keys()
    assert [each["name"] for each in spec["arguments"]["parameters"]] == list(workflow.parameters.model_fields)
    assert all(each["description"] for each in spec["arguments"]["parameters"])
    required = {each["name"] for each in spec["arguments"]["parameters"] if "value" not in each}
    assert required == {name for name, field in workflow.parameters.model_fields.items() if field.is_required()}
    for template in spec["templates"]:
        if "container" in template:
            assert {"activeDeadlineSeconds", "retryStrategy"} <= template.keys()


@pytest.mark.parametrize("workflow", WORKFLOWS.values(), ids=WORKFLOWS)
def test_tasks_need_tasks_that_there_are_and_name_outputs_that_their_steps_have(workflow: Workflow[Any]) -> None:
    before: set[str] = set()
    for task in workflow.tasks:
        assert set(task.needs) <= before
        before.add(task.name)
    assert len(before) == len(workflow.tasks)
    for each in (each for each in workflow.tasks if isinstance(each, Approval)):
        assert each.seconds_parameter in workflow.parameters.model_fields
    assert set(workflow.alone_by or ()) <= workflow.parameters.model_fields.keys()


@pytest.mark.parametrize("name", ["evaluate", "retrain"])
def test_a_workflow_has_time_for_the_longest_pause_and_an_attempt_of_each_task(name: str) -> None:
    workflow = WORKFLOWS[name]
    attempts = sum(each.deadline_seconds for each in workflow.tasks if not isinstance(each, Approval))
    assert workflow.deadline_seconds >= approvals.LONGEST_SECONDS + attempts
    given = {"route": "chat", "base": "/models/x", "approval_seconds": approvals.LONGEST_SECONDS}
    given = {name: value for name, value in given.items() if name in workflow.parameters.model_fields}
    workflow.parameters.model_validate(given)
    with pytest.raises(ValidationError, match="less than or equal to"):
        workflow.parameters.model_validate({**given, "approval_seconds": approvals.LONGEST_SECONDS + 1})
    assert {each.name for each in WORKFLOWS.values() if any(isinstance(one, Approval) for one in each.tasks)} == {
        "evaluate",
        "retrain",
    }


@pytest.mark.parametrize(
    ("decision", "status", "message"),
    [
        (("approve", "good"), 0, ""),
        (("refuse", "slow"), exits.NOT_PASSED, "It was refused: slow."),
        (("refuse", ""), exits.NOT_PASSED, "It was refused: no reason was given."),
        (("nobody", ""), exits.NOT_PASSED, "Nobody has approved it in time."),
        (("aprove", ""), exits.NOT_PASSED, "It was refused: no reason was given."),
    ],
)
def test_only_an_approval_lets_a_candidate_pass_and_what_was_decided_is_kept(
    around: Surroundings, decision: tuple[str, str], status: int, message: str
) -> None:
    ended = run(around, "evaluate", "decide", *decision, route="chat", approval="required")
    assert ended == (status, message, {"decision": decision[0], "reason": decision[1]})
    kept = json.loads((around.run / approvals.FILE).read_text())
    assert kept == {"decision": decision[0], "reason": decision[1]}


@pytest.mark.parametrize("reason", ["- it is better", "--help", "-1", "a=b --decision=refuse"])
@pytest.mark.parametrize(("workflow", "more"), [("evaluate", {}), ("retrain", {"base": "/models/x"})])
def test_a_reason_is_kept_as_it_was_written_whatever_it_begins_with(
    trained: Surroundings, workflow: str, more: dict[str, str], reason: str
) -> None:
    (template,) = (each for each in objects()[f"{workflow}.yaml"]["spec"]["templates"] if each["name"] == "decide")
    values = {
        "{{workflow.name}}": trained.name,
        "{{workflow.creationTimestamp}}": "2026-11-21T12:00:00Z",
        "{{workflow.parameters}}": argo(route="chat", approval="required", **more),
        "{{inputs.parameters.approve-decision}}": "refuse",
        "{{inputs.parameters.approve-reason}}": reason,
        manifests.VOLUME: str(trained.volume),
        manifests.OUTPUTS: str(trained.volume / "outputs"),
        "/dev/termination-log": str(trained.volume / "message"),
    }
    arguments = []
    for word in template["container"]["args"]:
        for name, value in values.items():
            if name in word:
                word = word.replace(name, value)
                break
        arguments.append(word)
    with pytest.raises(SystemExit) as ended:
        pod.main(arguments)
    assert ended.value.code == exits.NOT_PASSED
    kept = json.loads((trained.run / approvals.FILE).read_text())
    assert kept == {"decision": "refuse", "reason": reason}


def test_where_no_approval_is_required_none_is_waited_for(around: Surroundings) -> None:
    assert run(around, "evaluate", "decide", "nobody", "", route="chat", approval="none")[0] == 0
    duration = next(
        each["suspend"]["duration"] for each in objects()["evaluate.yaml"]["spec"]["templates"] if "suspend" in each
    )
    assert duration == ("{{=workflow.parameters.approval == 'required' ? workflow.parameters.approval_seconds : '0'}}")


def test_the_parameters_of_retrain_are_those_of_the_dag() -> None:
    own = {"approval", "approval_seconds"}
    required = {name for name, field in dag.Parameters.model_fields.items() if field.is_required()}
    assert required <= OfRetrain.model_fields.keys()
    assert OfRetrain.model_fields.keys() - own <= dag.Parameters.model_fields.keys()
    for name, field in OfRetrain.model_fields.items():
        known = dag.Parameters.model_fields.get(name)
        if known is not None and name not in ("base", "training"):
            assert field.description == known.description


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"training": "{seed: 1}"}, "'training' must be a JSON object"),
        ({"training": '{"sead": 1}'}, "training.sead"),
        ({"route": "none"}, "There is no route 'none' in factory.yaml"),
        ({"learn_from": "chat, none"}, "There is no route 'none' in factory.yaml"),
        ({}, "No engine of factory.yaml serves '/models/x' and accepts adapters"),
    ],
)
def test_retrain_is_refused_before_anything_runs(
    around: Surroundings, parameters: dict[str, str], message: str
) -> None:
    status, said, _ = run(around, "retrain", "plan", **{"route": "chat", "base": "/models/x", **parameters})
    assert status == exits.FAILED
    assert message in said


class Serving:
    """A gateway whose model server has adapters, and what was asked of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.loaded: set[str] = set()

    async def load_adapter(self, request: gateway_pb2.LoadAdapterRequest) -> int:
        """See Gateway."""
        self.calls.append("load")
        self.loaded.add(request.name)
        return 1

    async def unload_adapter(self, name: str) -> int:
        """See Gateway."""
        self.calls.append("unload")
        self.loaded.remove(name)
        return 1

    async def chat(self, request: gateway_pb2.ChatRequest) -> AsyncGenerator[gateway_pb2.ChatResponse, None]:
        """See Gateway."""
        self.calls.append("chat")
        adapter = request.evaluation.adapter
        if adapter and adapter not in self.loaded:
            raise NotFound(f"There is no adapter '{adapter}'.")
        yield gateway_pb2.ChatResponse(request_id="r", delta="In Hue.")

    async def recorded(self, request_ids: Sequence[str]) -> dict[str, monitor_pb2.Interaction]:
        """See Gateway."""
        return {request_id: monitor_pb2.Interaction() for request_id in request_ids}

    def patience(self) -> Patience:
        """See Gateway."""
        return Patience(0)


@pytest.fixture
def trained(around: Surroundings) -> Surroundings:
    """A run of retrain whose adapter was trained."""
    shutil.rmtree(around.run)
    around.factory_file.write_text(
        f"""{FACTORY}
engines: [{{type: vllm, model: extractive, source: /models/x, adapters: {{max_rank: 16}}}}]
"""
    )
    golden = around.input("golden.jsonl", "golden")
    golden.parent.mkdir()
    golden.write_text(
        '{"input": "Where is it?", "output": "In Hue."}\n{"input": "And the other?", "output": "In Hue."}\n'
    )
    attempt = Attempt(step="curate", version="", parameters={}, files={"golden": digest(golden)}, needs={})
    outputs = train.Outputs(base_model="extractive", data_version="sha256:1", sha256="5eed" * 16, stages={})
    for step, name, content in (("curate", ATTEMPT, attempt), ("train", RESULT, outputs)):
        (around.run / step).mkdir(parents=True)
        (around.run / step / name).write_text(content.model_dump_json())
    return around


async def test_a_retry_of_a_failed_run_loads_the_candidate_again(trained: Surroundings) -> None:
    given = OfRetrain(route="chat", base="/models/x", gate="easy")
    retrain, serving = WORKFLOWS["retrain"], Serving()
    context = Context(trained.run, cast(Gateway, serving), Progress(Console(file=StringIO())))

    async def done(task: str, **changes: Any) -> Values:
        found = retrain.task(task)
        assert found is not None
        return await found.work(given, replace(trained, **changes), context)

    await done("plan")
    await done("load")
    candidate = set(serving.loaded)
    assert len(candidate) == 1
    for task in ("evaluate", "gate"):
        await done("finish", status="Failed")
        assert not serving.loaded
        serving.calls.clear()
        await done(task)  # Argo leaves out `load`, which succeeded
        assert (serving.calls[0], serving.loaded) == ("load", candidate)
    await done("finish", status="Failed")
    await done("decide", decision=Decision(decision="refuse", reason="slow"))
    assert not serving.loaded
    await done("decide", decision=Decision(decision="approve", reason="better"))
    assert serving.loaded == candidate
    await done("finish", status="Succeeded")
    assert serving.loaded == candidate


async def test_a_gate_judges_items_with_every_character_that_ends_a_line_in_unicode(around: Surroundings) -> None:
    shutil.rmtree(around.run)
    golden = around.input("golden.jsonl", "golden")
    golden.parent.mkdir()
    ends = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
    lines = [{"id": f"q{end}", "input": "Where is it?", "output": "In Hue.", "topic": f"a{end}b"} for end in ends]
    golden.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = OfEvaluation(route="chat", gate="easy")
    context = Context(around.run, cast(Gateway, Serving()), Progress(Console(file=StringIO())))
    for name in ("evaluate", "gate"):
        task = WORKFLOWS["evaluate"].task(name)
        assert task is not None
        outputs = await task.work(given, around, context)
    assert outputs.model_dump()["passed"]
    assert f"on {len(ends)} items" in outputs.model_dump()["findings"][0]["evidence"]


async def test_a_failed_run_leaves_the_adapter_that_was_released_meanwhile(trained: Surroundings) -> None:
    given = OfRetrain(route="chat", base="/models/x", gate="easy")
    retrain, serving = WORKFLOWS["retrain"], Serving()
    context = Context(trained.run, cast(Gateway, serving), Progress(Console(file=StringIO())))
    for task in ("plan", "load"):
        found = retrain.task(task)
        assert found is not None
        await found.work(given, trained, context)
    (name,) = serving.loaded
    text = trained.factory_file.read_text()
    released = text.replace("models: [{", f"models: [{{name: new, backend: {{type: modelserver, model: {name}}}}}, {{")
    trained.factory_file.write_text(released)
    assert retrain.finish is not None
    await retrain.finish.work(given, replace(trained, status="Failed"), context)
    assert serving.loaded == {name}
    trained.factory_file.write_text(text)
    await retrain.finish.work(given, replace(trained, status="Failed"), context)
    assert not serving.loaded


def test_the_token_of_the_account_is_argos_alone() -> None:
    for each in objects().values():
        if each["kind"] == "WorkflowTemplate":
            patch = json.loads(each["spec"]["podSpecPatch"])
            assert patch["automountServiceAccountToken"] is False
            containers = {one["name"]: one.get("volumeMounts", []) for one in patch["containers"]}
            assert (len(containers["wait"]), containers["main"]) == (1, [])
