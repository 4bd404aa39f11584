"""Tools that a model may call while it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from genaifactory.types.v1 import types_pb2
from genaifactory_orchestrator.answers.events import Emit
from genaifactory_orchestrator.models.backend import ToolCallDelta


class Toolset(Protocol):
    """Tools that belong together: one client's, one server's. Made for one answer, and so for one caller."""

    async def tools(self) -> Sequence[types_pb2.Tool]:
        """What the model is offered; no two have one name. Raises FactoryError."""
        ...

    async def call(self, call: ToolCallDelta) -> str | None:
        """Calls a tool that `tools` listed, with arguments that the output guardrail let pass; they need not fit the
        tool's schema.

        Returns the result as the model shall read it; None when it comes with the client's next request, so that the
        answer ends here. Raises FactoryError when the answer cannot go on; a failure that the model can act on is a
        result.
        """
        ...


class ClientTools:
    """The tools of the request: a call goes to the client."""

    def __init__(self, tools: Sequence[types_pb2.Tool], emit: Emit) -> None:
        self._tools = tools
        self._emit = emit

    async def tools(self) -> Sequence[types_pb2.Tool]:
        """As the client sent them."""
        return self._tools

    async def call(self, call: ToolCallDelta) -> None:
        """Hands the call over."""
        await self._emit(call)
