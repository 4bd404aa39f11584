"""Converts between messages that the gateway's contract and an inner one declare alike."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message

Twin = TypeVar("Twin", bound=Message)


def twin(message: Message, kind: type[Twin]) -> Twin:
    """The content as a message of the other contract; unknown fields are left out.

    kind: declares the same fields with the same numbers; tests/unit/gateway/test_twins.py compares them.
    """
    copied = kind.FromString(message.SerializeToString())
    copied.DiscardUnknownFields()
    return copied
