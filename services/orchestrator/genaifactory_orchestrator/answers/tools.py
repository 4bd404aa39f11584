"""Tools that a model may call while it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from genaifactory.types.v1 import types_pb2
from genaifactory_orchestrator.answers.events import Emit
from genaifactory_orchestrator.models.backend import ToolCallDelta


class Toolset(Protocol):
    """Tools of one source: a client, a server. Made for one answer, and so for one caller."""

    async def tools(self) -> Sequence[types_pb2.Tool]:
        """The tools that are offered to the model, with distinct names. Raises FactoryError."""
        ...

    async def call(self, call: ToolCallDelta) -> str | None:
        """Calls a tool of `tools`, with arguments that the output guardrail has passed; they may violate the tool's
        schema.

        Returns the result for the model; None when it comes with the client's next request, so that the answer ends
        here. Raises FactoryError when the answer cannot continue; a failure that the model can handle is a result.
        """
        ...


class ClientTools:
    """The tools of the request, whose calls are sent to the client."""

    def __init__(self, tools: Sequence[types_pb2.Tool], emit: Emit) -> None:
        self._tools = tools
        self._emit = emit

    async def tools(self) -> Sequence[types_pb2.Tool]:
        """The tools as the client sent them."""
        return self._tools

    async def call(self, call: ToolCallDelta) -> None:
        """Sends the call to the client."""
        await self._emit(call)
