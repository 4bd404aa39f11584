"""The task `rag`: a model answers from passages of a knowledge base and cites them, or the answer is a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from genaifactory.types.v1 import types_pb2
from genaifactory_common import images, telemetry
from genaifactory_common.telemetry import Telemetry
from genaifactory_orchestrator.answers import citations, direct, refusal, retrieval
from genaifactory_orchestrator.answers.events import Done
from genaifactory_orchestrator.answers.request import CheckedRequest
from genaifactory_orchestrator.answers.retrieval import NOTHING, Retrieval, RetrievedPassages, Scope
from genaifactory_orchestrator.answers.routes import Plan
from genaifactory_orchestrator.answers.tasks.protocol import Findings
from genaifactory_orchestrator.answers.writer import Writer


@dataclass(frozen=True)
class RagFindings(Findings):
    """The passages, or a reply that needs no model."""

    found: RetrievedPassages = NOTHING
    reply: str | None = None
    """Small talk or an overview, which cites the passages."""


class Rag:
    """Implements Task."""

    def __init__(self, retriever: Retrieval, service_telemetry: Telemetry) -> None:
        self._retriever = retriever
        self._telemetry = service_telemetry

    async def look_up(
        self,
        plan: Plan,
        question: CheckedRequest,
        history: Sequence[types_pb2.Message],
        messages: Sequence[types_pb2.Message],
    ) -> RagFindings:
        """Looks up passages for the question; for small talk and overviews, the reply and its cited passages."""
        query = retrieval.query(history, messages)
        if not query:
            return RagFindings()
        scope = Scope(plan.route, question.search_options, plan.index_version)
        with self._telemetry.span("retrieve"):
            # Replies without a model cannot use images.
            shown = images.first(messages) is not None
            reply = None if shown else await direct.reply(question, messages, scope, self._retriever)
            found = await self._retriever.search(scope, query) if reply is None else reply.found
            telemetry.describe(
                {"genaifactory.passages": len(found.passages), "genaifactory.index_version": found.index_version}
            )
            return RagFindings(found, None if reply is None else reply.text)

    async def answer(self, writer: Writer, findings: RagFindings) -> Done:
        """Replies without a model where none is needed; refuses where the passages lack the question's terms."""
        found, plan = findings.found, writer.plan
        if findings.reply is not None:
            return await writer.say_checked(findings.reply, found.passages)
        if not found.passages or found.term_coverage < plan.route.min_term_coverage:
            return await writer.refuse()
        await writer.write(writer.prompt(found.passages), writer.client_tools, marks=len(found.passages))
        text = writer.text
        return writer.done(citations.find(text, found.passages), refused=refusal.is_refusal(text, plan.prompt))
