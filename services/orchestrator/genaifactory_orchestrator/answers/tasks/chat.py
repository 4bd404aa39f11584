"""The task `chat`: a model answers the conversation."""

from __future__ import annotations

from collections.abc import Sequence

from genaifactory.types.v1 import types_pb2
from genaifactory_orchestrator.answers.events import Done
from genaifactory_orchestrator.answers.request import CheckedRequest
from genaifactory_orchestrator.answers.routes import Plan
from genaifactory_orchestrator.answers.tasks.protocol import Findings
from genaifactory_orchestrator.answers.writer import Writer


class Chat:
    """Implements Task."""

    async def look_up(
        self,
        plan: Plan,
        question: CheckedRequest,
        history: Sequence[types_pb2.Message],
        messages: Sequence[types_pb2.Message],
    ) -> Findings:
        """Looks nothing up."""
        return Findings()

    async def answer(self, writer: Writer, findings: Findings) -> Done:
        """Answers in one turn; tool calls go to the client."""
        await writer.write(writer.prompt(), writer.client_tools)
        return writer.done()
