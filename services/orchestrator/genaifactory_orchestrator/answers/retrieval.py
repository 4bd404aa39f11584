"""What the passages are looked for with, and what was found."""

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
# Words that point back at what was said before.
_POINTS_BACK = re.compile(
    r"\b(?:it|its|they|them|their|that|this|those|these|he|she|his|her|there|one|same|former|latter|what about|"
    r"how about|and for|nó|họ|đó|đấy|này|kia|ấy|vậy|thế|trên|còn|như trên)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class RetrievedPassages:
    """What retrieval came to."""

    passages: tuple[types_pb2.Passage, ...] = ()
    """Best first; the marks of the answer count from 1 in this order."""
    index_version: str = ""
    term_coverage: float = 0.0
    reading: types_pb2.Reading | None = None
    """How far an upload into the knowledge base is; None when none goes on."""

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
"""As many as a search may return."""


def query(history: Sequence[types_pb2.Message], messages: Sequence[types_pb2.Message]) -> str:
    """What to search for: the question; for a follow-up, the question before it as well.

    A question is a follow-up when it is short or points back ("and for managers?", "còn nhân viên thử việc?"). What
    a guardrail masked is left out; a question of nothing else is empty.
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
    return question[-_MAX_QUERY_CHARACTERS:]  # the question stands at the end of a very long message


class Retrieval:
    """Searches at the retriever, which bounds every search by the caller's tenant and groups."""

    def __init__(self, channel: grpc.aio.Channel, *, timeout_seconds: float) -> None:
        self._stub = retriever_pb2_grpc.RetrieverServiceStub(channel)
        self._timeout_seconds = timeout_seconds

    async def search(self, route: specs.Route, text: str) -> RetrievedPassages:
        """The passages for a query; raises FactoryError."""
        return await self._search(
            retriever_pb2.SearchRequest(knowledge_base=route.knowledge_base or "", query=text, limit=route.passages)
        )

    async def sample(self, route: specs.Route, text: str, *, language: str) -> RetrievedPassages:
        """Up to SAMPLE_PASSAGES passages, of any kind and in the language; those nearest to the text where there are
        more. Raises FactoryError."""
        return await self._search(
            retriever_pb2.SearchRequest(
                knowledge_base=route.knowledge_base or "",
                query=text[:_MAX_QUERY_CHARACTERS],
                limit=SAMPLE_PASSAGES,
                mode=retriever_pb2.SEARCH_MODE_DENSE,  # which returns passages without a word of the text, too
                language=language,
            )
        )

    async def _search(self, request: retriever_pb2.SearchRequest) -> RetrievedPassages:
        response = await channels.unary(self._stub.Search, request, timeout_seconds=self._timeout_seconds)
        reading = response.reading if response.HasField("reading") else None
        return RetrievedPassages(tuple(response.passages), response.index_version, response.term_coverage, reading)
