"""The JSON Schema of `message_dicts.to_dict`'s values, from a message's descriptor and .proto file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from genaifactory_monitor.message_dicts import MOMENT, OBJECT, enum_name

Json = dict[str, Any]
_KINDS: dict[int, Json] = {
    FieldDescriptor.CPPTYPE_STRING: {"type": "string"},
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.CPPTYPE_FLOAT: {"type": "number"},
    FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number"},
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer"},
    FieldDescriptor.CPPTYPE_INT64: {"type": "integer"},
    FieldDescriptor.CPPTYPE_UINT32: {"type": "integer", "minimum": 0},
    FieldDescriptor.CPPTYPE_UINT64: {"type": "integer", "minimum": 0},
}


def definition(kind: Descriptor, comments: Mapping[str, str], definitions: dict[str, Json]) -> Json:
    """The schema of an object; those of the messages within it are added to `definitions`.

    comments: of messages, fields and enum values, by full name. Fields that a later version adds are allowed.
    """
    properties = {field.name: _field(field, comments, definitions) for field in kind.fields}
    schema: Json = {"type": "object", "properties": properties, "required": list(properties)}
    return _described(schema, comments.get(kind.full_name, ""))


def breaks(old: Json, new: Json, path: str = "") -> list[str]:
    """The changes that break a reader of the old schema; empty: it can read lines of the new one.

    Allowed are new fields, new values of an enum, and other descriptions.
    """
    changed = [key for key in ("type", "$ref", "format", "pattern", "const") if old.get(key) != new.get(key)]
    found = [f"{path or 'the line'}: {key} was {old.get(key)!r} and is {new.get(key)!r}" for key in changed]
    absent = [name for name in old.get("required", ()) if name not in new.get("required", ())]
    found += [f"{path}/{name}: was always there, and is not" for name in absent]
    gone = [value for value in old.get("enum", ()) if value not in new.get("enum", ())]
    found += [f"{path}: '{value}' was a value, and is none" for value in gone]
    for group in ("properties", "$defs"):
        for name, schema in old.get(group, {}).items():
            if name in new.get(group, {}):
                found += breaks(schema, new[group][name], f"{path}/{name}")
    if "items" in old and "items" in new:
        found += breaks(old["items"], new["items"], f"{path}[]")
    choices, new_choices = old.get("anyOf", []), new.get("anyOf", [])
    if len(choices) != len(new_choices):
        found.append(f"{path}: had {len(choices)} forms, and has {len(new_choices)}")
    for choice, new_choice in zip(choices, new_choices, strict=False):
        found += breaks(choice, new_choice, path)
    return found


def _field(field: FieldDescriptor, comments: Mapping[str, str], definitions: dict[str, Json]) -> Json:
    schema = _value(field, comments, definitions)
    if field.is_repeated:
        schema = {"type": "array", "items": schema}
    elif field.has_presence and schema.get("type") != "null":
        schema = {"anyOf": [schema, {"type": "null"}]}
    return _described(schema, comments.get(field.full_name, ""))


def _value(field: FieldDescriptor, comments: Mapping[str, str], definitions: dict[str, Json]) -> Json:
    if field.enum_type is not None:
        return _enum(field.enum_type, comments)
    if field.message_type is None:
        return {"type": "null"} if field.type == FieldDescriptor.TYPE_BYTES else dict(_KINDS[field.cpp_type])
    kind = field.message_type
    if kind.full_name == MOMENT:
        return {"type": "string", "format": "date-time", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$"}
    if kind.full_name == OBJECT:
        return {"type": "object"}
    if kind.name not in definitions:
        definitions[kind.name] = {}  # ends the recursion for a message that contains itself
        definitions[kind.name] = definition(kind, comments, definitions)
    return {"$ref": f"#/$defs/{kind.name}"}


def _enum(kind: EnumDescriptor, comments: Mapping[str, str]) -> Json:
    """Its names, or the number of a value that a later version declares."""
    values = [enum_name(kind, value.number) for value in kind.values]
    meanings = (
        f"{enum_name(kind, value.number)}: {comments[name]}"
        for value in kind.values
        if (name := f"{kind.full_name}.{value.name}") in comments
    )
    return {"anyOf": [_described({"enum": values}, " ".join(meanings)), {"type": "string", "pattern": "^-?[0-9]+$"}]}


def _described(schema: Json, description: str) -> Json:
    return {"description": description, **schema} if description else schema
