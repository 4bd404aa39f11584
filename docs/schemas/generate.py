"""Writes what follows from monitor's contract: the JSON Schema of an export's line, and the tables in docs/records.md.

Run by `make protos`; a test checks that nothing differs. A schema that breaks readers of the published one is not
written: it needs a version of its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc_tools
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

from genaifactory_monitor import export, message_schema

SCHEMAS = Path(__file__).parent
PAGE = SCHEMAS.parent / "records.md"
_PROTOS = SCHEMAS.parents[1] / "protos"
_PROTO = "genaifactory/monitor/v1/monitor.proto"
_BEGIN, _END = "<!-- fields: made by make protos -->", "<!-- end of fields -->"
# Numbers of fields in descriptor.proto, of which paths of a SourceCodeInfo are made.
_MESSAGES, _ENUMS = 4, 5
_FIELDS, _NESTED_MESSAGES, _NESTED_ENUMS, _VALUES = 2, 3, 4, 2


def path(version: int = export.SCHEMA_VERSION) -> Path:
    """Where the schema of a version is."""
    return SCHEMAS / f"interaction-v{version}.schema.json"


def rendered() -> dict[Path, str]:
    """The files as they should be. Raises ValueError where the published version would no longer hold."""
    schema = export.schema(comments())
    if path().exists() and (broken := message_schema.breaks(json.loads(path().read_text(encoding="utf-8")), schema)):
        raise ValueError(
            f"{path().name} is published, and this would break its readers: {'; '.join(broken)}. "
            "Keep what they read, or raise SCHEMA_VERSION in genaifactory_monitor/export.py."
        )
    begin, rest = PAGE.read_text(encoding="utf-8").split(_BEGIN)
    _, end = rest.split(_END)
    return {
        path(): json.dumps(schema, indent=2, ensure_ascii=False) + "\n",
        PAGE: f"{begin}{_BEGIN}\n\n{''.join(_tables(schema))}{_END}{end}",
    }


def comments() -> dict[str, str]:
    """The comments of the .proto files: on messages, fields and the values of enums, by full name."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "set"
        include = Path(grpc_tools.__file__).parent / "_proto"
        options = (f"-I{_PROTOS}", f"-I{include}", "--include_imports", "--include_source_info")
        if protoc.main(["protoc", *options, f"--descriptor_set_out={target}", _PROTO]) != 0:
            raise ValueError(f"protoc cannot read {_PROTO}; what it says is above.")
        files = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    return {name: text for file in files.file for name, text in _comments(file)}


def _comments(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[str, str]]:
    for location in file.source_code_info.location:
        if location.leading_comments and (name := _name(file, location.path)):
            yield f"{file.package}.{name}", " ".join(location.leading_comments.split())


def _name(file: descriptor_pb2.FileDescriptorProto, steps: Sequence[int]) -> str:
    """The full name of what a path of a SourceCodeInfo leads to; empty where that is no message, field or value."""
    names: list[str] = []
    at: Any = file
    inside = {_MESSAGES: "message_type", _ENUMS: "enum_type"}
    for kind, index in zip(steps[::2], steps[1::2], strict=False):
        if kind not in inside:
            return ""
        at = getattr(at, inside[kind])[index]
        names.append(at.name)
        if isinstance(at, descriptor_pb2.DescriptorProto):
            inside = {_FIELDS: "field", _NESTED_MESSAGES: "nested_type", _NESTED_ENUMS: "enum_type"}
        else:
            inside = {_VALUES: "value"} if isinstance(at, descriptor_pb2.EnumDescriptorProto) else {}
    return ".".join(names) if len(steps) % 2 == 0 else ""


def _tables(schema: dict[str, Any]) -> Iterator[str]:
    yield from _table(schema)
    for name, definition in schema["$defs"].items():
        yield f"### {name}\n\n{definition.get('description', '')}\n\n"
        yield from _table(definition)


def _table(schema: dict[str, Any]) -> Iterator[str]:
    yield "| field | type | what |\n| --- | --- | --- |\n"
    for name, field in schema["properties"].items():
        yield f"| `{name}` | {_type(field)} | {field.get('description', '')} |\n"
    yield "\n"


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in schema:
        return f"{schema['const']}"
    if "enum" in schema:
        return ", ".join(f'"{value}"' for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_type(choice) for choice in schema["anyOf"] if "pattern" not in choice or "format" in choice)
    if schema["type"] == "array":
        return f"list of {_type(schema['items'])}"
    return "moment" if schema.get("format") == "date-time" else str(schema["type"])


if __name__ == "__main__":
    try:
        files = rendered()
    except ValueError as error:
        sys.exit(str(error))
    for file, text in files.items():
        file.write_text(text, encoding="utf-8")
