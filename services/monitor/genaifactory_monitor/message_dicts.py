"""Protobuf messages as JSON-able values and back, in the form of exports; `message_schema` makes its JSON Schema.

Names are those of the .proto files; enums are lower-case names without their prefix ("user" for ROLE_USER); 64-bit
integers stay numbers, where protobuf's own JSON makes them strings; moments are RFC 3339 in UTC; every field is
present, so that a reader needs no defaults.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple, TypeVar

from google.protobuf import json_format, struct_pb2, timestamp_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)
MOMENT = timestamp_pb2.Timestamp.DESCRIPTOR.full_name
OBJECT = struct_pb2.Struct.DESCRIPTOR.full_name
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_dict(message: Message) -> dict[str, Any]:
    """The message as a dict; an unset message is None, and so are bytes, which are not stored."""
    values: dict[str, Any] = {}
    for field in _plan(message.DESCRIPTOR):
        value = getattr(message, field.name)
        if field.repeated:
            values[field.name] = [field.plain(item) for item in value]
        elif field.optional and not message.HasField(field.name):
            values[field.name] = None
        else:
            values[field.name] = field.plain(value)
    return values


def from_dict(kind: type[M], values: Mapping[str, Any]) -> M:
    """The message of a dict from `to_dict`, also of an older or newer .proto file, without moments and objects."""
    message = kind()
    _fill(message, values)
    return message


def enum_name(kind: EnumDescriptor, number: int) -> str:
    """The lower-case name without the prefix; the number's digits for a value that this version does not define."""
    return _names(kind).get(number, str(number))


def enum_number(kind: EnumDescriptor, name: str) -> int:
    """The number of a name; 0 for a name that this version does not define."""
    return next((number for number, known in _names(kind).items() if known == name), 0)


def without_nul(text: str) -> str:
    """The text with U+0000 replaced: PostgreSQL cannot store it, and the record must not be lost."""
    return text.replace("\0", "\ufffd") if "\0" in text else text


def make_storable(message: Message) -> None:
    """Replaces U+0000 in texts and clears fields of bytes, in place."""
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_BYTES:
            message.ClearField(field.name)
        elif field.type == FieldDescriptor.TYPE_STRING:
            if field.is_repeated:
                value[:] = [without_nul(text) for text in value]
            else:
                setattr(message, field.name, without_nul(value))
        elif field.message_type is not None:
            for item in value if field.is_repeated else (value,):
                make_storable(item)


def clock_us() -> int:
    """Microseconds since 1970, by this machine's clock."""
    return time.time_ns() // 1000


def microseconds(moment: timestamp_pb2.Timestamp) -> int:
    """Since 1970 in UTC."""
    return moment.seconds * 1_000_000 + moment.nanos // 1000


def timestamp(moment_us: int) -> timestamp_pb2.Timestamp:
    """The message of microseconds since 1970 in UTC."""
    seconds, micros = divmod(moment_us, 1_000_000)
    return timestamp_pb2.Timestamp(seconds=seconds, nanos=micros * 1000)


class _Field(NamedTuple):
    name: str
    repeated: bool
    optional: bool
    plain: Callable[[Any], Any]
    enum: EnumDescriptor | None
    message: bool


@cache
def _plan(descriptor: Descriptor) -> tuple[_Field, ...]:
    return tuple(
        _Field(
            field.name,
            field.is_repeated,
            field.has_presence,
            _converter(field),
            field.enum_type,
            field.message_type is not None,
        )
        for field in descriptor.fields
    )


def _converter(field: FieldDescriptor) -> Callable[[Any], Any]:
    if field.message_type is not None:
        return _OWN_FORM.get(field.message_type.full_name, to_dict)
    if field.enum_type is not None:
        kind = field.enum_type
        return lambda number: enum_name(kind, number)
    if field.type == FieldDescriptor.TYPE_FLOAT:
        return lambda number: round(number, 6)  # a 32-bit float without the noise of its conversion
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _left_out  # records hold a digest in their place
    return _itself


def _rfc3339(moment: timestamp_pb2.Timestamp) -> str:
    value = _EPOCH + timedelta(microseconds=microseconds(moment))
    return value.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _itself(value: Any) -> Any:
    return value


def _left_out(value: Any) -> None:
    return None


_OWN_FORM: dict[str, Callable[[Any], Any]] = {MOMENT: _rfc3339, OBJECT: json_format.MessageToDict}


@cache
def _names(kind: EnumDescriptor) -> dict[int, str]:
    prefix = "".join(f"_{c}" if c.isupper() else c.upper() for c in kind.name).lstrip("_") + "_"
    return {value.number: value.name.removeprefix(prefix).lower() for value in kind.values}


def _fill(message: Message, values: Mapping[str, Any]) -> None:
    for field in _plan(message.DESCRIPTOR):
        value = values.get(field.name)
        if value is None:
            continue
        if field.message and field.repeated:
            items = getattr(message, field.name)
            for item in value:
                _fill(items.add(), item)
        elif field.message:
            _fill(getattr(message, field.name), value)
        elif field.repeated:
            getattr(message, field.name).extend(value)
        else:
            setattr(message, field.name, enum_number(field.enum, value) if field.enum is not None else value)
