"""The scripted engine does what its script says, and tells what it saw."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from genaifactory_common.errors import InvalidArgument, RateLimited
from genaifactory_modelserver.engines.fake import Failure, FakeEngine, Rule, ScriptedUsage
from genaifactory_modelserver.engines.protocol import FinishReason, Generation, Step, Usage
from tests.unit.modelserver.conftest import Ask


async def said(engine: FakeEngine, request: Generation) -> list[Step]:
    return [step async for step in engine.generate(request)]


def text(steps: list[Step]) -> str:
    return "".join(step.delta for step in steps)


async def test_without_a_script_it_echoes_the_last_user_message_word_by_word(ask: Ask) -> None:
    steps = await said(FakeEngine(), ask("first", "answer", "chào  bạn nhé"))
    assert [step.delta for step in steps] == ["echo:", " chào", "  bạn", " nhé", ""]
    assert steps[-1].finish_reason is FinishReason.STOP
    assert steps[-1].usage == Usage(5, 4)


async def test_the_first_rule_that_fits_decides_and_is_passed_over_when_used_up(ask: Ask) -> None:
    engine = FakeEngine(
        models=("a", "b"),
        rules=[
            Rule(contains="boom", times=2, error=Failure(reason=RateLimited.reason, retry_after_seconds=7), pieces=()),
            Rule(model="b", pieces=("from b",)),
            Rule(contains="boom", pieces=("third time",)),
        ],
    )
    for _ in range(2):
        with pytest.raises(RateLimited) as raised:
            await said(engine, ask("boom", model="a"))
        assert raised.value.retry_after_seconds == 7
    assert text(await said(engine, ask("boom", model="a"))) == "third time"
    assert text(await said(engine, ask("boom", model="b"))) == "from b"
    assert text(await said(engine, ask("calm", model="a"))) == "echo: calm"
    assert len(engine.seen) == 5


async def test_max_tokens_counts_pieces_and_a_stop_text_ends_the_output(ask: Ask) -> None:
    engine = FakeEngine(rules=[Rule(pieces=("one ", "two ", "three "))])
    steps = await said(engine, ask("x", max_tokens=2))
    assert (text(steps), steps[-1].finish_reason) == ("one two ", FinishReason.LENGTH)
    steps = await said(engine, ask("x", max_tokens=3))
    assert (text(steps), steps[-1].finish_reason) == ("one two three ", FinishReason.STOP)
    steps = await said(engine, ask("x", stop=("wo",)))
    assert (text(steps), steps[-1].finish_reason) == ("one t", FinishReason.STOP)


async def test_usage_and_finish_reason_can_be_scripted(ask: Ask) -> None:
    rule = Rule(
        pieces=("x",),
        finish_reason=FinishReason.CONTENT_FILTER,
        usage=ScriptedUsage(prompt_tokens=9, completion_tokens=8, cached_prompt_tokens=7),
    )
    last = (await said(FakeEngine(rules=[rule]), ask("x")))[-1]
    assert (last.finish_reason, last.usage) == (FinishReason.CONTENT_FILTER, Usage(9, 8, 7))


async def test_a_hanging_generation_is_counted_when_it_is_cancelled(ask: Ask) -> None:
    engine = FakeEngine(rules=[Rule(pieces=(), hang=True)])
    task = asyncio.create_task(said(engine, ask("x")))
    await asyncio.sleep(0.01)
    assert engine.running == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (engine.running, engine.cancelled) == (0, 1)


@pytest.mark.parametrize(
    ("script", "field"),
    [
        ('{"rules": [{"piece": ["x"]}]}', "rules.0.piece"),
        ('{"rules": [{"error": {"reason": "BAD_LUCK"}}]}', "rules.0.error.reason"),
        ('{"rules": [', "document"),
        (None, "script_file"),
    ],
)
async def test_a_wrong_script_is_refused_with_the_path_of_the_field(
    tmp_path: Path, script: str | None, field: str
) -> None:
    path = tmp_path / "script.json"
    if script is not None:
        await asyncio.to_thread(path.write_text, script)
    with pytest.raises(InvalidArgument) as raised:
        await FakeEngine(script_file=path).open()
    assert raised.value.field == field


async def test_the_script_of_the_documentation_is_a_script(tmp_path: Path, ask: Ask) -> None:
    import genaifactory_modelserver.engines.fake as module

    documented = (module.__doc__ or "").partition('    {"rules"')[2].rpartition("]}\n\n")[0]
    path = tmp_path / "script.json"
    await asyncio.to_thread(path.write_text, f'{{"rules"{documented}]}}')
    engine = FakeEngine(script_file=path)
    await engine.open()
    steps = await said(engine, ask("will it rain?"))
    calls = "".join(call.arguments_json for step in steps for call in step.tool_calls)
    assert json.loads(calls) == {"at": "Huế"}
    assert steps[-1].finish_reason is FinishReason.TOOL_CALLS
