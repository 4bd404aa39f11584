"""ExportInteractions: lines of JSON, oldest first, in bounded memory."""

from __future__ import annotations

import json

import pytest

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, testing
from genaifactory_common.channels import MAX_MESSAGE_BYTES
from tests.unit.monitor.conftest import Monitor, make_interaction, moment


async def test_a_line_holds_what_a_replay_and_a_data_set_need(monitor: Monitor) -> None:
    testing.act_as()
    await monitor.record(
        make_interaction(
            "a",
            at=0.25,
            prompt_version="rag@3",
            outcome=monitor_pb2.OUTCOME_FAILED,
            error_reason="UPSTREAM_FAILED",
            error_message="No model answered.",
            passages=[monitor_pb2.PassageReference(passage_id="p", document_id="d", score=0.1)],
            verdicts=[types_pb2.Verdict(action=types_pb2.ACTION_ALLOW, direction=types_pb2.DIRECTION_OUTPUT)],
        )
    )

    (line,) = await monitor.export()

    values = json.loads(line)
    assert line.endswith(b"}\n")
    assert values["start_time"].endswith("T12:00:00.250000Z")
    assert values == values | {
        "schema_version": 1,
        "request_id": "a",
        "tenant": "acme",
        "principal": "alice",
        "key_id": "alice",
        "user": "",
        "task": "rag",
        "route": "docs",
        "model": "extractive",
        "prompt_version": "rag@3",
        "index_version": "",
        "output": "Hà Nội [1].",
        "outcome": "failed",
        "error_reason": "UPSTREAM_FAILED",
        "error_message": "No model answered.",
        "duration_us": 4500,
        "time_to_first_token_us": 1500,
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "cached_prompt_tokens": 0},
        "cost_micros": 25,
        "currency": "USD",
        "cached": False,
        "refused": False,
        "conversation_id": "",
        "trace_id": "",
        "attempts": [],
        "passages": [{"passage_id": "p", "document_id": "d", "score": 0.1}],
        "citations": [],
        "verdicts": [
            {
                "action": "allow",
                "findings": [],
                "policy": "",
                "scanners": [],
                "scanned_characters": 0,
                "direction": "output",
            }
        ],
        "feedback": [],
    }
    assert values["input"][0]["role"] == "user"
    assert values["input"][0]["content"] == "Thủ đô của Việt Nam là gì?"
    assert "Thủ đô".encode() in line  # not escaped


async def test_everything_is_exported_once_oldest_first_over_many_pages(monitor: Monitor) -> None:
    testing.act_as()
    for start in range(0, 1000, 500):
        await monitor.record(*(make_interaction(f"r{i:04}", at=i // 3) for i in range(start, start + 500)))
    await monitor.record(make_interaction("z", tenant="rival"))

    lines = await monitor.export()

    assert [json.loads(line)["request_id"] for line in lines] == [f"r{i:04}" for i in range(1000)]


async def test_an_export_keeps_to_its_filter(monitor: Monitor) -> None:
    testing.act_as()
    await monitor.record(*(make_interaction(f"r{i}", at=i) for i in range(5)))
    await monitor.feedback(feedback_id="f", request_id="r2", rating=monitor_pb2.RATING_UP)
    lines = await monitor.export(start_time=moment(2), end_time=moment(4))
    assert [(json.loads(line)["request_id"], len(json.loads(line)["feedback"])) for line in lines] == [
        ("r2", 1),
        ("r3", 0),
    ]


async def test_nothing_to_export_is_an_empty_stream(monitor: Monitor) -> None:
    testing.act_as()
    assert await monitor.export() == []


async def test_answers_longer_than_a_message_arrive_whole(sqlite_monitor: Monitor) -> None:
    testing.act_as()
    # A control character takes six bytes in JSON: the line is longer than any message may be.
    longest = sqlite_monitor.settings.max_record_bytes - 1000
    await sqlite_monitor.record(make_interaction("a", output="\x01" * longest))
    await sqlite_monitor.record(make_interaction("b", at=1))
    for i in range(60):
        await sqlite_monitor.feedback(feedback_id=f"f{i}", request_id="a", correction="\x01" * 99_000)

    first, second = await sqlite_monitor.export()

    assert len(first) > MAX_MESSAGE_BYTES
    assert len(json.loads(first)["output"]) == longest
    assert json.loads(second)["request_id"] == "b"


async def test_a_reader_that_leaves_ends_the_export(monitor: Monitor) -> None:
    testing.act_as()
    for start in range(0, 1000, 500):
        await monitor.record(*(make_interaction(f"r{i:04}") for i in range(start, start + 500)))
    request = monitor_pb2.ExportInteractionsRequest()
    stream = channels.stream(monitor.stub.ExportInteractions, request, timeout_seconds=20)
    assert (await anext(stream)).count > 0
    await stream.aclose()
    assert await monitor.record(make_interaction("next")) == (1, 0)


@pytest.mark.parametrize("field", ["start_time", "end_time"])
async def test_a_period_without_an_end_is_open(field: str, monitor: Monitor) -> None:
    testing.act_as()
    await monitor.record(make_interaction("a"))
    expected = {"start_time": 1, "end_time": 0}[field]
    assert len(await monitor.export(**{field: moment(0)})) == expected
