"""Settings of the model server and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genaifactory.modelserver.v1 import modelserver_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, specs
from genaifactory_common.engine_specs import Extractive, Fake, MiniLM
from genaifactory_common.errors import InvalidArgument, Unavailable
from genaifactory_common.telemetry import Telemetry
from genaifactory_modelserver.app import create_app
from genaifactory_modelserver.settings import Settings
from tests.unit.modelserver.conftest import RequestFor, Serve

FACTORY = """
tenants: [{name: acme}]
roles: [{name: developer, permissions: [chat]}]
models: [{name: extractive, backend: {type: modelserver, model: extractive}}]
routes: [{name: chat, task: chat, models: [extractive]}]
policies: [{name: default}]
"""


def factory(engines: list[dict[str, object]]) -> str:
    return FACTORY + f"engines: {json.dumps(engines)}\n"


def test_engines_come_from_factory_yaml() -> None:
    engines: list[dict[str, object]] = [
        {"type": "fake", "models": ["a", "b"]},
        {"type": "extractive", "max_running": 3},
        {"type": "minilm"},
    ]
    assert specs.parse(factory(engines)).engines == (Fake(models=("a", "b")), Extractive(max_running=3), MiniLM())


def test_by_default_it_quotes_and_embeds() -> None:
    assert specs.parse(FACTORY).engines == (Extractive(), MiniLM())


VLLM = {"type": "vllm", "model": "tiny", "source": "/models/tiny"}


@pytest.mark.parametrize(
    ("engines", "said"),
    [
        ([], "engines: must have at least 1"),
        ([{"type": "tgi"}], r"engines\[0\]: .*'vllm'"),
        ([{"type": "fake", "models": []}], r"engines\[0\]\.models: must have at least 1"),
        ([{"type": "extractive", "max_running": 0}], r"engines\[0\]\.max_running"),
        ([{"type": "extractive", "max_runing": 1}], r"engines\[0\]\.max_runing: unknown field"),
        ([{"type": "extractive"}, {"type": "fake", "models": ["x", "extractive"]}], "'extractive' appears twice"),
        ([{"type": "fake", "models": ["x y"]}], r"engines\[0\]\.models\[0\]"),
        ([{"type": "vllm", "model": "tiny"}], r"engines\[0\]\.source: is missing"),
        ([VLLM | {"args": {"model": "x"}}], r"engines\[0\]\.args\.model: is set by the engine's field source"),
        ([VLLM | {"args": {"max_lora_rank": 8}}], r"args\.max_lora_rank: is set by .* adapters\.max_rank"),
        ([VLLM | {"adapters": {"max_rank": 7}}], r"engines\[0\]\.adapters\.max_rank"),
        ([VLLM | {"adapters": {"serve": [{"name": "tiny", "source": "/a"}]}}], "'tiny' appears twice"),
        ([VLLM | {"adapters": {"serve": [{"name": "a", "source": "/a", "sha256": "12"}]}}], r"serve\[0\]\.sha256"),
        ([VLLM | {"sha256": "x"}], r"engines\[0\]\.sha256"),
    ],
)
def test_wrong_engines_are_refused_by_name(engines: list[dict[str, object]], said: str) -> None:
    with pytest.raises(specs.InvalidConfiguration, match=said):
        specs.parse(factory(engines))


def test_without_a_key_to_check_callers_there_is_no_service(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as raised:
        create_app(Settings(data_dir=tmp_path), specs.Source(specs.parse(FACTORY)), Telemetry("modelserver"))
    assert raised.value.field == "context_public_keys"


async def test_a_server_of_which_no_engine_can_open_does_not_start(tmp_path: Path, serve: Serve) -> None:
    with pytest.raises(InvalidArgument, match=r"nowhere\.json"):
        async with serve(Fake(script_file=str(tmp_path / "nowhere.json"))):
            raise AssertionError("must not serve")


async def test_an_engine_that_cannot_open_says_why_and_leaves_the_others_alone(
    tmp_path: Path, serve: Serve, request_for: RequestFor
) -> None:
    broken = Fake(models=("broken",), script_file=str(tmp_path / "nowhere.json"))
    async with serve(Fake(), broken) as stub:
        answers = [answer async for answer in channels.stream(stub.Generate, request_for(), timeout_seconds=5)]
        assert answers[-1].finish_reason == types_pb2.FINISH_REASON_STOP
        with pytest.raises(Unavailable, match=r"'broken' cannot answer: The script .*nowhere\.json cannot be read"):
            async for _ in channels.stream(stub.Generate, request_for(model="broken"), timeout_seconds=5):
                pass
        listed = await channels.unary(stub.ListModels, modelserver_pb2.ListModelsRequest(), timeout_seconds=5)
    states = {model.name: (model.state, "nowhere.json" in model.state_message) for model in listed.models}
    assert states == {
        "broken": (modelserver_pb2.MODEL_STATE_FAILED, True),
        "fake": (modelserver_pb2.MODEL_STATE_READY, False),
    }
