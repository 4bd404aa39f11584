"""Retrieval of passages: the query, the search, and its result."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import grpc.aio

from genaifactory.retriever.v1 import retriever_pb2, retriever_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, specs
from genaifactory_common.masking import question_without_masks

_MAX_QUERY_CHARACTERS = 8192
_MAX_EARLIER_CHARACTERS = 400
_SHORT_QUESTION_WORDS = 5
# Words that refer to an earlier message.
_POINTS_BACK = re.compile(
    r"\b(?:it|its|they|them|their|that|this|those|these|he|she|his|her|there|one|same|former|latter|what about|"
    r"how about|and for|nó|họ|đó|đấy|này|kia|ấy|vậy|thế|trên|còn|như trên)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class RetrievedPassages:
    """The result of a search."""

    passages: tuple[types_pb2.Passage, ...] = ()
    """Best first; marks of the answer number them from 1 in this order."""
    index_version: str = ""
    term_coverage: float = 0.0
    reading: types_pb2.Reading | None = None
    """Progress of an upload into the knowledge base; None when there is none."""

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the index version and of each passage's id and text; changes when either does."""
        digest = hashlib.sha256(self.index_version.encode())
        for passage in self.passages:
            for part in (passage.passage_id, passage.document_id, passage.text):
                data = part.encode()
                digest.update(len(data).to_bytes(8, "big"))
                digest.update(data)
        return digest.hexdigest()


NOTHING = RetrievedPassages()
SAMPLE_PASSAGES = 100
"""The most that a search may return."""


def query(history: Sequence[types_pb2.Message], messages: Sequence[types_pb2.Message]) -> str:
    """The text to search for: the question, and for a follow-up the question before it as well.

    A question is a follow-up when it is short or refers back ("and for managers?", "còn nhân viên thử việc?"). Masks of
    guardrails are removed; the result may be empty.
    """
    asked = [
        question_without_masks(message.content).strip()
        for message in (*history, *messages)
        if message.role == types_pb2.ROLE_USER
    ]
    if not asked:
        return ""
    question = asked[-1]
    earlier = asked[-2][:_MAX_EARLIER_CHARACTERS] if len(asked) > 1 else ""
    if earlier and (len(question.split()) <= _SHORT_QUESTION_WORDS or _POINTS_BACK.search(question)):
        question = f"{earlier}\n{question}"
    return question[-_MAX_QUERY_CHARACTERS:]  # a very long message has its question at the end


@dataclass(frozen=True)
class Scope:
    """What a request is searched for in."""

    route: specs.Route
    options: types_pb2.SearchOptions
    """The client's."""
    index_version: str
    """Empty: the active one."""


class Retrieval:
    """The retriever's client; the retriever restricts every search to the caller's tenant and groups."""

    def __init__(self, channel: grpc.aio.Channel, *, timeout_seconds: float) -> None:
        self._stub = retriever_pb2_grpc.RetrieverServiceStub(channel)
        self._timeout_seconds = timeout_seconds

    async def search(self, scope: Scope, text: str) -> RetrievedPassages:
        """The passages for a query; raises FactoryError."""
        return await self._search(scope, retriever_pb2.SearchRequest(query=text, limit=scope.route.passages))

    async def sample(self, scope: Scope, text: str, *, language: str) -> RetrievedPassages:
        """Up to SAMPLE_PASSAGES passages in the language; if there are more, those nearest to the text. Raises
        FactoryError."""
        return await self._search(
            scope,
            retriever_pb2.SearchRequest(
                query=text[:_MAX_QUERY_CHARACTERS],
                limit=SAMPLE_PASSAGES,
                mode=retriever_pb2.SEARCH_MODE_DENSE,  # also returns passages without a word of the text
                language=language,
            ),
        )

    async def _search(self, scope: Scope, request: retriever_pb2.SearchRequest) -> RetrievedPassages:
        request.knowledge_base = scope.route.knowledge_base or ""
        request.options.CopyFrom(scope.options)
        request.index_version = scope.index_version
        response = await channels.unary(self._stub.Search, request, timeout_seconds=self._timeout_seconds)
        reading = response.reading if response.HasField("reading") else None
        return RetrievedPassages(tuple(response.passages), response.index_version, response.term_coverage, reading)
