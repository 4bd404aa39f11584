"""The retriever on a real bilingual corpus: quality, and swaps under load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from genaifactory.retriever.v1 import retriever_pb2
from genaifactory_common import channels, testing
from tests.bench import retrieval
from tests.data import debian_guide
from tests.data.debian_guide import LANGUAGES, Page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.asyncio(loop_scope="module")]

# Against a hang only: the speed depends on the machine and its load, and tests/bench/retrieval.py measures it.
MAX_INGEST_SECONDS = 300
ANSWERABLE = (
    "How do I write the installation image to a USB stick?",
    "What is the minimum amount of memory needed?",
    "How do I set up software RAID during partitioning?",
    "Can I install Debian from an existing Linux system?",
    "What does the lowmem boot parameter do?",
    "Cần bao nhiêu bộ nhớ để cài đặt Debian?",
    "Làm sao để khởi động trình cài đặt từ thanh bộ nhớ USB?",
    "Cấu hình RAID phần mềm như thế nào?",
    "Làm sao để thiết lập người dùng và mật khẩu?",
    "cai dat tu he thong linux",
)
UNANSWERABLE = (
    "What is the capital of France?",
    "Who won the football world cup in 2018?",
    "How do I bake sourdough bread?",
    "What is the refund policy for online orders?",
    "How tall is Mount Everest?",
    "thủ đô của nước Pháp là gì?",
    "Cách nấu phở bò ngon?",
    "Giá vàng hôm nay bao nhiêu?",
    "Chính sách hoàn tiền khi mua hàng trực tuyến là gì?",
    "thoi tiet ha noi ngay mai the nao",
)


@pytest.fixture(scope="module")
def pages() -> list[Page]:
    return debian_guide.corpus_or_skip()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def benchmark(
    pages: list[Page], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[retrieval.Stub, retrieval.Ingested]]:
    """A retriever with the whole guide as the benchmark indexes it, and how its ingest went; half a minute of CPU."""
    async with retrieval.retriever(tmp_path_factory.mktemp("guide")) as stub:
        yield stub, await retrieval.ingest(stub, retrieval.BENCHMARK, debian_guide.without_answers(pages))


async def test_the_guide_is_ingested_and_covers_the_terms_of_its_questions_alone(
    pages: list[Page], benchmark: tuple[retrieval.Stub, retrieval.Ingested]
) -> None:
    stub, ingested = benchmark
    testing.act_as()
    indexed = debian_guide.without_answers(pages)
    print(f"{len(indexed)} pages, {ingested.passages} passages in {ingested.seconds:.1f} s")
    assert ingested.outcomes == {"added": len(indexed)}
    assert ingested.seconds < MAX_INGEST_SECONDS
    assert (await retrieval.ingest(stub, retrieval.BENCHMARK, indexed)).outcomes == {"unchanged": len(indexed)}
    for question in ANSWERABLE:
        assert await _coverage(stub, question) >= 0.5, question
    for question in UNANSWERABLE:
        assert await _coverage(stub, question) < 0.5, question


async def test_hybrid_search_is_above_each_method_alone_in_each_language(
    pages: list[Page], benchmark: tuple[retrieval.Stub, retrieval.Ingested]
) -> None:
    queries = [query for query in debian_guide.queries(pages) if query.held_out]
    stub, _ = benchmark
    testing.act_as()
    scores = await retrieval.evaluate(stub, queries)
    for language in LANGUAGES:
        mean = retrieval.means(queries, scores, language, held_out=True)
        print(language, {name: round(value, 3) for name, value in mean.items()})
        assert mean["hybrid"] > mean["lexical"]
        assert mean["hybrid"] > mean["dense"]


async def test_a_swap_under_load_loses_no_query_and_mixes_no_versions(pages: list[Page], tmp_path: Path) -> None:
    """Queries run during builds, swaps and changes of one page; results from other pages must stay the same."""
    some = [page for page in pages if page.name.startswith(("ch04s03", "ch04s05", "ch05s01"))]
    changing = Page("en", "notice.html", "<h1>Notice</h1><p>Edition zero of the xylophone notice.</p>")
    questions = ("How do I boot from a USB stick?", "khởi động từ mạng bằng TFTP", "xylophone notice")
    versions: set[str] = set()
    answers = 0
    done = asyncio.Event()
    async with retrieval.retriever(tmp_path) as stub:
        testing.act_as(replace(testing.CALLER, permissions=(*testing.CALLER.permissions, "operate")))
        ingested = await retrieval.ingest(stub, retrieval.GUIDE, [*some, changing])
        assert ingested.outcomes == {"added": len(some) + 1}
        before = {question: await _found(stub, question) for question in questions[:2]}

        async def ask(question: str) -> None:
            nonlocal answers
            while not done.is_set():
                version, found = await _found(stub, question)
                if question in before:
                    assert found == before[question][1]
                else:
                    assert len([text for _, text in found if "xylophone" in text]) == 1
                versions.add(version)
                answers += 1

        async with asyncio.TaskGroup() as group:
            for question in questions * 2:
                group.create_task(ask(question))
            for round_ in range(3):
                request = retriever_pb2.BuildIndexRequest(knowledge_base=retrieval.GUIDE)
                steps = [s async for s in channels.stream(stub.BuildIndex, request, timeout_seconds=300)]
                assert steps[-1].state == retriever_pb2.INDEX_STATE_READY
                edition = Page(changing.language, changing.name, changing.html.replace("zero", f"number {round_}"))
                assert (await retrieval.ingest(stub, retrieval.GUIDE, [edition])).outcomes == {"replaced": 1}
                swap = retriever_pb2.SwapIndexRequest(
                    knowledge_base=retrieval.GUIDE, index_version=steps[-1].index_version
                )
                await channels.unary(stub.SwapIndex, swap, timeout_seconds=60)
            done.set()
    assert len(versions) >= 3
    assert answers > 100


async def _coverage(stub: retrieval.Stub, question: str) -> float:
    request = retriever_pb2.SearchRequest(knowledge_base=retrieval.BENCHMARK, query=question, limit=5)
    return (await channels.unary(stub.Search, request, timeout_seconds=30)).term_coverage


async def _found(stub: retrieval.Stub, question: str) -> tuple[str, list[tuple[str, str]]]:
    request = retriever_pb2.SearchRequest(knowledge_base=retrieval.GUIDE, query=question, limit=5)
    response = await channels.unary(stub.Search, request, timeout_seconds=30)
    return response.index_version, [(passage.document_id, passage.text) for passage in response.passages]
