"""The published JSON Schema of an export's lines: generated from the contract, followed by lines, never broken."""

from __future__ import annotations

import copy
import importlib.util
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
from google.protobuf.message import Message

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import testing
from genaifactory_common.testing import struct
from genaifactory_monitor import message_schema
from genaifactory_monitor.export import SCHEMA_VERSION
from tests.unit.monitor.conftest import Monitor, make_interaction, with_every_field

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """docs/schemas/generate.py."""
    spec = importlib.util.spec_from_file_location("schemas_generate", DOCS / "schemas" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    """The schema as it is checked in."""
    path = DOCS / "schemas" / f"interaction-v{SCHEMA_VERSION}.schema.json"
    schema: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return schema


def test_schema_and_page_are_generated_from_the_contract(generate: ModuleType) -> None:
    for path, text in generate.rendered().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} differs: run `make protos`"


def test_every_field_of_the_schema_is_described(published: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(published)
    for schema in (published, *published["$defs"].values()):
        assert schema["description"]
        assert [name for name, field in schema["properties"].items() if not field.get("description")] == []


async def test_exported_lines_follow_the_published_schema(monitor: Monitor, published: dict[str, Any]) -> None:
    testing.act_as()
    # Lines of this version have no other field, though readers must ignore those of a later one.
    strict = closed(published)
    chance = random.Random(5)
    await monitor.record(
        make_interaction("bare", usage=None, input=[], model=""),
        *(make_interaction(f"full{i}", **with_every_field(chance)) for i in range(20)),
        make_interaction("newer", verdicts=[types_pb2.Verdict(action=99)]),  # type: ignore[arg-type]  # a later version's
    )
    truth = struct({"label": [1.5, None, "x"]})
    await monitor.feedback(feedback_id="f1", request_id="bare", rating=monitor_pb2.RATING_UP)
    await monitor.feedback(feedback_id="f2", request_id="bare", correction="so", ground_truth=truth)

    lines = [json.loads(line) for line in await monitor.export()]

    validator = jsonschema.Draft202012Validator(strict)
    assert [error.message for line in lines for error in validator.iter_errors(line)] == []
    assert len(lines) == 22
    assert {line["schema_version"] for line in lines} == {SCHEMA_VERSION}
    assert "traceparent" not in lines[0]
    (newer,) = (line for line in lines if line["request_id"] == "newer")
    assert newer["verdicts"][0]["action"] == "99"


def test_a_line_that_violates_the_schema_is_detected(published: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(published)
    line = {"schema_version": SCHEMA_VERSION, "request_id": 7}
    messages = {error.message for error in validator.iter_errors(line)}
    assert "7 is not of type 'string'" in messages
    assert "'output' is a required property" in messages


def _remove(schema: dict[str, Any], name: str) -> None:
    del schema["properties"][name]
    schema["required"].remove(name)


BREAKS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a field is gone": (lambda s: _remove(s, "output"), "/output: was always there"),
    "a field is gone from a message within": (lambda s: _remove(s["$defs"]["Citation"], "uri"), "/Citation/uri: was"),
    "a text becomes a number": (lambda s: s["properties"]["model"].update(type="integer"), "/model: type was 'string'"),
    "a field may be absent": (lambda s: s["required"].remove("route"), "/route: was always there"),
    "a value becomes a list": (
        lambda s: s["properties"].update(user={"type": "array", "items": {"type": "string"}}),
        "/user: type was 'string'",
    ),
    "another message stands in a list": (
        lambda s: s["properties"]["passages"]["items"].update({"$ref": "#/$defs/Citation"}),
        r"/passages\[\]: \$ref was",
    ),
    "a field may be null": (
        lambda s: s["properties"].update(task={"anyOf": [{"type": "string"}, {"type": "null"}]}),
        "/task: type was 'string'",
    ),
    "an outcome is gone": (
        lambda s: s["properties"]["outcome"]["anyOf"][0]["enum"].remove("blocked"),
        "'blocked' was a value",
    ),
    "another version": (lambda s: s["properties"]["schema_version"].update(const=2), "const was 1"),
}


@pytest.mark.parametrize("case", BREAKS)
def test_a_change_that_breaks_readers_is_named(case: str, published: dict[str, Any]) -> None:
    change, message = BREAKS[case]
    changed = copy.deepcopy(published)
    change(changed)
    assert any(re.search(message, found) for found in message_schema.breaks(published, changed))


def test_a_schema_that_breaks_readers_of_the_published_one_is_not_written(
    generate: ModuleType, published: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = copy.deepcopy(published)
    earlier["properties"]["gone"] = {"type": "string"}
    earlier["required"].append("gone")
    (tmp_path / "v1.json").write_text(json.dumps(earlier), encoding="utf-8")
    monkeypatch.setattr(generate, "path", lambda: tmp_path / "v1.json")
    with pytest.raises(ValueError, match=r"/gone: was always there, and is not\. Keep what they read, or raise"):
        generate.rendered()


def test_a_change_that_readers_can_ignore_is_allowed(published: dict[str, Any]) -> None:
    changed = copy.deepcopy(published)
    changed["properties"]["release"] = {"type": "string"}
    changed["required"].append("release")
    changed["properties"]["outcome"]["anyOf"][0]["enum"].append("escalated")
    changed["properties"]["model"]["description"] = "In other words."
    changed["$defs"]["Arm"] = {"type": "object"}
    assert message_schema.breaks(published, changed) == []


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, with further fields forbidden."""
    strict = copy.deepcopy(schema)
    for each in (strict, *strict["$defs"].values()):
        each["additionalProperties"] = False
    return strict


def test_the_full_records_of_these_tests_have_every_field() -> None:
    full = make_interaction("a", **with_every_field(random.Random(1)))
    assert_filled(full)


def assert_filled(message: Message) -> None:
    unset = {field.name for field in message.DESCRIPTOR.fields} - {field.name for field, _ in message.ListFields()}
    assert unset <= {"data", "traceparent"}
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.fields_by_name.get("seconds") is None:
            for item in value if field.is_repeated else (value,):
                assert_filled(item)
