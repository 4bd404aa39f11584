"""Parses a JSON body strictly: a body that parsers read differently is refused."""

from __future__ import annotations

import json
import math
from typing import Any

from google.protobuf.struct_pb2 import ListValue, Struct, Value

from genaifactory_common.conversation import check_characters
from genaifactory_common.errors import InvalidArgument

MAX_DEPTH = 32
"""Levels of objects and arrays. Each needs three of protobuf's 100 levels."""
MAX_VALUES = 100_000
"""Members of all objects and arrays together: far more than a request needs, and quickly checked."""


def parse(body: bytes, *, max_values: int = MAX_VALUES) -> dict[str, Any]:
    """The JSON object in `body`. max_values: members of all objects and arrays together. Raises InvalidArgument."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"The body must be JSON in UTF-8; byte {error.start} is not UTF-8.") from None
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidArgument(f"The body must be one JSON object; {where}: {error.msg}.") from None
    except RecursionError:
        raise _too_deep("") from None
    except ValueError:  # an integer with more digits than Python parses
        raise InvalidArgument("The body must be JSON with numbers of sensible size.") from None
    if not isinstance(value, dict):
        raise InvalidArgument('The body must be one JSON object, like {"model": …}.')
    _Check(max_values, check_texts="\\u" in text).walk(value, "", 1)
    return value


def struct(value: dict[str, Any], field: str) -> Struct:
    """A free-form JSON object as protobuf's Struct. field: its path, for errors. Raises InvalidArgument."""
    message = Struct()
    for key, item in value.items():
        _fill(message.fields[key], item, f"{field}.{key}")
    return message


def _fill(target: Value, item: Any, field: str) -> None:
    match item:
        case None:
            target.null_value = 0  # type: ignore[assignment]  # NULL_VALUE, whose stub is an enum
        case bool():
            target.bool_value = item
        case str():
            target.string_value = item
        case int() | float():
            number = float(item) if abs(item) < 1e308 else math.inf
            if not math.isfinite(number):
                raise InvalidArgument(f"'{field}' must be a finite number.", field=field)
            target.number_value = number
        case list():
            filled = ListValue()
            for index, element in enumerate(item):
                _fill(filled.values.add(), element, f"{field}[{index}]")
            target.list_value.CopyFrom(filled)
        case _:
            target.struct_value.CopyFrom(struct(item, field))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise InvalidArgument("A field appears twice in one object of the body; send it once.", field=key[:100])
            seen.add(key)
    return value


def _constant(name: str) -> Any:
    raise InvalidArgument(f"{name} is not JSON; send a finite number.")


class _Check:
    """Bounds depth and number of values, and refuses invalid characters, which only a \\u escape can produce."""

    def __init__(self, max_values: int, *, check_texts: bool) -> None:
        self._max_values = max_values
        self._check_texts = check_texts
        self._values = 0

    def walk(self, value: dict[str, Any] | list[Any], path: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _too_deep(path)
        self._values += len(value)
        if self._values > self._max_values:
            raise InvalidArgument(f"The body may hold at most {self._max_values} values.")
        keyed = isinstance(value, dict)
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(item, (dict, list)):
                self.walk(item, f"{path}.{key}" if keyed else f"{path}[{key}]", depth + 1)
            elif self._check_texts and isinstance(item, str):
                check_text(item, (f"{path}.{key}" if keyed else f"{path}[{key}]").removeprefix("."))
            if self._check_texts and isinstance(key, str):
                check_text(key, path.removeprefix(".") or "body")


def check_text(value: str, field: str) -> None:
    """Refuses characters that stores and tokenizers reject: NUL and lone surrogates. Raises InvalidArgument."""
    check_characters(value, field)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(
            f"'{field}' must be Unicode text; it contains half of a surrogate pair.", field=field
        ) from None


def _too_deep(path: str) -> InvalidArgument:
    return InvalidArgument(
        f"The body may nest at most {MAX_DEPTH} levels of objects and arrays.", field=path.removeprefix(".") or None
    )
