"""One index version: its name and embedder, its creation and rebuild, and the check against the library."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from genaifactory_common import specs
from genaifactory_common.errors import Conflict, FactoryError, InvalidArgument, OutOfSpace, Unavailable
from genaifactory_retriever.embedders.protocol import Embedder
from genaifactory_retriever.embedders.registry import Embedders
from genaifactory_retriever.encoding import Encoder, Encoding
from genaifactory_retriever.library import Library
from genaifactory_retriever.stored import Embedding, Index, State
from genaifactory_retriever.vectors.protocol import Point, Vectors, Where, point_id

logger = logging.getLogger(__name__)

_PROBES = 8
"""Stored passages that a check searches for."""
_COMPARED = 256
"""Passages in memory at a time during a comparison."""
_BATCH = 16
"""Documents in memory at a time during a rebuild."""
_ROUNDING = 1e-3
"""Tolerance for dot products of unit vectors in 32-bit floats; damage causes far greater differences."""


@dataclass(frozen=True)
class Progress:
    """The progress of a build."""

    version: str
    passages_done: int
    passages_total: int
    """Of the active version; the new one may have another number."""
    state: State
    problem: str = ""
    """Why the check failed."""


def index_name(index: Index) -> str:
    """Its name in the vector store."""
    return f"{index.knowledge_base}--{index.version}"


async def create(
    spec: specs.KnowledgeBase, embedder: Embedder, library: Library, vectors: Vectors, idempotency_key: str
) -> Index:
    """Creates an empty version under the next name, in the state building. embedder: of the spec, loaded."""
    index = Index(
        id=0,
        knowledge_base=spec.name,
        version="",
        state="building",
        chunk_tokens=spec.chunk_tokens,
        overlap_tokens=spec.chunk_overlap_tokens,
        create_time=time.time(),
        idempotency_key=idempotency_key,
        embedding=None,
    )
    made_by = Embedding(spec.embedder, embedder.dimensions, embedder.digest)
    index = await library.run(library.add_index, index, made_by)
    try:
        await vectors.create(index_name(index), embedder.dimensions)
    except BaseException:
        failed: dict[int, State] = {index.id: "failed"}  # else its key would refuse another try as a running build
        await library.run(library.set_states, failed)
        raise
    return index


async def embedder_of(index: Index, spec: specs.KnowledgeBase, library: Library, embedders: Embedders) -> Embedder:
    """The embedder that made a version's vectors; factory.yaml may have another place for it now.

    When it cannot be loaded any more, or only with other files: raises Unavailable for the version that serves, and
    returns a LostEmbedder for another.
    """
    recorded = index.embedding
    if recorded is None:
        first = specs.MiniLMEmbedder()
        embedder = await embedders.load(first)
        made_by = Embedding(first, embedder.dimensions, embedder.digest)
        await library.run(library.record_embedding, index.id, made_by)
        return embedder
    places = [spec.embedder] if type(spec.embedder) is type(recorded.embedder) else []
    why = ""
    for place in dict.fromkeys((*places, recorded.embedder)):
        try:
            embedder = await embedders.load(place)
        except FactoryError as error:
            why = error.message
            continue
        if (embedder.dimensions, embedder.digest) == (recorded.dimensions, recorded.digest):
            return embedder
        why = "it has other files or settings than it had then."
    lost = (
        f"The index version '{index.version}' of '{index.knowledge_base}' was made with the embedder "
        f"'{recorded.embedder.model}', which cannot be had any more: {why} Bring it back as it was, or name the place "
        "where it is now as the embedder of the knowledge base"
    )
    field = f"knowledge_bases[{index.knowledge_base}].embedder"
    if index.state == "active":
        raise Unavailable(f"{lost}; then build a version with another embedder and drop this one.", field=field)
    message = f"{lost}, and restart; or drop the version, which does not serve: `genaifactory indexes drop`."
    logger.error("%s Until then no document of it can be written.", message)
    return LostEmbedder(recorded, message, field)


class LostEmbedder:
    """Stands for the embedder of a version that does not serve and cannot be loaded, so that the others still work."""

    texts_at_once = 1
    max_tokens = None
    is_remote = False

    def __init__(self, recorded: Embedding, message: str, field: str) -> None:
        """message, field: of the error of each call."""
        self.dimensions = recorded.dimensions
        self.digest = recorded.digest
        self._message = message
        self._field = field

    def embed_passages(self, texts: Sequence[str]) -> list[list[float]]:
        """Raises Unavailable."""
        raise self.error()

    def embed_query(self, text: str) -> list[float]:
        """Raises Unavailable."""
        raise self.error()

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        """Raises Unavailable."""
        raise self.error()

    def error(self) -> Unavailable:
        """For each call a new one."""
        return Unavailable(self._message, field=self._field)


def require_length(spec: specs.KnowledgeBase, embedder: Embedder) -> None:
    """Raises InvalidArgument when the embedder would ignore the ends of the spec's passages."""
    if embedder.max_tokens is not None and spec.chunk_tokens > embedder.max_tokens:
        raise InvalidArgument(
            f"The embedder '{spec.embedder.model}' reads {embedder.max_tokens} tokens of a passage, and chunk_tokens "
            f"is {spec.chunk_tokens}; set chunk_tokens to less.",
            field=f"knowledge_bases[{spec.name}].chunk_tokens",
        )


def require(embedder: Embedder) -> None:
    """Raises Unavailable for one that is lost."""
    if isinstance(embedder, LostEmbedder):
        raise embedder.error()


async def open_or_create(index: Index, embedder: Embedder, vectors: Vectors) -> str | None:
    """Opens a version; one that is damaged on this process's own disk is created anew, without passages.

    Returns what was wrong with it. Raises Unavailable.
    """
    try:
        await vectors.open(index_name(index))
    except Unavailable as error:
        if not vectors.owned or isinstance(error, OutOfSpace):
            raise
        await vectors.create(index_name(index), embedder.dimensions)
        return error.message
    return None


async def built(knowledge_base: str, idempotency_key: str, library: Library) -> Index | None:
    """The version that was built with this key. Raises Conflict while it is being built, or when it was dropped."""
    if not idempotency_key:
        return None
    indexes = await library.run(library.indexes, knowledge_base)
    known = next((index for index in indexes if index.idempotency_key == idempotency_key), None)
    if known is None or known.state == "failed":
        return None
    if known.state == "dropped":
        raise Conflict(
            f"The index version '{known.version}' was built with this key and dropped since; use a new key.",
            field="idempotency_key",
        )
    if known.state == "building":
        raise Conflict(f"The index version '{known.version}' is being built with this key.", field="idempotency_key")
    return known


async def problem(index: Index, library: Library, vectors: Vectors) -> str | None:
    """The problem of a version, None for a sound one: compares counts, and searches for some stored passages.

    For a version without concurrent writes. Raises Unavailable when the library cannot be read.
    """
    expected = await library.run(library.all_passages, index.id)
    revisions = await library.run(library.indexed_revisions, index.knowledge_base)
    step = max(1, len(revisions) // _PROBES)
    probes = [point_id(revision, 0) for revision in revisions[::step][:_PROBES]]
    try:
        found = await vectors.count(index_name(index))
        if found != expected:
            return f"it holds {found} passages of {expected}"
        points = await vectors.points(index_name(index), probes)
        if len(points) != len(probes):
            return f"{len(probes) - len(points)} of {len(probes)} documents are missing"
        for point in points:
            if not 1 - _ROUNDING < math.hypot(*point.dense) < 1 + _ROUNDING:
                return f"a passage of document '{point.passage.document_id}' has a vector that is not of unit length"
            if not await _finds_itself(point, index, vectors):
                return f"a search for a passage of document '{point.passage.document_id}' does not find it"
    except Unavailable as error:
        return error.message
    return None


async def unequal(index: Index, revisions: Sequence[int], library: Library, vectors: Vectors) -> dict[int, str]:
    """Revision -> problem, of live documents that a version lacks, or has for other tenants or groups than the library.

    All passages of a document are written with the same access list, so its first one is compared.
    """
    problems: dict[int, str] = {}
    for begin in range(0, len(revisions), _COMPARED):
        expected = await library.run(library.access, revisions[begin : begin + _COMPARED])
        found = await vectors.passages(index_name(index), [point_id(revision, 0) for revision in expected])
        for revision, access in expected.items():
            passage = found.get(point_id(revision, 0))
            if passage is None:
                problems[revision] = f"it has no passage of document '{access.document_id}'"
            elif (passage.tenant, tuple(passage.allowed_groups)) != (access.tenant, access.allowed_groups):
                problems[revision] = f"document '{access.document_id}' has another access list in it"
    return problems


async def rebuild(
    index: Index, why: str, library: Library, vectors: Vectors, encoder: Encoder, encoding: Encoding
) -> None:
    """Writes a version's points again from the library. For a version that is not in use yet."""
    revisions = await library.run(library.indexed_revisions, index.knowledge_base)
    name = index_name(index)
    logger.warning(
        "the index '%s' is damaged (%s); it is rebuilt from the %d stored documents", name, why, len(revisions)
    )
    await vectors.create(name, encoding.embedder.dimensions)
    for begin in range(0, len(revisions), _BATCH):
        loaded = [(r, await library.run(library.load, r)) for r in revisions[begin : begin + _BATCH]]
        present = [(revision, document) for revision, document in loaded if document is not None]
        passages = await asyncio.gather(*(encoder.encode(document, encoding) for _, document in present))
        for (revision, document), encoded in zip(present, passages, strict=True):
            await vectors.upsert(name, encoded.points(revision, document))
    if (left := await problem(index, library, vectors)) is not None:
        logger.error("the index '%s' is still wrong after its rebuild: %s", name, left)


async def _finds_itself(point: Point, index: Index, vectors: Vectors) -> bool:
    """Whether a search for a stored passage finds it, or only equal passages, which may fill the result."""
    candidates = await vectors.search(
        index_name(index),
        dense=point.dense,
        lexical=point.lexical,
        where=Where(point.passage.tenant, point.passage.allowed_groups),
        limit=10,
    )
    best = max((candidate.dense for candidate in candidates), default=0.0)
    itself = next((candidate for candidate in candidates if candidate.id == point.id), None)
    if itself is None:
        return best > 1 - _ROUNDING
    return itself.dense >= best - _ROUNDING and itself.lexical > 0
