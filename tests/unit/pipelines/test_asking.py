"""How long an evaluation waits for a model that fails."""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common.errors import (
    ContextTooLong,
    DeadlineExceeded,
    FactoryError,
    OutOfSpace,
    RateLimited,
    Unavailable,
    UpstreamFailed,
)
from genaifactory_pipelines.evaluation import asking
from genaifactory_pipelines.evaluation.protocol import Candidate, Item
from genaifactory_pipelines.gateway import Patience
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.step import Context
from genaifactory_pipelines.steps import evaluate

pytestmark = pytest.mark.allow_blocking  # files of the tests' own


class Fixed(Patience):
    """Waits for a fifth of a second each time."""

    async def wait(self, error: FactoryError) -> None:
        """See Patience."""
        await asyncio.sleep(0.2)


class Scripted:
    """Raises the errors of the questions that have one; answers the others in a tenth of a second."""

    def __init__(self, errors: dict[str, FactoryError]) -> None:
        self.errors = errors
        self.seconds = 0.0
        """Until one of the errors."""
        self.passing: dict[str, list[FactoryError]] = {}
        """Errors of a question's first attempts."""
        self.asked: Counter[str] = Counter()

    async def chat(self, request: gateway_pb2.ChatRequest) -> AsyncGenerator[gateway_pb2.ChatResponse, None]:
        """See Platform."""
        question = request.messages[-1].content
        self.asked[question] += 1
        if self.passing.get(question):
            raise self.passing[question].pop(0)
        if question in self.errors:
            await asyncio.sleep(self.seconds)
            raise self.errors[question]
        await asyncio.sleep(0.1)
        yield gateway_pb2.ChatResponse(request_id=question, delta="Yes.")

    async def recorded(self, request_ids: Sequence[str]) -> dict[str, monitor_pb2.Interaction]:
        """See Platform."""
        return {request_id: monitor_pb2.Interaction() for request_id in request_ids}

    def patience(self) -> Patience:
        """See Platform."""
        return Fixed(10)


def items(count: int) -> list[Item]:
    message = types_pb2.Message
    return [
        Item(f"q{n}", messages=[message(role=types_pb2.ROLE_USER, content=f"q{n}")], expected=()) for n in range(count)
    ]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_FAILING_SECONDS", 0.3)


async def test_a_question_that_fails_while_others_are_answered_is_given_up(tmp_path: Path) -> None:
    platform = Scripted({"q0": UpstreamFailed("no")})
    answers = await asking.ask(platform, items(21), "r", tmp_path / "a.jsonl", run="t", at_once=2)
    assert answers["q0"].error == "UPSTREAM_FAILED"
    assert 1 < platform.asked["q0"] <= 3
    assert all(answers[f"q{n}"].text == "Yes." for n in range(1, 21))


async def test_a_model_that_answers_nothing_is_waited_for_once_and_not_for_each_question(tmp_path: Path) -> None:
    platform = Scripted({f"q{n}": UpstreamFailed("no") for n in range(20)})
    answers = await asking.ask(platform, items(20), "r", tmp_path / "a.jsonl", run="t", at_once=2)
    assert {answer.error for answer in answers.values()} == {"UPSTREAM_FAILED"}
    assert platform.asked.total() <= 20 + 2 * 2


async def test_the_time_when_the_platform_is_away_is_no_failing_of_the_model(tmp_path: Path) -> None:
    names = [f"q{n}" for n in range(6)]
    platform = Scripted({})
    away, restarting = Unavailable("away"), UpstreamFailed("restarting")
    platform.passing = {name: [away, away, away, restarting] for name in names[:4]}
    platform.passing |= {name: [restarting, away, restarting, away, restarting] for name in names[4:]}
    answers = await asking.ask(platform, items(6), "r", tmp_path / "a.jsonl", run="t", at_once=4)
    assert [answers[name].text for name in names] == ["Yes."] * 6


async def test_a_question_is_not_given_up_at_its_first_failure_after_it_was_put_off(tmp_path: Path) -> None:
    platform = Scripted({})
    platform.passing = {"q0": [RateLimited("later")] * 3 + [UpstreamFailed("restarting")]}
    answers = await asking.ask(platform, items(1), "r", tmp_path / "a.jsonl", run="t")
    assert answers["q0"].text == "Yes."


async def test_a_question_that_times_out_is_not_waited_for_twice(tmp_path: Path) -> None:
    platform = Scripted({"q0": DeadlineExceeded("no")})
    platform.seconds = 0.4
    answers = await asking.ask(platform, items(1), "r", tmp_path / "a.jsonl", run="t")
    assert (answers["q0"].error, platform.asked["q0"]) == ("DEADLINE_EXCEEDED", 1)


async def test_a_question_that_is_put_off_between_its_failures_is_given_up(tmp_path: Path) -> None:
    platform = Scripted({})
    platform.passing = {"q0": [UpstreamFailed("no"), RateLimited("later")] * 100}
    answers = await asking.ask(platform, items(1), "r", tmp_path / "a.jsonl", run="t")
    assert answers["q0"].error == "UPSTREAM_FAILED"


async def test_a_question_that_no_waiting_helps_is_asked_once(tmp_path: Path) -> None:
    platform = Scripted({"q0": ContextTooLong("too long")})
    answers = await asking.ask(platform, items(3), "r", tmp_path / "a.jsonl", run="t")
    assert answers["q0"].error == "CONTEXT_TOO_LONG"
    assert platform.asked["q0"] == 1


async def test_a_full_disk_ends_an_evaluation_with_the_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(asking, "_append", full)
    golden = tmp_path / "golden.jsonl"
    golden.write_text('{"input": "q0", "output": "Yes."}\n{"input": "q1", "output": "Yes."}\n')
    wanted = evaluate.Parameters(name="t", route="r", golden=golden, candidate=Candidate(adapter="a"))
    context = Context(tmp_path / "run", Scripted({}), Progress(Console(file=StringIO())))  # type: ignore[arg-type]
    with pytest.raises(OutOfSpace, match="evaluate"):
        await evaluate.evaluate.run(wanted, context)
