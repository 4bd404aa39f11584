"""Settings of the model server and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from genaifactory_common import specs
from genaifactory_common.errors import InvalidArgument
from genaifactory_common.telemetry import Telemetry
from genaifactory_modelserver.app import create_app
from genaifactory_modelserver.settings import Extractive, Fake, MiniLM, Settings

FACTORY = """
tenants: [{name: acme}]
roles: [{name: developer, permissions: [chat]}]
models: [{name: extractive, backend: {type: modelserver, model: extractive}}]
routes: [{name: chat, task: chat, models: [extractive]}]
policies: [{name: default}]
"""


def test_engines_come_from_the_environment_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = [{"type": "fake", "models": ["a", "b"]}, {"type": "extractive", "max_running": 3}, {"type": "minilm"}]
    monkeypatch.setenv("GENAIFACTORY_ENGINES", json.dumps(engines))
    assert Settings().engines == (Fake(models=("a", "b")), Extractive(max_running=3), MiniLM())


def test_by_default_it_quotes_and_embeds() -> None:
    assert Settings().engines == (Extractive(), MiniLM())


@pytest.mark.parametrize(
    ("engines", "said"),
    [
        ([], "at least 1"),
        ([{"type": "vllm"}], "type"),
        ([{"type": "fake", "models": []}], "models"),
        ([{"type": "extractive", "max_running": 0}], "max_running"),
        ([{"type": "extractive", "max_runing": 1}], "max_runing"),
        ([{"type": "extractive"}, {"type": "fake", "models": ["x", "extractive"]}], "stands twice"),
        ([{"type": "fake", "models": ["x y"]}], "models"),
    ],
)
def test_wrong_engines_are_refused_by_name(engines: list[Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Settings.model_validate({"engines": engines})


def test_without_a_key_to_check_callers_there_is_no_service(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as raised:
        create_app(Settings(data_dir=tmp_path), specs.Source(specs.parse(FACTORY)), Telemetry("modelserver"))
    assert raised.value.field == "context_public_key"


async def test_a_server_whose_engine_cannot_open_does_not_start(tmp_path: Path, serve: Callable[..., Any]) -> None:
    with pytest.raises(InvalidArgument, match=r"nowhere\.json"):
        async with serve(Extractive(), Fake(script_file=tmp_path / "nowhere.json")):
            raise AssertionError("must not serve")
