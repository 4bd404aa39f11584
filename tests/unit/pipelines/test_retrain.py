"""The DAG `retrain`: errors are reported before it begins, and each step gets what those before it have made."""

from __future__ import annotations

import asyncio
import json
import os
import pkgutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from rich.console import Console

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory_common import channels, specs
from genaifactory_common.errors import Conflict, InvalidArgument
from genaifactory_local import cli, endpoints, interpreters
from genaifactory_pipelines import retrain, steps, summary
from genaifactory_pipelines.gateway import Gateway
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.step import ATTEMPT, RESULT, Attempt, Context, Step, digest
from genaifactory_pipelines.steps import collect, load, train
from genaifactory_pipelines.values import Values
from tests.unit.pipelines import tracked
from tests.unit.pipelines.examples import golden_of

NOW = datetime(2026, 11, 29, tzinfo=UTC)
WINDOW = collect.Parameters(start=datetime(2026, 10, 30, tzinfo=UTC), end=NOW, route="chat")
SHA256 = "5eed" * 16
GATE = {"name": "right", "rules": [{"metric": "exact_match", "at_least": 0.5}]}


def factory(**changes: Any) -> specs.Factory:
    """One whose route `chat` a Llama with adapters answers."""
    return specs.Factory.model_validate(
        {
            "tenants": [{"name": "dev"}],
            "roles": [{"name": "user", "permissions": ["chat"]}],
            "models": [
                {"name": "small", "backend": {"type": "modelserver", "model": "llama"}},
                {"name": "quotes", "backend": {"type": "modelserver", "model": "extractive"}},
            ],
            "routes": [
                {"name": "chat", "task": "chat", "models": ["small"]},
                {"name": "quoted", "task": "chat", "models": ["quotes"]},
            ],
            "policies": [{"name": "default"}],
            "gates": [
                {"name": "release", "rules": [{"metric": "exact_match", "better_by": 0.1}]},
                {"name": "judged", "rules": [{"metric": "judge", "at_least": 0.5}]},
                {"name": "typo", "rules": [{"metric": "exact", "at_least": 1}]},
            ],
            "engines": [
                {"type": "vllm", "model": "llama", "source": "hf://org/llama@v1", "adapters": {"max_rank": 8}},
                {"type": "vllm", "model": "plain", "source": "/models/plain"},
                {"type": "extractive"},
            ],
            **changes,
        }
    )


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A golden set of as many items as a rule needs at least."""
    return golden_of(tmp_path / "golden.jsonl", 20)


def parameters(golden: Path, **values: Any) -> retrain.Parameters:
    given = {"route": "chat", "golden": golden, "base": "hf://org/llama@v1", "gate": "release"}
    return retrain.Parameters.model_validate({**given, "training": {"lora": {"rank": 8}}, **values})


@pytest.mark.parametrize(
    ("changes", "field", "problem"),
    [
        ({"route": "none"}, "route", "no route 'none' in factory.yaml; there are: chat, quoted"),
        ({"learn_from": ("chat", "none")}, "learn_from", "no route 'none' in factory.yaml; there are: chat, quoted"),
        ({"route": "quoted"}, "route", "No model of the route 'quoted' is answered by the engine 'llama'"),
        ({"gate": "none"}, "gate", "no gate 'none' in factory.yaml; there are: release, judged, typo"),
        ({"gate": "typo"}, "gates[typo].rules[0].metric", "a rule on 'exact', which no evaluator measures"),
        ({"gate": "judged"}, "gates[judged].rules[0].metric", "20 others need a judge. "),
        ({"base": "/models/other"}, "base", "those that accept adapters: 'llama' (from hf://org/llama@v1)"),
        ({"base": "/models/plain"}, "base", "No engine of factory.yaml serves '/models/plain' and accepts adapters"),
        ({"training": {"lora": {"rank": 16}}}, "training", "accepts adapters up to 8"),
        ({"policy": "none"}, "policy", "There is no policy 'none'; there are: default."),
    ],
)
def test_what_cannot_succeed_is_reported_before_a_run_begins(
    golden: Path, changes: dict[str, Any], field: str, problem: str
) -> None:
    with pytest.raises(InvalidArgument) as found:
        retrain.plan(parameters(golden, **changes), factory(), NOW)
    assert (found.value.field, problem in found.value.message) == (field, True), found.value.message


def test_where_no_engine_accepts_adapters_the_change_of_factory_yaml_is_shown(golden: Path) -> None:
    with pytest.raises(InvalidArgument) as found:
        retrain.plan(parameters(golden), factory(engines=[{"type": "extractive"}]), NOW)
    entry = "engines: [{type: vllm, model: NAME, source: hf://org/llama@v1, adapters: {max_rank: 16}}]."
    assert (
        f"accepts adapters; none does. Write the engine into factory.yaml and start again: {entry}"
        in found.value.message
    )


@pytest.mark.parametrize("name", ["my adapter", "../x", "", "x" * 65, "-x"])
def test_a_name_that_no_adapter_can_have_is_reported_before_a_run_begins(golden: Path, name: str) -> None:
    values = parameters(golden).model_dump() | {"name": name}
    with pytest.raises(InvalidArgument, match=r"^name: "):
        retrain.parameters(values)
    assert retrain.parameters({**values, "name": "x" * 64}).name == "x" * 64


@pytest.mark.parametrize("content", [None, b"{}"], ids=["removed", "replaced"])
def test_a_golden_set_other_than_the_one_that_was_kept_out_is_not_evaluated(
    golden: Path, tmp_path: Path, content: bytes | None
) -> None:
    plan = retrain.plan(parameters(golden), factory(), NOW)
    (stage,) = (stage for stage in retrain.STAGES if stage.step.name == "evaluate")
    write(tmp_path, "load", LOADED.model_dump_json())
    kept_out(tmp_path, golden)
    assert stage.parameters(plan, tmp_path)
    golden.unlink()
    if content is not None:
        golden.write_bytes(content)
    with pytest.raises(Conflict, match=r"golden.jsonl is not the file that 'curate' was run with as 'golden'"):
        stage.parameters(plan, tmp_path)


def kept_out(run: Path, golden: Path) -> None:
    """What curate leaves, as far as its attempt."""
    attempt = Attempt(step="curate", version="", parameters={}, files={"golden": digest(golden)}, needs={})
    (run / "curate").mkdir()
    (run / "curate" / ATTEMPT).write_text(attempt.model_dump_json(), encoding="utf-8")


def test_an_empty_golden_set_and_one_of_several_policies_are_reported_before_a_run_begins(golden: Path) -> None:
    several = factory(policies=[{"name": "default"}, {"name": "strict"}])
    with pytest.raises(InvalidArgument, match="Give one; there are: default, strict"):
        retrain.plan(parameters(golden), several, NOW)
    golden.write_text("\n", encoding="utf-8")
    with pytest.raises(InvalidArgument, match="it holds no example"):
        retrain.plan(parameters(golden), factory(), NOW)


def test_a_gate_on_what_answers_rest_on_is_accepted_for_a_route_that_searches_documents(golden: Path) -> None:
    searching = {
        "knowledge_bases": [{"name": "documents"}],
        "prompts": [{"name": "rag", "version": 1, "system": "Answer by the passages."}],
        "gates": [{"name": "grounded", "rules": [{"metric": "groundedness", "at_least": 0.5}]}],
    }
    routes = [
        {"name": "chat", "task": "rag", "models": ["small"], "prompt": "rag@1", "knowledge_base": "documents"},
    ]
    plan = retrain.plan(parameters(golden, gate="grounded"), factory(**searching, routes=routes), NOW)
    assert plan.gate.name == "grounded"


@pytest.mark.parametrize("base", ["llama", "org/llama", "org/llama@v1", "hf://org/llama@v1"])
def test_a_base_is_found_by_every_name_that_the_model_server_accepts(golden: Path, base: str) -> None:
    assert retrain.plan(parameters(golden, served_as=base), factory(), NOW).engine == "llama"


def test_a_run_goes_on_with_its_window_until_another_one_is_asked_for(golden: Path, tmp_path: Path) -> None:
    later = datetime(2026, 11, 30, tzinfo=UTC)
    first = retrain.begin(tmp_path / "run", retrain.plan(parameters(golden), factory(), NOW))
    again = retrain.plan(parameters(golden, at_once=8), factory(), later)
    assert retrain.begin(tmp_path / "run", again).window == first.window == WINDOW
    assert retrain.stored(tmp_path / "run") == again.model_copy(update={"window": WINDOW})
    other = retrain.plan(parameters(golden, since="7d"), factory(), later)
    assert retrain.begin(tmp_path / "run", other).window.end == later


@pytest.mark.allow_blocking  # the test's own
async def test_a_run_learns_from_the_record_of_the_routes_that_are_named(golden: Path, tmp_path: Path) -> None:
    one, several = (
        retrain.plan(parameters(golden, learn_from=names), factory(), NOW) for names in ((), ("quoted", "chat"))
    )
    assert several.window == WINDOW.model_copy(update={"route": "", "routes": ("quoted", "chat")})
    assert retrain.begin(tmp_path, one).window == WINDOW
    assert retrain.begin(tmp_path, several).window == several.window
    working = tracked.context(tmp_path, routes=("chat", "rag", "quoted", "chat", "rag", "rag"))
    outputs = await collect.collect.run(several.window, working)
    lines = (tmp_path / "collect" / collect.FILE).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["route"] for line in lines] == ["chat", "quoted", "chat"]
    assert outputs.interactions == 3


def test_each_step_is_given_what_those_before_it_have_made(golden: Path, tmp_path: Path) -> None:
    plan = retrain.plan(parameters(golden, served_as="llama"), factory(), NOW)
    stages = {stage.step.name: stage for stage in retrain.STAGES}
    kept_out(tmp_path, golden)
    with pytest.raises(InvalidArgument, match="run that step first"):
        stages["evaluate"].parameters(plan, tmp_path)
    write(tmp_path, "load", load.Outputs(name="candidate-5eed", base_model="llama", replicas=1).model_dump_json())
    evaluated: Any = stages["evaluate"].parameters(plan, tmp_path)
    assert (evaluated.candidate.adapter, evaluated.route, evaluated.golden) == ("candidate-5eed", "chat", golden)
    trained: Any = stages["train"].parameters(plan, tmp_path)
    assert (trained.base, trained.served_as, trained.lora.rank) == ("hf://org/llama@v1", "llama", 8)
    assert stages["collect"].parameters(plan, tmp_path) == WINDOW


def test_a_run_that_is_not_tracked_needs_no_mlflow(golden: Path) -> None:
    names = [stage.step.name for stage in retrain.stages(parameters(golden, tracked=False))]
    assert names == ["collect", "curate", "train", "load", "evaluate", "gate"]
    assert [stage.step.name for stage in retrain.stages(parameters(golden))] == [*names, "record", "register"]


@pytest.mark.parametrize(("texts", "wanted"), [(True, "examples"), (False, "counts")])
def test_mlflow_gets_texts_unless_none_are_wanted(golden: Path, tmp_path: Path, texts: bool, wanted: str) -> None:
    plan = retrain.plan(parameters(golden, texts=texts), factory(), NOW)
    made: dict[str, Any] = {stage.step.name: stage.parameters(plan, tmp_path) for stage in retrain.STAGES[-2:]}
    assert (made["record"].dataset, made["register"].record.dataset) == (wanted, wanted)


@pytest.mark.parametrize(("option", "texts"), [([], True), (["--no-mlflow-texts"], False)])
def test_the_command_asks_for_texts_unless_told_otherwise(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: list[str], texts: bool
) -> None:
    planned: list[retrain.Parameters] = []

    def plan(given: retrain.Parameters, *rest: Any) -> retrain.Plan:
        planned.append(given)
        raise InvalidArgument("It ends here.")

    monkeypatch.setattr(retrain, "plan", plan)
    monkeypatch.setattr(endpoints, "find", lambda folder: SimpleNamespace(factory=factory))
    given = ["-o", str(tmp_path / "run"), "--golden", str(golden), "--base", "hf://org/llama", "--route", "chat"]
    monkeypatch.setattr(sys, "argv", ["genaifactory", "retrain", *given, "--gate", "release", *option])
    with pytest.raises(SystemExit):
        cli.main()
    assert [each.texts for each in planned] == [texts]


def test_the_evaluation_asks_what_the_gate_judges_and_knows_the_prompt_that_may_not_leak(
    golden: Path, tmp_path: Path
) -> None:
    rules = [{"metric": "attack_success", "at_most": 0}, {"metric": "bias_gap", "not_worse_by": 0.1}]
    routes = [{"name": "chat", "task": "chat", "models": ["small"], "prompt": "desk@1"}]
    prompts = [{"name": "desk", "version": version, "system": f"You are desk {version}."} for version in (1, 2)]
    safe = factory(gates=[{"name": "release", "rules": rules}], routes=routes, prompts=prompts)
    plan = retrain.plan(parameters(golden), safe, NOW)
    write(tmp_path, "load", load.Outputs(name="candidate-5eed", base_model="llama", replicas=1).model_dump_json())
    kept_out(tmp_path, golden)
    (stage,) = (stage for stage in retrain.stages(plan.parameters) if stage.step.name == "evaluate")
    wanted: Any = stage.parameters(plan, tmp_path)
    assert wanted.suites == ("bias", "safety")
    assert wanted.hidden == ("You are desk 1.",)


def test_every_step_with_libraries_of_its_own_is_a_step() -> None:
    assert set(interpreters.OF_STEPS) <= {module.name for module in pkgutil.iter_modules(steps.__path__)}


class Serving(tracked.Platform):
    """A gateway with a record and a model server."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    async def load_adapter(self, request: gateway_pb2.LoadAdapterRequest) -> int:
        """See Gateway."""
        self.loaded.append(request.name)
        return 1

    async def unload_adapter(self, name: str) -> int:
        """See Gateway."""
        self.loaded.remove(name)
        return 1


@pytest.mark.allow_blocking  # the test's own files
@pytest.mark.parametrize("right", [tracked.ITEMS, 0], ids=["passed", "not passed"])
async def test_a_run_is_registered_and_stays_loaded_only_if_its_gate_was_passed(
    golden: Path, tmp_path: Path, right: int
) -> None:
    run, serving = tmp_path / "run", Serving()
    context = Context(run, cast(Gateway, serving), Progress(Console(file=StringIO())))
    wanted = retrain.plan(parameters(golden, gate="right", served_as="llama"), factory(gates=[GATE]), NOW)
    scripted: dict[str, Step[Any, Any]] = {
        "train": tracked.trains(b"weights"),
        "evaluate": tracked.evaluates(right),
    }
    executed: list[str] = []

    async def execute(step: Step[Any, Any], given: Values, context: Context) -> None:
        executed.append(step.name)
        if step.name not in ("record", "register"):  # they need MLflow
            await scripted.get(step.name, step).run(given, context)

    for _ in range(2):  # a finished run comes to the same end again
        executed.clear()
        assert await retrain.run(wanted, context, execute, factory) == bool(right)
        names = [stage.step.name for stage in retrain.STAGES]
        assert executed == (names if right else names[:-1])
        assert set(serving.loaded) == ({load.load.of(run).name} if right else set())
        page = (run / summary.FILE).read_text(encoding="utf-8")
        assert ("Run run: passed" in page) == bool(right)
        assert "curate/report.html" in page
        assert "exact_match at_least 0.5" in page


@pytest.mark.allow_blocking  # the test's own files
async def test_the_candidate_of_a_gate_that_cannot_be_judged_is_unloaded(golden: Path, tmp_path: Path) -> None:
    """No answer rests on passages, although the route searches documents, say."""
    written, serving = StringIO(), Serving()
    context = Context(tmp_path / "run", cast(Gateway, serving), Progress(Console(file=written)))
    in_force = factory(gates=[{"name": "right", "rules": [{"metric": "token_f1", "at_least": 0.5}]}])
    wanted = retrain.plan(parameters(golden, gate="right", served_as="llama"), in_force, NOW)
    scripted: dict[str, Step[Any, Any]] = {"train": tracked.trains(b"weights"), "evaluate": tracked.evaluates(3)}

    async def execute(step: Step[Any, Any], given: Values, context: Context) -> None:
        if step.name == "gate":
            assert serving.loaded
        await scripted.get(step.name, step).run(given, context)

    for _ in range(2):
        with pytest.raises(InvalidArgument, match="a rule on 'token_f1', which was not measured"):
            await retrain.run(wanted, context, execute, factory)
        assert not serving.loaded
    assert "gate: not judged" in written.getvalue()


@pytest.mark.allow_blocking  # the test's own files
async def test_the_page_of_a_run_that_a_stricter_gate_stops_lists_no_registration(golden: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    context = Context(run, cast(Gateway, Serving()), Progress(Console(file=StringIO())))
    scripted: dict[str, Step[Any, Any]] = {"train": tracked.trains(b"weights"), "evaluate": tracked.evaluates(3)}

    async def execute(step: Step[Any, Any], given: Values, context: Context) -> None:
        if step.name == "register":  # it needs MLflow
            (run / "register").mkdir()
            for name in (ATTEMPT, RESULT):
                (run / "register" / name).write_text("{}", encoding="utf-8")
        elif step.name != "record":
            await scripted.get(step.name, step).run(given, context)

    for at_least, passed in ((0.1, True), (0.5, False)):
        rules = [{"metric": "exact_match", "at_least": at_least}]
        in_force = factory(gates=[{"name": "right", "rules": rules}])
        wanted = retrain.plan(parameters(golden, gate="right", served_as="llama"), in_force, NOW)
        assert await retrain.run(wanted, context, execute, factory) == passed
        page = (run / summary.FILE).read_text(encoding="utf-8")
        assert (">register<" in page) == passed
        assert ">gate<" in page


LOADED = load.Outputs(name=f"candidate-{SHA256[:12]}", base_model="llama", replicas=1)
RELEASED = {"models": [{"name": "new", "backend": {"type": "modelserver", "model": LOADED.name}}]}
SERVED = [{"name": LOADED.name, "source": "models:/support/3"}]
ENGINE = {"type": "vllm", "model": "llama", "source": "/models/llama", "adapters": {"serve": SERVED}}
ELSEWHERE = {"type": "openai", "base_url": "https://api.example.org/v1", "model": LOADED.name}


@pytest.mark.parametrize(
    ("in_force", "stays"),
    [
        (RELEASED, True),
        ({"engines": [ENGINE, {"type": "extractive"}]}, True),
        ({"models": [{"name": "new", "backend": ELSEWHERE}]}, False),
        ({}, False),
    ],
    ids=["a model answers with it", "every replica serves it", "another API's model has its name", "not named"],
)
@pytest.mark.allow_blocking  # the test's own files
async def test_a_failed_run_leaves_what_was_released_of_equal_weights(
    tmp_path: Path, in_force: dict[str, Any], stays: bool
) -> None:
    serving, written = Serving(), StringIO()
    context = Context(tmp_path, cast(Gateway, serving), Progress(Console(file=written, width=200)))
    serving.loaded.append(LOADED.name)
    write(tmp_path, "load", LOADED.model_dump_json())
    models = [{"name": "small", "backend": {"type": "modelserver", "model": "llama"}}, *in_force.get("models", [])]
    routes = [{"name": "chat", "task": "chat", "models": ["small"]}]
    found = factory(**{**in_force, "models": models, "routes": routes})
    assert await load.withdraw(context, lambda: found) == ("" if stays else LOADED.name)
    assert serving.loaded == ([LOADED.name] if stays else [])
    assert (f"{LOADED.name} stays loaded: factory.yaml names it" in written.getvalue()) == stays


@pytest.mark.allow_blocking  # the test's own files
async def test_a_step_by_itself_unloads_nothing_that_factory_yaml_names_nor_without_it(tmp_path: Path) -> None:
    service = Adapters()
    service.calls = 1
    service.loaded[LOADED.name] = gateway_pb2.LoadAdapterRequest(name=LOADED.name)
    write(tmp_path, "load", LOADED.model_dump_json())
    path = tmp_path / "factory.yaml"
    models = [{"name": name, "backend": {"type": "modelserver", "model": name}} for name in ("llama", LOADED.name)]
    routes = [{"name": "chat", "task": "chat", "models": ["llama"]}]
    text = factory(models=models, routes=routes).model_dump_json()
    command = (sys.executable, "-m", "genaifactory_pipelines", "withdraw", "--run", str(tmp_path))
    async with connected(service, tmp_path):
        for content, status, printed in (("", 1, b""), (text, 0, b'{"unloaded": ""}\n')):
            path.write_text(content, encoding="utf-8")
            process = await asyncio.create_subprocess_exec(
                *command,
                *("--gateway", f"unix:{tmp_path}/gateway.sock"),
                env={**os.environ, "GENAIFACTORY_FACTORY_FILE": str(path), "GENAIFACTORY_API_KEY": "gf-key"},
                stdout=asyncio.subprocess.PIPE,
            )
            out, _ = await process.communicate()
            assert (process.returncode, out) == (status, printed)
            assert set(service.loaded) == {LOADED.name}


def write(run: Path, step: str, result: str) -> None:
    (run / step).mkdir()
    (run / step / RESULT).write_text(result, encoding="utf-8")


class Adapters(gateway_pb2_grpc.GatewayServiceServicer):
    """Loads adapters, from the second call on."""

    def __init__(self) -> None:
        self.loaded: dict[str, gateway_pb2.LoadAdapterRequest] = {}
        self.calls = 0

    async def LoadAdapter(
        self, request: gateway_pb2.LoadAdapterRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> gateway_pb2.LoadAdapterResponse:
        self.calls += 1
        if self.calls == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE)
        self.loaded[request.name] = request
        return gateway_pb2.LoadAdapterResponse(replicas=2)

    async def UnloadAdapter(
        self, request: gateway_pb2.UnloadAdapterRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> gateway_pb2.UnloadAdapterResponse:
        self.loaded.pop(request.name, None)
        return gateway_pb2.UnloadAdapterResponse(replicas=2)


@asynccontextmanager
async def connected(service: Adapters, run: Path) -> AsyncIterator[Context]:
    server = grpc.aio.server()
    gateway_pb2_grpc.add_GatewayServiceServicer_to_server(service, server)
    server.add_insecure_port(address := f"unix:{run}/gateway.sock")
    await server.start()
    async with channels.connect(address, api_key="gf-key") as channel:
        yield Context(run, Gateway(channel, patience_seconds=20), Progress(Console(file=StringIO())))
    await server.stop(None)


@pytest.mark.allow_blocking  # the test's own files
async def test_an_adapter_is_loaded_by_its_digest_and_again_after_somebody_unloaded_it(
    tmp_path: Path,
) -> None:
    outputs = train.Outputs(base_model="llama", data_version="sha256:1", sha256=SHA256, stages={})
    write(tmp_path, "train", outputs.model_dump_json())
    service = Adapters()
    async with connected(service, tmp_path) as context:
        assert await load.withdraw(context, factory) == ""  # nothing was loaded yet
        for _ in range(2):
            found = await load.load.run(load.Parameters(engine="llama"), context)
            assert found == load.Outputs(name=f"candidate-{SHA256[:12]}", base_model="llama", replicas=2)
            (request,) = service.loaded.values()
            assert (request.sha256, request.base_model) == (SHA256, "llama")
            assert request.source_uri == str(tmp_path / "train" / train.ADAPTER)
            service.loaded.clear()  # as when somebody unloads it
        await load.load.run(load.Parameters(source="models:/support/3"), context)
        assert service.loaded[found.name].source_uri == "models:/support/3"
        assert await load.withdraw(context, factory) == found.name
        assert not service.loaded


def test_a_step_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    started = tmp_path / "pid"
    step = [sys.executable, "-m", "genaifactory_pipelines", "collect", "--run", str(tmp_path / "run")]
    step += ["--parameters", WINDOW.model_dump_json(), "--gateway", f"unix:{tmp_path}/nobody", "--parent"]
    code = (
        "import os, pathlib, subprocess, sys, time; child = subprocess.Popen([*sys.argv[2:], str(os.getpid())]);"
        "pathlib.Path(sys.argv[1]).write_text(str(child.pid)); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(started), *step])
    try:
        wait_until(lambda: (tmp_path / "run" / "collect").is_dir())  # it works, and waits for the gateway
        child = int(started.read_text())
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_until(lambda: not alive(child))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def wait_until(done: Any) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)
