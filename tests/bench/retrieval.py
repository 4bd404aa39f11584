"""Retrieval quality and speed of the real service on Debian's installation guide: `python -m tests.bench.retrieval`.

The corpus, the queries and their judgements are explained in tests/data/debian_guide.py. Reported is nDCG@10 by
language and method, on the half of the queries that no weight was chosen on (`held out`) and on the other (`tune`),
with a paired bootstrap of hybrid against each method alone; and how long the pages take to ingest.

nDCG@10: passages are ranked by the service, joined to sections (a section has the rank of its first passage), and
scored with gain / log2(rank + 1) against the best order there is (Järvelin and Kekäläinen 2002).
"""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from genaifactory.retriever.v1 import retriever_pb2, retriever_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, specs
from genaifactory_common.telemetry import Telemetry
from genaifactory_common.testing import SIGNER, act_as, served
from genaifactory_retriever.app import create_app
from genaifactory_retriever.settings import Settings
from tests.data import debian_guide
from tests.data.debian_guide import Page, Query

GUIDE = "guide"
BENCHMARK = "benchmark"
MODES = {
    "lexical": retriever_pb2.SEARCH_MODE_LEXICAL,
    "dense": retriever_pb2.SEARCH_MODE_DENSE,
    "hybrid": retriever_pb2.SEARCH_MODE_HYBRID,
}
_DEPTH = 60
"""Passages of a search, so that at least ten sections are in the ranking."""
_CUT = 10
_PIECE_BYTES = 256 * 1024
_FACTORY = f"""
tenants: [{{name: acme}}]
roles: [{{name: developer, permissions: [chat, ingest]}}]
models: [{{name: m, backend: {{type: modelserver, model: extractive}}}}]
routes: [{{name: chat, task: chat, models: [m]}}]
knowledge_bases: [{{name: {GUIDE}}}, {{name: {BENCHMARK}}}]
policies: [{{name: default}}]
"""

Stub: TypeAlias = "retriever_pb2_grpc.RetrieverServiceAsyncStub"


@dataclass(frozen=True)
class Ingested:
    """The outcome of an upload."""

    outcomes: dict[str, int]
    passages: int
    seconds: float


@asynccontextmanager
async def retriever(data_dir: Path, embedder: specs.AnyEmbedder | None = None) -> AsyncIterator[Stub]:
    """The real service on a unix socket, and a caller of the tenant acme. embedder: None: the default."""
    factory = specs.parse(_FACTORY)
    if embedder is not None:
        bases = tuple(base.model_copy(update={"embedder": embedder}) for base in factory.knowledge_bases)
        factory = factory.model_copy(update={"knowledge_bases": bases})
    settings = Settings(data_dir=data_dir, context_public_key=SIGNER.public_key)
    app = create_app(settings, specs.Source(factory), Telemetry("retriever"))
    async with served(app) as channel:
        act_as()
        yield retriever_pb2_grpc.RetrieverServiceStub(channel)


async def ingest(stub: Stub, knowledge_base: str, pages: Sequence[Page]) -> Ingested:
    """Uploads the pages, with their language in the metadata, by which queries filter."""
    outcomes: dict[str, int] = {}
    passages = 0
    started = time.perf_counter()
    async with channels.Duplex(stub.Ingest, timeout_seconds=600) as call:
        sending = asyncio.create_task(_send(call, knowledge_base, pages))
        async for response in call:
            name = retriever_pb2.IngestOutcome.Name(response.outcome).removeprefix("INGEST_OUTCOME_").lower()
            outcomes[name] = outcomes.get(name, 0) + 1
            passages += response.passages
        await sending
    return Ingested(outcomes, passages, time.perf_counter() - started)


async def _send(call: channels.Duplex, knowledge_base: str, pages: Sequence[Page]) -> None:
    await call.send(retriever_pb2.IngestRequest(open=retriever_pb2.IngestOpen(knowledge_base=knowledge_base)))
    for page in pages:
        data = page.html.encode()
        header = retriever_pb2.DocumentHeader(
            document_id=page.document_id,
            uri=page.document_id,
            metadata={"language": page.language},
            size_bytes=len(data),
        )
        await call.send(retriever_pb2.IngestRequest(document=header))
        for begin in range(0, len(data), _PIECE_BYTES):
            await call.send(retriever_pb2.IngestRequest(data=data[begin : begin + _PIECE_BYTES]))
    await call.done_sending()


async def evaluate(stub: Stub, queries: Sequence[Query]) -> dict[str, list[float]]:
    """nDCG@10 of each query, by method, in the order of the queries."""
    return {
        name: [await evaluate_one(stub, query, mode, query.language) for query in queries]
        for name, mode in MODES.items()
    }


async def evaluate_one(stub: Stub, query: Query, mode: retriever_pb2.SearchMode.ValueType, of: str) -> float:
    """nDCG@10 of a query on the guide in the language `of`."""
    request = retriever_pb2.SearchRequest(
        knowledge_base=BENCHMARK,
        query=query.text,
        limit=_DEPTH,
        mode=mode,
        options=types_pb2.SearchOptions(filter={"language": of}),
    )
    response = await channels.unary(stub.Search, request, timeout_seconds=30)
    sections: list[str] = []
    for passage in response.passages:
        section = debian_guide.section_of(passage.headings)
        if passage.document_id != f"{of}/{query.page}" and section not in sections:
            sections.append(section)
    return ndcg(sections, query.gains)


def ndcg(ranking: Sequence[str], gains: Mapping[str, int]) -> float:
    """nDCG@10 of a ranking."""
    gained = sum(gains.get(item, 0) / math.log2(rank + 2) for rank, item in enumerate(ranking[:_CUT]))
    ideal = sorted(gains.values(), reverse=True)[:_CUT]
    return gained / sum(gain / math.log2(rank + 2) for rank, gain in enumerate(ideal))


def means(
    queries: Sequence[Query], scores: Mapping[str, Sequence[float]], language: str, *, held_out: bool
) -> dict[str, float]:
    """Mean nDCG@10 by method over one language's half."""
    chosen = [i for i, query in enumerate(queries) if query.language == language and query.held_out == held_out]
    return {name: statistics.fmean(values[i] for i in chosen) for name, values in scores.items()}


def better(first: Sequence[float], second: Sequence[float], *, samples: int = 2000) -> float:
    """Share of bootstrap samples of the queries in which the first method's mean is above the second's."""
    generator = random.Random(0)
    differences = [a - b for a, b in zip(first, second, strict=True)]
    return sum(sum(generator.choices(differences, k=len(differences))) > 0 for _ in range(samples)) / samples


async def _main() -> None:
    pages = debian_guide.corpus()
    queries = debian_guide.queries(pages)
    with tempfile.TemporaryDirectory() as folder:
        async with retriever(Path(folder)) as stub:
            ingested = await ingest(stub, GUIDE, pages)
            print(f"ingest: {len(pages)} pages, {ingested.passages} passages in {ingested.seconds:.1f} s")
            await ingest(stub, BENCHMARK, debian_guide.without_answers(pages))
            started = time.perf_counter()
            scores = await evaluate(stub, queries)
            print(f"search: {1000 * (time.perf_counter() - started) / len(queries) / len(MODES):.1f} ms a query")
    print(f"{'nDCG@10':24}{'queries':>8}" + "".join(f"{name:>10}" for name in MODES) + "   P(hybrid > lexical, dense)")
    for held_out in (False, True):
        for language in debian_guide.LANGUAGES:
            chosen = [i for i, q in enumerate(queries) if q.language == language and q.held_out == held_out]
            mean = means(queries, scores, language, held_out=held_out)
            hybrid, lexical, dense = ([scores[name][i] for i in chosen] for name in ("hybrid", "lexical", "dense"))
            print(
                f"{language} {'held out' if held_out else 'tune':21}{len(chosen):>8}"
                + "".join(f"{mean[name]:>10.3f}" for name in MODES)
                + f"   {better(hybrid, lexical):.2f} {better(hybrid, dense):.2f}"
            )


if __name__ == "__main__":
    asyncio.run(_main())
