"""Generates each chart's values.schema.json and the table in its README.md from its values.yaml.

A comment above a key that begins with `# --` describes it; `# @schema {…}` adds to the JSON schema that is derived from
its default. Writes specs/entities.py of genaifactory_common too, from the guardrails' recognisers. Run by
`make charts`, with the workflows of the pipelines; `make test` checks that nothing differs.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from genaifactory_common import specs
from genaifactory_pipelines.workflows import manifests
from genaifactory_safety import policies

CHARTS = Path(__file__).parent
ENTITIES = Path(specs.__file__).with_name("entities.py")
WORKFLOWS = CHARTS / "genai-factory" / "workflows"
NAMES = ("service", "genai-factory")
_BEGIN, _END = "<!-- values: made by make charts -->", "<!-- end of values -->"
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
_ENTITIES = '''"""Entity types for policies; written by make charts from the catalogue of genaifactory_safety."""

from __future__ import annotations

from collections.abc import Mapping

GROUPS: Mapping[str, tuple[str, ...]] = {{
{groups}}}
"""Entity types by the group that stands for all of them."""
OTHERS = ({others},)
"""Entity types of no group."""
'''
# Marks a service of the umbrella chart, whose values are checked by the schema of charts/service.
_SERVICE = "$service"


@dataclass(frozen=True)
class Value:
    """One key of a values.yaml."""

    path: tuple[str, ...]
    default: Any
    description: str
    schema: dict[str, Any]
    """Of the `@schema` comment."""
    children: tuple[Value, ...]
    """Keys of a mapping; none where the user chooses them."""


def main() -> None:
    """Writes the files; with --check, exits with an error that names those that differ."""
    stale = []
    files = {ENTITIES: entities(), **workflows()}
    for name in NAMES:
        files |= rendered(CHARTS / name)
    for path, text in files.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path)
            if "--check" not in sys.argv[1:]:
                path.write_text(text, encoding="utf-8")
    if stale and "--check" in sys.argv[1:]:
        sys.exit(f"run `make charts`: {', '.join(path.name for path in stale)} differ")


def workflows() -> dict[Path, str]:
    """The texts of the workflows' objects."""
    return {WORKFLOWS / name: text for name, text in manifests.files().items()}


def entities() -> str:
    """The text of specs/entities.py."""
    groups = policies.groups(policies.catalogue())
    lines = [f"    {json.dumps(group)}: ({_listed(members)}),\n" for group, members in groups.items()]
    return _ENTITIES.format(groups="".join(lines), others=json.dumps(policies.UNSCANNABLE))


def _listed(names: tuple[str, ...]) -> str:
    if len(names) == 1:
        return f"{json.dumps(names[0])},"
    return "\n" + "".join(f"        {json.dumps(name)},\n" for name in names) + "    "


def rendered(chart: Path) -> dict[Path, str]:
    """The texts of the chart's generated files. Raises ValueError for a key without a description."""
    values = read((chart / "values.yaml").read_text(encoding="utf-8"))
    readme = (chart / "README.md").read_text(encoding="utf-8")
    head, separator, rest = readme.partition(_BEGIN)
    if not separator:
        raise ValueError(f"{chart / 'README.md'} has no line {_BEGIN}")
    tail = rest.partition(_END)[2]
    return {
        chart / "values.schema.json": json.dumps(_document(values), indent=2, ensure_ascii=False) + "\n",
        chart / "README.md": f"{head}{_BEGIN}\n{_table(values)}{_END}{tail}",
    }


def read(text: str) -> tuple[Value, ...]:
    """The keys of a values.yaml, with their comments."""
    node = yaml.compose(text, yaml.SafeLoader)
    if not isinstance(node, yaml.MappingNode):
        raise ValueError("values.yaml must hold a mapping")
    return tuple(_values(node, (), text.splitlines()))


def _values(node: yaml.MappingNode, prefix: tuple[str, ...], lines: list[str]) -> Iterator[Value]:
    for key, value in node.value:
        path = (*prefix, key.value)
        description, schema = _comment(lines, key.start_mark.line)
        own = "additionalProperties" not in schema or path == ("global",)
        nested = isinstance(value, yaml.MappingNode) and value.value and own and "$ref" not in schema
        children = tuple(_values(value, path, lines)) if nested and _SERVICE not in schema else ()
        default = yaml.SafeLoader("").construct_document(value)
        if not description and not children:
            raise ValueError(f"{'.'.join(path)} has no description (# -- …)")
        yield Value(path, default, description, schema, children)


def _comment(lines: list[str], line: int) -> tuple[str, dict[str, Any]]:
    """Description and schema in the comment right above a line."""
    first = line
    while first > 0 and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    description: list[str] = []
    schema: dict[str, Any] = {}
    for text in (each.strip().removeprefix("#").strip() for each in lines[first:line]):
        if text.startswith("@schema"):
            schema |= json.loads(text.removeprefix("@schema"))
        elif text.startswith("--"):
            description = [text.removeprefix("--").strip()]
        elif description:
            description.append(text)
    return " ".join(description), schema


def _document(values: tuple[Value, ...]) -> dict[str, Any]:
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **_object(values)}
    if any("$ref" in value.schema for value in values):
        factory = specs.Factory.model_json_schema()
        definitions = factory.pop("$defs")
        # The check before an installation refuses an unknown entity, with the message of `genaifactory config check`.
        del definitions["Rule"]["properties"]["entities"]["items"]["enum"]
        document["$defs"] = {**definitions, "factory": factory}
    # Helm passes the parent's global values to a subchart.
    if not any(value.path == ("global",) for value in values):
        document["properties"]["global"] = {"type": "object"}
    return document


def _object(values: tuple[Value, ...]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {value.path[-1]: _schema(value) for value in values},
    }


def _schema(value: Value) -> dict[str, Any]:
    described = {"description": value.description} if value.description else {}
    if _SERVICE in value.schema:
        return {**described, "type": "object"}
    if "$ref" in value.schema:
        return {**described, **value.schema}
    kind = {} if "enum" in value.schema else {"type": _TYPES[type(value.default)]}
    inner = _object(value.children) if value.children else {}
    if isinstance(value.default, dict) and not value.children:
        inner = {"additionalProperties": False}
    return {**described, **kind, **inner, **value.schema}


def _table(values: tuple[Value, ...]) -> str:
    rows = ["| value | default | |", "| --- | --- | --- |"]
    for value in _leaves(values):
        default = "see values.yaml" if _long(value) else f"`{json.dumps(value.default, ensure_ascii=False)}`"
        rows.append(f"| `{'.'.join(value.path)}` | {default} | {_cell(value.description)} |")
    return "\n".join(rows) + "\n"


def _leaves(values: tuple[Value, ...]) -> Iterator[Value]:
    for value in values:
        if value.children:
            yield from _leaves(value.children)
        else:
            yield value


def _long(value: Value) -> bool:
    return len(json.dumps(value.default)) > 60


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


if __name__ == "__main__":
    main()
