"""Describes the changes from one factory.yaml to the next: by path and name, without secrets and long texts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from pydantic import BaseModel

_AFTER_A_RESTART = "in force after a restart of the model server"
_WITH_THE_NEXT_INDEX = "in force with the next index that is built"
_IN_AN_INDEX = re.compile(r"\]\.(chunk_tokens|chunk_overlap_tokens|embedder)\b")
# Texts that name something. Any other text may be long, private or secret, and is described as "changed".
_SHOWN = frozenset(
    {
        "allowed_origins", "backend", "currency", "dialect", "entities", "groups", "id", "images",
        "input",
        "kind", "knowledge_base", "knowledge_bases", "languages", "model", "models", "name", "output", "permissions",
        "policy", "prefix_cache", "prompt", "role", "route", "routes", "strategy", "task", "tenants", "tool_parser",
        "type", "unit",
    }
)  # fmt: skip


def between(before: BaseModel, after: BaseModel) -> Iterator[str]:
    """One line for each difference: "routes[rag].models: [extractive] -> [qwen, extractive]"."""
    for name in type(after).model_fields:
        yield from _value(name, name, getattr(before, name), getattr(after, name))


def _value(path: str, field: str, before: object, after: object) -> Iterator[str]:
    if before == after:
        return
    if isinstance(before, BaseModel) and isinstance(after, BaseModel) and type(before) is type(after):
        for name in type(after).model_fields:
            yield from _value(f"{path}.{name}", name, getattr(before, name), getattr(after, name))
    elif _are_parts(before) and _are_parts(after):
        yield from _parts(path, _by_name(before), _by_name(after))
    elif isinstance(before, Mapping) and isinstance(after, Mapping):
        yield from _parts(path, dict(before), dict(after))
    else:
        yield _noted(path, f"{path}: {_change(field, before, after)}")


def _parts(path: str, before: Mapping[str, object], after: Mapping[str, object]) -> Iterator[str]:
    """Changes of items by their names."""
    for name in before:
        if name not in after:
            yield _noted(path, f"{path}[{name}]: removed")
    for name, value in after.items():
        if name not in before:
            yield _noted(path, f"{path}[{name}]: added")
        else:
            yield from _value(f"{path}[{name}]", "", before[name], value)
    both = [name for name in before if name in after]
    if both != [name for name in after if name in before]:
        yield _noted(path, f"{path}: in another order")


def _change(field: str, before: object, after: object) -> str:
    shown = [_written(field, each) for each in (before, after)]
    return "changed" if None in shown else f"{shown[0]} -> {shown[1]}"


def _written(field: str, value: object) -> str | None:
    """The value as text; None: it must not be shown."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        return value if field in _SHOWN else None
    if isinstance(value, Sequence):
        parts = [_written(field, each) for each in value]
        return None if None in parts else f"[{', '.join(part for part in parts if part is not None)}]"
    return None


def _are_parts(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(each, BaseModel) for each in value)


def _by_name(parts: object) -> dict[str, object]:
    assert isinstance(parts, tuple)
    return {_name(part, number): part for number, part in enumerate(parts)}


def _name(part: BaseModel, number: int) -> str:
    """The name that the document's checks require to be unique; an item without one has its position."""
    fields = vars(part)
    for field in ("name", "id", "model"):
        if field in fields:
            return f"{fields[field]}@{fields['version']}" if "version" in fields else str(fields[field])
    return str(number)


def _noted(path: str, line: str) -> str:
    """The line, with when the change takes effect if that is not now."""
    if path.startswith("engines") and ".adapters.serve" not in path:
        return f"{line} ({_AFTER_A_RESTART})"
    if path.startswith("knowledge_bases[") and _IN_AN_INDEX.search(path):
        return f"{line} ({_WITH_THE_NEXT_INDEX})"
    return line
