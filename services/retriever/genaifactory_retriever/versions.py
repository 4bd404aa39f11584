"""One index version: its name and chunking, its creation and rebuild, and the check against the library."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence

from genaifactory_common import specs
from genaifactory_common.errors import Unavailable
from genaifactory_retriever.encoding import Chunking, Encoder
from genaifactory_retriever.library import Library
from genaifactory_retriever.stored import Index, State
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


def chunking_of(index: Index) -> Chunking:
    """The chunking of an index version."""
    return Chunking(index.chunk_tokens, index.overlap_tokens)


def index_name(index: Index) -> str:
    """Its name in the vector store."""
    return f"{index.knowledge_base}--{index.version}"


async def create(
    spec: specs.KnowledgeBase, library: Library, vectors: Vectors, encoder: Encoder, idempotency_key: str
) -> Index:
    """Creates an empty version under the next name, in the state building."""
    index = Index(
        id=0,
        knowledge_base=spec.name,
        version="",
        state="building",
        chunk_tokens=spec.chunk_tokens,
        overlap_tokens=spec.chunk_overlap_tokens,
        embedding_model=spec.embedding_model,
        create_time=time.time(),
        idempotency_key=idempotency_key,
    )
    index = await library.run(library.add_index, index)
    try:
        await vectors.create(index_name(index), encoder.dimensions)
    except BaseException:
        failed: dict[int, State] = {index.id: "failed"}  # else its key would refuse another try as a running build
        await library.run(library.set_states, failed)
        raise
    return index


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


async def rebuild(index: Index, why: str, library: Library, vectors: Vectors, encoder: Encoder) -> None:
    """Writes a version's points again from the library. For a version that is not in use yet."""
    revisions = await library.run(library.indexed_revisions, index.knowledge_base)
    name = index_name(index)
    logger.warning(
        "the index '%s' is damaged (%s); it is rebuilt from the %d stored documents", name, why, len(revisions)
    )
    await vectors.create(name, encoder.dimensions)
    for begin in range(0, len(revisions), _BATCH):
        loaded = [(r, await library.run(library.load, r)) for r in revisions[begin : begin + _BATCH]]
        present = [(revision, document) for revision, document in loaded if document is not None]
        passages = await asyncio.gather(*(encoder.encode(document, chunking_of(index)) for _, document in present))
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
