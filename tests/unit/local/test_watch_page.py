"""The page of `watch`: right numbers, any width, and lines for a pipe."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_local import watch_page
from genaifactory_local.watch_page import Page, Totals

NOW = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)


def record(number: int = 0, *, ago: float = 1.0, milliseconds: int = 40, **fields: Any) -> monitor_pb2.Interaction:
    start = Timestamp()
    start.FromDatetime(NOW - timedelta(seconds=ago, milliseconds=milliseconds))
    defaults: dict[str, Any] = {
        "request_id": f"req-{number:032x}",
        "key_id": "alice",
        "task": "rag",
        "route": "docs",
        "model": "small",
        "usage": types_pb2.TokenUsage(prompt_tokens=100, completion_tokens=7),
        "cost_micros": 1500,
        "currency": "USD",
        "time_to_first_token_us": 12_000,
        "outcome": monitor_pb2.OUTCOME_ANSWERED,
    }
    return monitor_pb2.Interaction(start_time=start, duration_us=milliseconds * 1000, **(defaults | fields))


BLOCKED = record(
    1,
    model="",
    outcome=monitor_pb2.OUTCOME_BLOCKED,
    verdicts=[
        types_pb2.Verdict(
            action=types_pb2.ACTION_BLOCK,
            policy="default",
            direction=types_pb2.DIRECTION_INPUT,
            findings=[types_pb2.Finding(entity_type="SECRET_PASSWORD", action=types_pb2.ACTION_BLOCK)],
        )
    ],
)


def shown(page: Page, width: int, height: int = 12) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(page)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_the_newest_request_is_on_top_with_key_model_tokens_cost_times_and_guardrails() -> None:
    page = Page("tenant dev", lambda: NOW)
    page.add([record(), BLOCKED])
    lines = shown(page, 170)
    text = "   ".join(line.strip() for line in lines)
    assert "requests/min 2   requests 2   failed 0   blocked 1 (50%)" in text
    assert "tokens in 200   out 14   cost 0.0030 USD" in text
    blocked, answered = lines[-2:]
    assert blocked.split()[1:4] == ["blocked", "docs", "alice"]
    assert "(no model)" in blocked
    assert "blocked in: SECRET_PASSWORD" in blocked
    expected = f"answered docs alice small 100 7 0.0015 12 ms 40 ms req-{0:032x}"
    assert " ".join(answered.split()[1:]) == expected


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
@pytest.mark.parametrize("height", [5, 12, 50])
def test_every_size_of_terminal_is_filled_and_never_exceeded(width: int, height: int) -> None:
    page = Page("tenant dev", lambda: NOW)
    page.add([record(number, route="a-very-long-route" * 5) for number in range(100)])
    lines = shown(page, width, height)
    assert all(len(line) <= width for line in lines)
    assert len(lines) <= max(height, 14)
    assert any("answered" in line for line in lines)


def test_the_page_reports_that_there_are_no_requests_or_no_platform() -> None:
    page = Page("tenant dev", lambda: NOW)
    assert shown(page, 80)[-1].strip() == "No requests yet. They appear here as they end."
    page.trouble = "No platform runs here."
    assert shown(page, 80)[0].strip() == "○ No platform runs here."


def test_percentiles_are_of_real_requests_and_the_rate_is_of_the_last_minute() -> None:
    totals = Totals()
    for number in range(100):
        totals.add(record(number, ago=number, milliseconds=number + 1))
    assert (totals.latency(0.5), totals.latency(0.95)) == ("51 ms", "96 ms")
    assert sum(totals.last_minute(NOW.timestamp())) == 60
    assert totals.last_minute(NOW.timestamp())[-1] == 2
    assert Totals().latency(0.5) == "-"


def test_memory_is_bounded() -> None:
    page = Page("tenant dev", lambda: NOW)
    page.add([record(number) for number in range(25_000)])
    held = [value for value in [*vars(page).values(), *vars(page._totals).values()] if hasattr(value, "__len__")]
    assert max(map(len, held)) <= 20_000
    assert page._totals.requests == 25_000


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "answered"),
        ({"cached": True}, "cached"),
        ({"refused": True}, "no answer"),
        ({"outcome": monitor_pb2.OUTCOME_FAILED}, "failed"),
        ({"outcome": monitor_pb2.OUTCOME_CANCELLED}, "cancelled"),
    ],
)
def test_an_outcome_is_a_word(fields: dict[str, Any], expected: str) -> None:
    assert watch_page.outcome(record(**fields)) == expected


def test_a_line_for_a_pipe_is_one_line_that_no_name_can_break() -> None:
    failed = record(outcome=monitor_pb2.OUTCOME_FAILED, error_reason="UPSTREAM_FAILED", route="a\nb\x1b[2J")
    text = watch_page.line(failed)
    assert "a?b?[2J  alice  small  tokens 100+7  cost 0.0015 USD  first 12 ms  took 40 ms  UPSTREAM_FAILED" in text
    assert text.isprintable()


def test_no_text_of_a_request_is_shown_or_printed() -> None:
    secret = record(output="SECRET", input=[types_pb2.Message(content="SECRET")], error_message="SECRET", user="SECRET")
    page = Page("tenant dev", lambda: NOW)
    page.add([secret])
    assert "SECRET" not in f"{shown(page, 200)}{watch_page.line(secret)}{watch_page.plain(secret)}"
