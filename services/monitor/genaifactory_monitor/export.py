"""Exports interactions with their feedback as lines of JSON, for replay and for data sets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_monitor import converters, message_schema, store
from genaifactory_monitor.database import Database
from genaifactory_monitor.message_dicts import to_dict
from genaifactory_monitor.records import Feedback, Filter, Position

SCHEMA_VERSION = 1
"""The N of docs/schemas/interaction-vN.schema.json, in every line. It grows with a change that breaks readers."""
_PAGE = 200
_PAGE_BYTES = 1024 * 1024


async def lines(database: Database, filter_: Filter) -> AsyncIterator[tuple[bytes, int]]:
    """Pieces of JSONL, oldest interaction first, and how many interactions each holds.

    A piece holds whole lines. Memory is bounded by a page, and no transaction is open while a reader is slow. What is
    recorded meanwhile is exported if it comes later in the order. Raises Unavailable.
    """
    after: Position | None = None
    while True:
        page = await store.page(database, filter_, after=after, limit=_PAGE, max_bytes=_PAGE_BYTES, newest_first=False)
        if not page.interactions:
            return
        feedback = await store.feedback_on(database, filter_.tenant, [i.request_id for i in page.interactions])
        yield (
            b"".join(line(item, feedback.get(item.request_id, ())) for item in page.interactions),
            len(page.interactions),
        )
        if page.next is None:
            return
        after = page.next


def schema(comments: Mapping[str, str]) -> dict[str, Any]:
    """The JSON Schema of a line. comments: see `message_schema.definition`."""
    definitions: dict[str, Any] = {}
    schema = message_schema.definition(monitor_pb2.Interaction.DESCRIPTOR, comments, definitions)
    definitions["Feedback"] = message_schema.definition(monitor_pb2.Feedback.DESCRIPTOR, comments, definitions)
    version = {"description": "Version of this schema.", "const": SCHEMA_VERSION}
    given = {"description": "In the order of arrival.", "type": "array", "items": {"$ref": "#/$defs/Feedback"}}
    fields = {name: field for name, field in schema["properties"].items() if name not in converters.NOT_KEPT}
    properties = {"schema_version": version, **fields, "feedback": given}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"A line of an export of interactions, version {SCHEMA_VERSION}",
        **schema,
        "properties": properties,
        "required": list(properties),
        "$defs": definitions,
    }


def line(item: monitor_pb2.Interaction, feedback: Sequence[Feedback]) -> bytes:
    """One interaction as a line of UTF-8 JSON, with its line feed."""
    values = {"schema_version": SCHEMA_VERSION, **to_dict(item)}
    for name in converters.NOT_KEPT:
        del values[name]
    values["feedback"] = [to_dict(converters.feedback_message(given)) for given in feedback]
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
