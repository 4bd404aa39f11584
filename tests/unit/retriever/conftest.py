"""Fixtures: the real model, loaded once, and a retriever for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from genaifactory.retriever.v1 import retriever_pb2, retriever_pb2_grpc
from genaifactory_common import channels, identity, minilm, specs
from genaifactory_common.minilm import MiniLM
from genaifactory_common.telemetry import Telemetry
from genaifactory_common.testing import SIGNER, act_as, served
from genaifactory_retriever.app import create_app
from genaifactory_retriever.embedders.registry import Embedders
from genaifactory_retriever.encoding import Encoder
from genaifactory_retriever.parsing.limits import Limits
from genaifactory_retriever.settings import Settings

FACTORY = """
tenants: [{name: acme}, {name: globex}]
roles: [{name: developer, permissions: [chat, ingest]}]
models: [{name: m, backend: {type: modelserver, model: extractive}}]
routes: [{name: chat, task: chat, models: [m]}]
knowledge_bases:
  - {name: docs, chunk_tokens: 64, chunk_overlap_tokens: 8}
  - {name: private, tenants: [globex]}
policies: [{name: default}]
"""

LIMITS = Limits(text_characters=100_000, pages=20, unpacked_bytes=1_000_000, seconds=20, memory_bytes=1 << 30)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def model(model_dir: Path) -> MiniLM:
    return minilm.load(model_dir)


@pytest.fixture
def encoder(model: MiniLM, model_dir: Path) -> Iterator[Encoder]:
    encoder = Encoder(Embedders(model_dir), document_threads=2, query_threads=1)
    yield encoder
    encoder.close()


@contextmanager
def operating() -> Iterator[None]:
    """Adds the permission 'operate' to the current caller inside the block."""
    caller = identity.current()
    act_as(replace(caller, permissions=(*caller.permissions, "operate")))
    try:
        yield
    finally:
        act_as(caller)


@dataclass(frozen=True)
class Doc:
    """A document to upload."""

    id: str
    text: str | bytes
    uri: str = "a.md"
    media_type: str = ""
    title: str = ""
    language: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True)
class Client:
    """Calls to a running service."""

    stub: retriever_pb2_grpc.RetrieverServiceAsyncStub
    source: specs.Source

    async def ingest(
        self, documents: Sequence[Doc], *, knowledge_base: str = "docs"
    ) -> list[retriever_pb2.IngestResponse]:
        messages = [retriever_pb2.IngestRequest(open=retriever_pb2.IngestOpen(knowledge_base=knowledge_base))]
        for document in documents:
            data = document.text.encode() if isinstance(document.text, str) else document.text
            header = retriever_pb2.DocumentHeader(
                document_id=document.id,
                uri=document.uri,
                media_type=document.media_type,
                title=document.title,
                language=document.language,
                metadata=document.metadata,
                allowed_groups=document.groups,
                size_bytes=len(data),
                source=document.source,
            )
            messages.append(retriever_pb2.IngestRequest(document=header))
            if data:
                messages.append(retriever_pb2.IngestRequest(data=data))
        return await self.send(messages)

    async def send(self, messages: Sequence[retriever_pb2.IngestRequest]) -> list[retriever_pb2.IngestResponse]:
        async with channels.Duplex(self.stub.Ingest, timeout_seconds=60) as call:
            for i, message in enumerate(messages):
                await call.send(message)
                if i == 0:
                    await call.accepted()
            await call.done_sending()
            return [response async for response in call]

    async def search(self, query: str, *, knowledge_base: str = "docs", **fields: Any) -> retriever_pb2.SearchResponse:
        request = retriever_pb2.SearchRequest(knowledge_base=knowledge_base, query=query, **fields)
        return await channels.unary(self.stub.Search, request, timeout_seconds=10)

    async def build(self, key: str = "", *, knowledge_base: str = "docs") -> list[retriever_pb2.BuildIndexResponse]:
        """With the permission 'operate'."""
        request = retriever_pb2.BuildIndexRequest(knowledge_base=knowledge_base, idempotency_key=key)
        with operating():
            return [step async for step in channels.stream(self.stub.BuildIndex, request, timeout_seconds=60)]

    async def swap(self, version: str, *, knowledge_base: str = "docs") -> retriever_pb2.SwapIndexResponse:
        """With the permission 'operate'."""
        request = retriever_pb2.SwapIndexRequest(knowledge_base=knowledge_base, index_version=version)
        with operating():
            return await channels.unary(self.stub.SwapIndex, request, timeout_seconds=10)

    async def drop(self, version: str, *, knowledge_base: str = "docs") -> None:
        """With the permission 'operate'."""
        request = retriever_pb2.DropIndexRequest(knowledge_base=knowledge_base, index_version=version)
        with operating():
            await channels.unary(self.stub.DropIndex, request, timeout_seconds=10)

    async def delete(self, *ids: str, knowledge_base: str = "docs") -> int:
        request = retriever_pb2.DeleteDocumentsRequest(knowledge_base=knowledge_base, document_ids=ids)
        return (await channels.unary(self.stub.DeleteDocuments, request, timeout_seconds=10)).deleted

    async def indexes(self, *, knowledge_base: str = "docs") -> list[retriever_pb2.Index]:
        request = retriever_pb2.ListIndexesRequest(knowledge_base=knowledge_base)
        return list((await channels.unary(self.stub.ListIndexes, request, timeout_seconds=10)).indexes)


@asynccontextmanager
async def retriever(
    data_dir: Path, model_dir: Path, *, factory: specs.Factory | None = None, **settings: Any
) -> AsyncIterator[Client]:
    source = specs.Source(factory or specs.parse(FACTORY))
    app = create_app(
        Settings(data_dir=data_dir, model_cache_dir=model_dir, context_public_key=SIGNER.public_key, **settings),
        source,
        Telemetry("retriever"),
    )
    async with served(app) as channel:
        yield Client(retriever_pb2_grpc.RetrieverServiceStub(channel), source)


@pytest.fixture
async def client(tmp_path: Path, model_dir: Path, model: MiniLM) -> AsyncIterator[Client]:
    async with retriever(tmp_path / "data", model_dir) as client:
        yield client


def outcomes(responses: Sequence[retriever_pb2.IngestResponse]) -> list[str]:
    names = (retriever_pb2.IngestOutcome.Name(response.outcome) for response in responses)
    return [name.removeprefix("INGEST_OUTCOME_").lower() for name in names]
