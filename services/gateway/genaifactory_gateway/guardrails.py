"""Checks texts by a guardrail policy, for what is made of records."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc.aio

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.safety.v1 import safety_pb2, safety_pb2_grpc
from genaifactory_common import channels, conversation
from genaifactory_common.concurrency import task_group
from genaifactory_common.errors import InvalidArgument, TooLarge
from genaifactory_gateway.admission import Entry
from genaifactory_gateway.limits import Amounts
from genaifactory_gateway.twins import twin

_AT_ONCE = 4


class Guardrails:
    """Safety's check, for requests admitted with the permission 'export'."""

    def __init__(self, safety: grpc.aio.Channel, *, timeout_seconds: float) -> None:
        """timeout_seconds: for one text."""
        self._safety = safety_pb2_grpc.SafetyServiceStub(safety)
        self._timeout_seconds = timeout_seconds

    async def check(self, entry: Entry, request: gateway_pb2.CheckTextsRequest) -> gateway_pb2.CheckTextsResponse:
        """The verdict on each text. Raises FactoryError, also when a single text cannot be checked."""
        _require_bounds(request.texts)
        amounts: Amounts = {"tokens": sum(map(conversation.estimated_tokens, request.texts))}
        await entry.reserve(amounts)
        entry.used(amounts)  # also when a check fails: the scan is the cost
        places = asyncio.Semaphore(_AT_ONCE)

        async def one(text: str) -> gateway_pb2.CheckedText:
            inner = safety_pb2.CheckTextRequest(direction=request.direction, text=text, policy=request.policy)
            async with places:
                found = await channels.unary(self._safety.CheckText, inner, timeout_seconds=self._timeout_seconds)
            return twin(found, gateway_pb2.CheckedText)

        async with task_group() as group:
            tasks = [group.create_task(one(text)) for text in request.texts]
        return gateway_pb2.CheckTextsResponse(texts=[task.result() for task in tasks])


def _require_bounds(texts: Sequence[str]) -> None:
    most = conversation.MAX_CHECKED_TEXTS
    if not 1 <= len(texts) <= most:
        raise InvalidArgument(f"'texts' must hold 1 to {most} texts, and holds {len(texts)}.", field="texts")
    if (characters := sum(map(len, texts))) > conversation.MAX_CHARACTERS:
        raise TooLarge(
            f"'texts' has {characters:,} characters; at most {conversation.MAX_CHARACTERS:,} are accepted in one call.",
            field="texts",
        )
