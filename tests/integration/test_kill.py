"""SIGKILL of the whole platform at random moments: no answer is lost or recorded twice, and the index opens."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from genaifactory.retriever.v1 import retriever_pb2, retriever_pb2_grpc
from genaifactory_common import channels
from genaifactory_common.errors import FactoryError
from genaifactory_local import testing
from genaifactory_local.testing import Platform
from tests.full import FULL
from tests.integration import recorded

# The platform is another process, which blocking here does not affect.
pytestmark = pytest.mark.allow_blocking

KILLS = 50 if FULL else 12
CLIENTS = 8
QUESTIONS = (
    "How many days of annual leave do I have?",
    "Mỗi năm tôi có bao nhiêu ngày nghỉ phép?",
    "What is the daily allowance abroad?",
    "Pin của Lúa 3 dùng được bao lâu?",
)


@dataclass
class Seen:
    """What clients received before the platforms were killed."""

    answered: list[str] = field(default_factory=list)
    """Ids of requests whose answers were complete."""
    stored: dict[str, str] = field(default_factory=dict)
    """Ids of documents that were acknowledged -> a word that no other document has."""


async def _ask_until_killed(platform: Platform, seen: Seen, rng: random.Random) -> None:
    headers = {"Authorization": f"Bearer {platform.key}"}
    with contextlib.suppress(httpx.HTTPError):
        async with httpx.AsyncClient(trust_env=False, headers=headers, timeout=30) as client:
            while True:
                # Some questions are answered from the cache, and some are new.
                question = f"{rng.choice(QUESTIONS)} {rng.choice(('', str(rng.random())))}"
                message = {"role": "user", "content": question}
                body = {"model": "rag", "stream": True, "temperature": 0, "messages": [message]}
                async with client.stream("POST", f"{platform.openai_url}/chat/completions", json=body) as response:
                    assert response.status_code == 200, await response.aread()
                    async for line in response.aiter_lines():
                        if line == "data: [DONE]":
                            seen.answered.append(response.headers["x-request-id"])


async def _ingest_until_killed(platform: Platform, seen: Seen, folder: Path, rng: random.Random) -> None:
    with contextlib.suppress(FactoryError):
        while True:
            word = f"zq{rng.randrange(10**9):09d}"
            file = folder / f"{word}.md"
            await asyncio.to_thread(file.write_text, f"# Note {word}\n\nThe secret word of this note is {word}.\n")
            summary = await platform.ingest([file])
            assert summary.added == 1
            seen.stored[file.name] = word


async def _one_life(state: Path, notes: Path, seen: Seen, rng: random.Random, *, answering: bool) -> None:
    """A platform that is killed at a random moment: after its start, or while it is `answering`."""
    before = len(seen.answered)
    async with testing.started(state, str(testing.SAMPLE)) as process:
        platform = process.platform
        async with asyncio.TaskGroup() as tasks:
            for _ in range(CLIENTS):
                tasks.create_task(_ask_until_killed(platform, seen, rng))
            tasks.create_task(_ingest_until_killed(platform, seen, notes, rng))
            async with asyncio.timeout(60):
                while answering and (len(seen.answered) == before or not seen.stored):
                    await asyncio.sleep(0.01)
            await asyncio.sleep(rng.uniform(0.02, 1.0))
            await process.kill()


async def _found(platform: Platform, word: str) -> str:
    """The document that a search for the word finds first."""
    platform.sign_in()
    async with channels.connect(platform.endpoints.socket("retriever")) as channel:
        stub = retriever_pb2_grpc.RetrieverServiceStub(channel)
        request = retriever_pb2.SearchRequest(
            knowledge_base="documents", query=word, limit=1, mode=retriever_pb2.SEARCH_MODE_LEXICAL
        )
        response = await channels.unary(stub.Search, request, timeout_seconds=30)
    return response.passages[0].document_id if response.passages else ""


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_killed_at_random_moments_no_answer_is_missing_or_recorded_twice_and_the_index_opens(
    tmp_path: Path,
) -> None:
    rng = random.Random(20261121)
    seen = Seen()
    notes = tmp_path / "notes"
    notes.mkdir()
    state = tmp_path / "state"
    for life in range(KILLS):
        await _one_life(state, notes, seen, rng, answering=life % 2 == 0)
    assert len(seen.answered) >= KILLS / 2
    assert len(seen.answered) == len(set(seen.answered))
    assert seen.stored
    async with testing.started(state, str(testing.SAMPLE)) as process:
        assert "8 unchanged" in process.output
        on_record = await recorded.counted(process.platform, lambda found: set(seen.answered) <= found.keys())
        assert set(seen.answered) - on_record.keys() == set()
        assert [request_id for request_id, count in on_record.items() if count > 1] == []
        found = {name: await _found(process.platform, word) for name, word in seen.stored.items()}
        assert found == {name: name for name in seen.stored}
        assert await process.stop() == 0
    print(f"{KILLS} kills, {len(seen.answered)} answers recorded once, {len(seen.stored)} documents kept")
