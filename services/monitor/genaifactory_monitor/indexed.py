"""The fields of an interaction with a column of their own: those to filter, sort and add up by."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import sqlalchemy as sa
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_monitor.message_dicts import enum_name, microseconds

# Column: path of its field in the message. A moment is stored in microseconds, an enum as its lower-case name.
FIELDS = {
    "tenant": "tenant",
    "request_id": "request_id",
    "start_time_us": "start_time",
    "key_id": "key_id",
    "route": "route",
    "model": "model",
    "prompt_version": "prompt_version",
    "index_version": "index_version",
    "outcome": "outcome",
    "cached": "cached",
    "refused": "refused",
    "prompt_tokens": "usage.prompt_tokens",
    "completion_tokens": "usage.completion_tokens",
    "cached_prompt_tokens": "usage.cached_prompt_tokens",
    "cost_micros": "cost_micros",
    "currency": "currency",
    "time_to_first_token_us": "time_to_first_token_us",
    "duration_us": "duration_us",
}
ADDED_UP = tuple(name for name in FIELDS if name not in ("start_time_us", "request_id"))
"""Columns that the sums by usage and release read."""
_values = attrgetter(*FIELDS.values())
_OUTCOMES = monitor_pb2.Outcome.DESCRIPTOR


def columns() -> list[sa.Column[Any]]:
    """The columns, with the types of their fields."""
    return [
        sa.Column(name, _type(monitor_pb2.Interaction.DESCRIPTOR, path), nullable=False)
        for name, path in FIELDS.items()
    ]


def values(message: monitor_pb2.Interaction) -> dict[str, Any]:
    """The values of a message's columns, by column."""
    row = dict(zip(FIELDS, _values(message), strict=True))
    row["start_time_us"] = microseconds(message.start_time)
    row["outcome"] = enum_name(_OUTCOMES, message.outcome)
    return row


def guardrail(message: monitor_pb2.Interaction) -> str:
    """The strongest action of a guardrail on it: "block", "mask" or ""."""
    strongest = max((verdict.action for verdict in message.verdicts), default=types_pb2.ACTION_UNSPECIFIED)
    acted = strongest in (types_pb2.ACTION_MASK, types_pb2.ACTION_BLOCK)
    return enum_name(types_pb2.Action.DESCRIPTOR, strongest) if acted else ""


def is_use(message: monitor_pb2.Interaction) -> bool:
    """Whether a user asked it, and neither an evaluation nor a tester who chose what answers."""
    return not message.evaluation and not message.arm_chosen


def shows_speed(message: monitor_pb2.Interaction) -> bool:
    """Whether its times measure its model's speed: those of a cached, blocked or failed answer do not."""
    return message.outcome == monitor_pb2.OUTCOME_ANSWERED and not message.cached


def _type(descriptor: Descriptor, path: str) -> type[sa.types.TypeEngine[Any]]:
    name, _, rest = path.partition(".")
    field = descriptor.fields_by_name[name]
    if rest:
        assert field.message_type is not None, "the path goes on"
        return _type(field.message_type, rest)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return sa.Boolean
    return sa.Text if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_ENUM) else sa.BigInteger
