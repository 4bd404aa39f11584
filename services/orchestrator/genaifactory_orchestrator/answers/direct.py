"""Replies that need no model: small talk, and overviews of the documents.

A reply is composed from the caller's own search results, so it names no document that the caller may not read. The
output guardrail scans it as it does a model's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from genaifactory.types.v1 import types_pb2
from genaifactory_common import language
from genaifactory_common.masking import question_without_masks
from genaifactory_orchestrator.answers import overview, small_talk
from genaifactory_orchestrator.answers.request import CheckedRequest
from genaifactory_orchestrator.answers.retrieval import NOTHING, SAMPLE_PASSAGES, Retrieval, RetrievedPassages, Scope
from genaifactory_orchestrator.answers.small_talk import Talk


@dataclass(frozen=True)
class Reply:
    """A reply without a model."""

    text: str
    found: RetrievedPassages
    """Its cited passages."""


async def reply(
    question: CheckedRequest, messages: Sequence[types_pb2.Message], scope: Scope, retriever: Retrieval
) -> Reply | None:
    """The reply; None when the last message is a question for the documents. Raises FactoryError.

    None also for requests with tools or an output format, which a model has to answer.
    """
    last = messages[-1]
    if question.tools or question.output_format is not None or last.role != types_pb2.ROLE_USER:
        return None
    text = question_without_masks(last.content)
    if (talk := small_talk.recognised(text)) is not None:
        return await _small_talk(talk, text, scope, retriever)
    if (subject := overview.subject(text)) is not None:
        return await _overview(subject, text, scope, retriever)
    return None


async def _small_talk(talk: Talk, text: str, scope: Scope, retriever: Retrieval) -> Reply:
    sample = await _sample(text, talk.spoken, scope, retriever) if small_talk.needs_documents(talk) else NOTHING
    titles = overview.titles(sample.passages)
    complete = len(sample.passages) < SAMPLE_PASSAGES and len(titles) <= overview.MAX_DOCUMENTS
    said = small_talk.text(talk, titles[: overview.MAX_DOCUMENTS], complete=complete)
    return Reply(said, replace(sample, passages=()))


async def _overview(subject: str, text: str, scope: Scope, retriever: Retrieval) -> Reply | None:
    spoken = language.of_reply(text)
    sample = await _sample(text, spoken, scope, retriever)
    complete = len(sample.passages) < SAMPLE_PASSAGES
    if not complete and (named := overview.named(subject, sample.passages)):
        # A search for the question may return one passage of each document; one for their titles returns more.
        nearer = await _sample("\n".join(named[: overview.MAX_DOCUMENTS]), spoken, scope, retriever)
        sample = _united(sample, nearer)
    composed = overview.compose(subject, spoken, sample, complete=complete)
    return None if composed is None else Reply(*composed)


async def _sample(text: str, spoken: str, scope: Scope, retriever: Retrieval) -> RetrievedPassages:
    """Passages in the language, or in any language if there are none."""
    found = await retriever.sample(scope, text, language=spoken)
    return found if found.passages else await retriever.sample(scope, text, language="")


def _united(sample: RetrievedPassages, other: RetrievedPassages) -> RetrievedPassages:
    """The passages of both, if they are of the same index version; else the sample."""
    if other.index_version != sample.index_version:
        return sample
    passages = {passage.passage_id: passage for passage in (*sample.passages, *other.passages)}
    return replace(sample, passages=tuple(passages.values()))
