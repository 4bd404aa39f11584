"""Embedders compared on Debian's installation guide, within a language and across: `python -m tests.bench.embedders`.

The corpus, queries and judgements are those of tests/bench/retrieval.py. Across languages a query of one language is
asked of the other language's guide, whose sections have the same numbers. Reported is nDCG@10 by direction on the half
of the queries that no weight was chosen on, with a paired bootstrap against MiniLM; and the processor time of a
passage's and of a query's vector.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from genaifactory.retriever.v1 import retriever_pb2
from genaifactory_common import specs
from genaifactory_retriever.embedders.registry import Embedders
from tests.bench import retrieval
from tests.data import debian_guide
from tests.data.debian_guide import LANGUAGES, Page, Query

EMBEDDERS: dict[str, specs.AnyEmbedder] = {"minilm": specs.MiniLMEmbedder(), "e5": specs.E5Embedder(type="e5")}
MODES = {"dense": retriever_pb2.SEARCH_MODE_DENSE, "hybrid": retriever_pb2.SEARCH_MODE_HYBRID}
_TIMED = 40
"""Texts whose vectors are timed."""


@dataclass(frozen=True)
class Asked:
    """A query and the language of the guide that it is asked of."""

    query: Query
    of: str

    @property
    def direction(self) -> str:
        return f"{self.query.language}-{self.of}"


def asked(pages: list[Page], *, queries: int) -> list[Asked]:
    """At most so many held-out queries of each direction, chosen at random."""
    written = {
        language: debian_guide.numbers_with_text([page for page in pages if page.language == language])
        for language in LANGUAGES
    }
    generator = random.Random(0)
    found: list[Asked] = []
    own = [query for query in debian_guide.queries(pages) if query.held_out]
    for language, of in itertools.product(LANGUAGES, LANGUAGES):
        fitting = [
            Asked(replace(query, gains=gains), of)
            for query in own
            if query.language == language
            and (gains := {number: gain for number, gain in query.gains.items() if number in written[of]})
        ]
        found += generator.sample(fitting, min(queries, len(fitting)))
    return found


async def scores(spec: specs.AnyEmbedder, pages: list[Page], questions: Sequence[Asked]) -> dict[str, list[float]]:
    """nDCG@10 of each question, by method."""
    with tempfile.TemporaryDirectory() as folder:
        async with retrieval.retriever(Path(folder), spec) as stub:
            begun = time.process_time()
            ingested = await retrieval.ingest(stub, retrieval.BENCHMARK, debian_guide.without_answers(pages))
            print(f"  {ingested.passages} passages, {time.process_time() - begun:.0f} CPU s", flush=True)
            return {
                name: [await retrieval.evaluate_one(stub, each.query, mode, each.of) for each in questions]
                for name, mode in MODES.items()
            }


async def timed(spec: specs.AnyEmbedder, pages: list[Page], questions: Sequence[Asked]) -> None:
    """Prints the processor time of vectors, one text after the other."""
    with tempfile.TemporaryDirectory() as folder:
        embedder = await Embedders(Path(folder)).load(spec)
        texts = [page.html for page in pages[:: max(1, len(pages) // _TIMED)]][:_TIMED]
        passages = [text[: embedder.token_offsets(text)[:200][-1][1]] for text in texts]
        begun = time.process_time()
        for text in passages:
            embedder.embed_passages([text])
        each = 1000 * (time.process_time() - begun) / len(passages)
        begun = time.process_time()
        for question in questions[:_TIMED]:
            embedder.embed_query(question.query.text)
        query = 1000 * (time.process_time() - begun) / min(_TIMED, len(questions))
        print(f"  {each:.1f} CPU ms a passage of 200 tokens, {query:.1f} a query", flush=True)


def rows(questions: Sequence[Asked], found: dict[str, dict[str, list[float]]], first: str) -> Iterator[str]:
    """The table, a line for each direction."""
    for direction in (f"{a}-{b}" for a, b in itertools.product(LANGUAGES, LANGUAGES)):
        places = [place for place, each in enumerate(questions) if each.direction == direction]
        line = f"{direction:12}{len(places):>8}"
        for embedder, by_method in found.items():
            for method, values in by_method.items():
                here = [values[place] for place in places]
                line += f"{statistics.fmean(here):>15.3f}"
                if embedder != first:
                    line += f" ({retrieval.better(here, [found[first][method][place] for place in places]):.2f})"
        yield line


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=1000, help="of each direction, at most")
    parser.add_argument("--embedders", nargs="+", choices=EMBEDDERS, default=list(EMBEDDERS))
    arguments = parser.parse_args()
    pages = debian_guide.corpus()
    questions = asked(pages, queries=arguments.queries)
    found = {}
    for name in arguments.embedders:
        print(name, flush=True)
        await timed(EMBEDDERS[name], pages, questions)
        found[name] = await scores(EMBEDDERS[name], pages, questions)
    head = "".join(f"{f'{name} {mode}':>15}" for name in found for mode in MODES)
    print(f"{'nDCG@10':12}{'queries':>8}{head}   (P better than {arguments.embedders[0]})")
    print("\n".join(rows(questions, found, arguments.embedders[0])))


if __name__ == "__main__":
    asyncio.run(_main())
