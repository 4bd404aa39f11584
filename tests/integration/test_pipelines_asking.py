"""A golden set is asked through a whole platform, each item once, also when the asking was killed."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common.errors import InvalidArgument, NotFound, Unavailable
from genaifactory_local.testing import Platform
from genaifactory_pipelines.evaluation.asking import ask
from genaifactory_pipelines.evaluation.evaluators.groundedness import Groundedness
from genaifactory_pipelines.evaluation.evaluators.retrieval_recall import Recall
from genaifactory_pipelines.evaluation.protocol import NO_EVIDENCE, Candidate, Evidence, Item
from genaifactory_pipelines.gateway import Gateway

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.allow_blocking]  # files of the tests' own


def asked(question: str) -> list[types_pb2.Message]:
    return [types_pb2.Message(role=types_pb2.ROLE_USER, content=question)]


LEAVE = Item("leave", asked("How many days of annual leave do I have?"), expected=(), documents=("sample/leave.md",))
NONSENSE = Item("nonsense", asked("Which moon of Jupiter has the most volcanoes?"), expected=())
SECRET = Item("secret", asked("My key is AKIAIOSFODNN7EXAMPLE, is it safe?"), expected=())
ITEMS = [LEAVE, NONSENSE, SECRET]


async def test_answers_come_with_what_the_record_has(shared_platform: Platform, tmp_path: Path) -> None:
    async with shared_platform.connected() as channel:
        answers = await ask(Gateway(channel), ITEMS, "rag", tmp_path / "answers.jsonl", run="test")
    leave, nonsense, secret = (answers[item.id] for item in ITEMS)
    assert leave.text
    assert not leave.refused
    assert 0 < leave.first_token_seconds <= leave.seconds
    assert leave.documents
    assert len(leave.passages) == len(leave.documents)
    assert any("16 days of paid annual leave" in passage for passage in leave.passages)
    assert await Recall().score(LEAVE, leave, NO_EVIDENCE) == 1
    assert nonsense.refused
    for item in (LEAVE, NONSENSE):  # an engine that quotes is grounded, and a refusal claims nothing
        assert await Groundedness().score(item, answers[item.id], Evidence(searched=True)) == 1
    made_up = replace(leave, text="You have 47 days of annual leave.")
    assert await Groundedness().score(LEAVE, made_up, Evidence(searched=True)) == 0
    assert (secret.blocked, secret.text, secret.error) == (True, "", "")


async def test_a_request_that_is_refused_ends_the_asking(shared_platform: Platform, tmp_path: Path) -> None:
    async with shared_platform.connected() as channel:
        gateway, file = Gateway(channel), tmp_path / "answers.jsonl"
        with pytest.raises(NotFound, match="There is no model 'none'"):
            await ask(gateway, [LEAVE], "none", file, run="test")
        with pytest.raises(InvalidArgument, match="serves no adapter 'leave-7'"):
            await ask(gateway, [LEAVE], "rag", file, run="test", candidate=Candidate(adapter="leave-7"))
    assert file.read_bytes() == b""


class Breaking(Gateway):
    """A gateway that goes away amid the first answer."""

    asked = 0

    async def chat(self, request: gateway_pb2.ChatRequest) -> AsyncGenerator[gateway_pb2.ChatResponse, None]:
        """See Gateway."""
        self.asked += 1
        async for part in super().chat(request):
            yield part
            if self.asked == 1:
                raise Unavailable("the gateway has gone away")


async def test_an_answer_that_breaks_off_is_asked_again_and_none_is_asked_twice(
    shared_platform: Platform, tmp_path: Path
) -> None:
    file = tmp_path / "answers.jsonl"
    async with shared_platform.connected() as channel:
        gateway = Breaking(channel, patience_seconds=10)
        first = await ask(gateway, [LEAVE], "rag", file, run="test")
        assert gateway.asked == 2
        with file.open("ab") as output:
            output.write(b'{"item": "nonsense", "te')  # killed while it wrote
        again = await ask(gateway, ITEMS, "rag", file, run="test")
        assert gateway.asked == 4
        assert again["leave"] == first["leave"]
        assert await ask(gateway, ITEMS, "rag", file, run="test") == again
        assert gateway.asked == 4
    names = [json.loads(line)["item"] for line in file.read_text().splitlines()]
    assert sorted(names) == ["leave", "nonsense", "secret"]


async def test_a_platform_that_stays_away_ends_the_evaluation(shared_platform: Platform, tmp_path: Path) -> None:
    class Gone(Gateway):
        def chat(self, request: gateway_pb2.ChatRequest) -> AsyncGenerator[gateway_pb2.ChatResponse, None]:
            raise Unavailable("away")

    async with shared_platform.connected() as channel:
        with pytest.raises(Unavailable):
            await ask(Gone(channel, patience_seconds=0.5), ITEMS, "rag", tmp_path / "answers.jsonl", run="test")
