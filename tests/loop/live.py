"""What people ask the running platform over its HTTP API, and what they say of its answers.

Every fact of the handbook is asked for through the route that searches the documents, in one way after the other, and
in the last ways also where people's things are. Every answer is corrected, by a person or by a system that reports the
right one later.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from openai import AsyncOpenAI

from genaifactory_local.testing import Platform
from tests.loop import handbook, month

ROUTE = "rag"
"""That searches the documents."""
_LABEL_EVERY = 5
"""Of so many right answers one is a delayed label."""
_STORED_SECONDS = 60
_TIMEOUT_SECONDS = 120


@dataclass(frozen=True)
class Question:
    """A question for a route, with the right answer."""

    route: str
    text: str
    right: str


def questions() -> Iterator[Question]:
    """In the order in which they are asked."""
    for number, people in enumerate(month.ASKED):
        for fact in handbook.facts():
            yield Question(ROUTE, handbook.WAYS[fact.language][number].format(what=fact.what), fact.answer)
        if number >= month.WAYS:
            for person, thing in month.people_and_things():
                yield Question(month.ROUTE, people.format(person=person, thing=thing), month.place(person, thing))


async def ask(platform: Platform) -> datetime:
    """Asks one after the other and gives the feedback; the moment after the last, when all of it is on record."""
    client = AsyncOpenAI(base_url=platform.openai_url, api_key=platform.key, timeout=_TIMEOUT_SECONDS, max_retries=0)
    asked: set[str] = set()
    async with client:
        for number, question in enumerate(questions()):
            answer = await client.chat.completions.create(
                model=question.route, messages=[{"role": "user", "content": question.text}], temperature=0
            )
            late = number % _LABEL_EVERY == 0
            said = {"ground_truth": {"answer": question.right}} if late else {"correction": question.right}
            await client.post("/feedback", body={"request_id": answer.id, **said}, cast_to=object)
            asked.add(f"req-{answer.id.removeprefix('chatcmpl-')}")
    until = datetime.now(UTC)
    async with asyncio.timeout(_STORED_SECONDS):
        while not asked <= await _on_record(platform):  # noqa: ASYNC110  # a record is stored a moment after the answer
            await asyncio.sleep(0.5)
    return until


async def _on_record(platform: Platform) -> set[str]:
    lines = map(json.loads, (await platform.export()).splitlines())
    return {line["request_id"] for line in lines if line["feedback"]}
