"""The files generated from the charts' values.yaml, whose keys all have a description."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from genaifactory_common import refusals, specs
from genaifactory_local import configuration

CHARTS = Path(__file__).parents[3] / "charts"
PROFILES = sorted((CHARTS / "genai-factory" / "profiles").glob("*.yaml"))


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("charts_generate", CHARTS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """The values as Helm merges them: mappings by key, everything else whole."""
    result = dict(base)
    for key, value in over.items():
        known = result.get(key)
        result[key] = merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return result


def test_schemas_and_tables_are_generated_from_values_yaml(generate: ModuleType) -> None:
    for name in generate.NAMES:
        for path, text in generate.rendered(CHARTS / name).items():
            assert path.read_text(encoding="utf-8") == text, f"{path} differs: run make charts"


def test_the_entities_of_policies_are_generated_from_the_recognisers(generate: ModuleType) -> None:
    assert generate.ENTITIES.read_text(encoding="utf-8") == generate.entities(), "run make charts"


def test_the_schema_for_editors_lists_entities_and_helms_leaves_them_to_the_check() -> None:
    def entity(definitions: dict[str, Any]) -> dict[str, Any]:
        items: dict[str, Any] = definitions["Rule"]["properties"]["entities"]["items"]
        return items

    assert {"PII", "EMAIL_ADDRESS", "UNSCANNABLE"} <= set(entity(specs.Factory.model_json_schema()["$defs"])["enum"])
    schema = json.loads((CHARTS / "genai-factory" / "values.schema.json").read_text(encoding="utf-8"))
    assert entity(schema["$defs"]) == {"type": "string"}


def test_a_key_without_a_description_is_refused(generate: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"a\.b has no description"):
        generate.read("a:\n  b: 1\n")


def test_a_comment_becomes_a_description_and_a_schema(generate: ModuleType) -> None:
    (value,) = generate.read('# -- How many,\n# of all.\n# @schema {"minimum": 1}\ncount: 3\n')
    assert value.description == "How many, of all."
    assert value.schema == {"minimum": 1}
    assert value.default == 3


def test_the_schema_has_every_key_of_the_default_values(generate: ModuleType) -> None:
    schema = json.loads((CHARTS / "service" / "values.schema.json").read_text())
    values = yaml.safe_load((CHARTS / "service" / "values.yaml").read_text())
    assert set(schema["properties"]) == set(values)
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("profile", [None, *PROFILES], ids=lambda path: path.stem if path else "defaults")
def test_the_services_accept_the_factory_yaml_of_every_profile(profile: Path | None) -> None:
    values = yaml.safe_load((CHARTS / "genai-factory" / "values.yaml").read_text())
    if profile is not None:
        over = yaml.safe_load(profile.read_text())
        if profile.stem == "private-model":
            values = merged(values, yaml.safe_load(profile.with_name("gpu.yaml").read_text()))
        values = merged(values, over)
    specs.parse(yaml.safe_dump(values["factory"]))


def test_the_default_prompts_have_the_platforms_refusal() -> None:
    own = yaml.safe_load(Path(configuration.__file__).with_name("factory.yaml").read_text(encoding="utf-8"))
    charts = yaml.safe_load((CHARTS / "genai-factory" / "values.yaml").read_text(encoding="utf-8"))["factory"]
    for document in (own, charts):
        assert [prompt["refusal"] for prompt in document["prompts"]] == [dict(refusals.UNANSWERED)]


def test_the_workflows_of_the_chart_are_generated_from_their_definitions(generate: ModuleType) -> None:
    expected = generate.workflows()
    for path, text in expected.items():
        assert path.read_text(encoding="utf-8") == text, f"{path} differs: run make charts"
    assert set(generate.WORKFLOWS.iterdir()) == set(expected), "an object of a workflow that is gone"
