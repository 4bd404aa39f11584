"""The wiring of the retriever: library, vectors, model, knowledge bases and the service over them."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
from filelock import FileLock, Timeout

from genaifactory.retriever.v1 import retriever_pb2, retriever_pb2_grpc
from genaifactory_common import specs, stored
from genaifactory_common.errors import Conflict, InvalidArgument, Unavailable
from genaifactory_common.file_locks import file_lock
from genaifactory_common.runtime import ServiceApp
from genaifactory_common.space import Space
from genaifactory_common.telemetry import Telemetry
from genaifactory_retriever.budget import ByteBudget
from genaifactory_retriever.embedders.registry import Embedders
from genaifactory_retriever.encoding import Encoder
from genaifactory_retriever.ingestion import Ingestion
from genaifactory_retriever.knowledge import KnowledgeBase
from genaifactory_retriever.library import Library
from genaifactory_retriever.parsing.limits import Limits
from genaifactory_retriever.rerankers.fused import FusedOrder
from genaifactory_retriever.search import Searcher
from genaifactory_retriever.servicer import Parts, RetrieverServicer
from genaifactory_retriever.settings import Qdrant, Settings
from genaifactory_retriever.vectors.protocol import Vectors

NAME = "retriever"


def create_app(settings: Settings, source: specs.Source, telemetry: Telemetry) -> ServiceApp:
    """The retriever. It opens its state in `lifespan`; one process at a time may use settings.data_dir."""
    opened: list[Parts] = []
    space = Space(NAME, settings.data_dir, settings.space)

    def parts() -> Parts:
        if not opened:
            raise Unavailable("The retriever is starting.", retry_after_seconds=1)
        return opened[0]

    def register(server: grpc.aio.Server) -> None:
        retriever_pb2_grpc.add_RetrieverServiceServicer_to_server(RetrieverServicer(settings, source, parts), server)

    async def counts() -> list[stored.Stored]:
        library = parts().library
        found = await library.run(library.counts)
        return [stored.Stored(tenant, "documents", count, base) for tenant, base, count in found]

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with (
            _open(settings, source, space, telemetry) as state,
            stored.reported(source, "documents", counts),
        ):
            opened.append(state)
            try:
                yield
            finally:
                opened.clear()

    return ServiceApp(
        name=NAME,
        telemetry=telemetry,
        service_names=(retriever_pb2.DESCRIPTOR.services_by_name["RetrieverService"].full_name,),
        register=register,
        lifespan=lifespan,
        ready=lambda: bool(opened),
        verifier=settings.verifier(),
        factory=source,
        space=space,
    )


@asynccontextmanager
async def _open(settings: Settings, source: specs.Source, space: Space, telemetry: Telemetry) -> AsyncIterator[Parts]:
    lock = await asyncio.to_thread(_lock, settings.data_dir)
    try:
        library = await asyncio.to_thread(Library, settings.data_dir / "library.sqlite")
        vectors = await _vectors(settings)
        cache_dir = settings.model_cache_dir or settings.data_dir / "models"
        encoder = Encoder(
            Embedders(cache_dir),
            document_threads=settings.ingestion.threads,
            query_threads=settings.search.threads,
        )
        try:
            knowledge = _KnowledgeBases(library, vectors, encoder)
            for spec in source.current.knowledge_bases:
                await knowledge.get(spec)
            yield Parts(
                library,
                Searcher(library, vectors, encoder, FusedOrder(), telemetry, candidates=settings.search.candidates),
                Ingestion(
                    encoder,
                    _limits(settings),
                    # At least the largest document, which else would wait for ever.
                    ByteBudget(max(settings.ingestion.bytes_in_flight, settings.documents.max_bytes)),
                    space,
                    documents_in_flight=settings.ingestion.documents_in_flight,
                ),
                space,
                knowledge.get,
            )
        finally:
            await vectors.close()
            await asyncio.to_thread(library.close)
            encoder.close()
    finally:
        lock.release()


class _KnowledgeBases:
    """The open knowledge bases; one that factory.yaml adds later is opened on first use."""

    def __init__(self, library: Library, vectors: Vectors, encoder: Encoder) -> None:
        self._library = library
        self._vectors = vectors
        self._encoder = encoder
        self._open: dict[str, KnowledgeBase] = {}
        self._opening = asyncio.Lock()

    async def get(self, spec: specs.KnowledgeBase) -> KnowledgeBase:
        found = self._open.get(spec.name)
        if found is None:
            async with self._opening:
                found = self._open.get(spec.name)
                if found is None:
                    found = await KnowledgeBase.open(spec, self._library, self._vectors, self._encoder)
                    self._open[spec.name] = found
        return found


def _lock(data_dir: Path) -> FileLock:
    """Locks the folder for this process. Raises Conflict, and OSError when it cannot be written."""
    data_dir.mkdir(parents=True, exist_ok=True)
    lock = file_lock(data_dir / "lock", mode=0o600)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise Conflict(f"Another process uses {data_dir}; stop it, or set data_dir to another folder.") from None
    return lock


async def _vectors(settings: Settings) -> Vectors:
    if settings.qdrant is not None:
        return await asyncio.to_thread(_qdrant, settings.qdrant)
    from genaifactory_retriever.vectors.edge import EdgeVectors

    return await asyncio.to_thread(EdgeVectors, settings.data_dir / "vectors", search_threads=settings.search.threads)


def _qdrant(settings: Qdrant) -> Vectors:
    if importlib.util.find_spec("qdrant_client") is None:
        raise InvalidArgument(
            "A Qdrant server is set, and its client is not installed; install genaifactory-retriever[cluster].",
            field="qdrant.url",
        )
    from qdrant_client import AsyncQdrantClient

    from genaifactory_retriever.vectors.qdrant import QdrantVectors

    return QdrantVectors(
        AsyncQdrantClient(
            url=str(settings.url),
            grpc_port=settings.grpc_port,
            prefer_grpc=True,
            api_key=settings.api_key.get_secret_value() if settings.api_key else None,
            timeout=settings.timeout_seconds,
            check_compatibility=False,
        )
    )


def _limits(settings: Settings) -> Limits:
    documents = settings.documents
    return Limits(
        text_characters=documents.max_text_characters,
        pages=documents.max_pages,
        unpacked_bytes=documents.max_unpacked_bytes,
        seconds=documents.parse_timeout_seconds,
        memory_bytes=documents.parse_memory_bytes,
    )
