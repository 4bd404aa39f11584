"""Usage as bars: right lengths, every width, any number of days."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_local import plot
from genaifactory_local.plot import Group, Measure


def row(day: str, requests: int, model: str = "small", key: str = "k", cost: int = 0) -> gateway_pb2.UsageRow:
    usage = types_pb2.TokenUsage(prompt_tokens=requests * 10, completion_tokens=requests)
    return gateway_pb2.UsageRow(
        day=day, key_id=key, model=model, requests=requests, usage=usage, cost_micros=cost, currency="USD"
    )


def chart(*rows: gateway_pb2.UsageRow, of: Measure = "requests", by: Group = "model", width: int = 40) -> list[str]:
    return [line.plain for line in plot.lines(rows, of, by, width)]


def test_a_bar_is_as_long_as_its_sum_and_the_days_between_are_shown() -> None:
    assert chart(row("2026-11-01", 10), row("2026-11-03", 20), row("2026-11-03", 20, "big")) == [
        "Requests by day and model",
        "2026-11-01 ███████ 10".replace("███████", "█" * 6),
        "2026-11-02  0",
        "2026-11-03 " + "█" * 13 + "▓" * 13 + " 40",
        "█ small  30",
        "▓ big  20",
    ]


def test_one_day_fills_the_width() -> None:
    (_, bar, _) = chart(row("2026-11-01", 7), width=50)
    assert bar == "2026-11-01 " + "█" * 37 + " 7"
    assert len(bar) == 50


@pytest.mark.parametrize("width", [1, 20, 30, 80, 300])
def test_no_line_is_wider_than_the_terminal_or_the_shortest_readable_one(width: int) -> None:
    lines = chart(row("2026-11-01", 123_456, "m" * 200), row("2026-11-02", 1), of="tokens", width=width)
    least = len("2026-11-01 ") + 10 + len(" 1,358,016")
    assert max(map(len, lines[1:])) <= max(width, least)


def test_requests_without_a_model_have_a_part_of_their_own() -> None:
    assert chart(row("2026-11-01", 3, ""))[-1] == "█ (no model)  3"


def test_keys_may_divide_the_bars() -> None:
    lines = chart(row("2026-11-01", 3, key="a"), row("2026-11-01", 1, key="b"), by="key")
    assert lines[0] == "Requests by day and key"
    assert lines[-2:] == ["█ a  3", "▓ b  1"]


def test_costs_of_several_currencies_are_not_added_up() -> None:
    euros = row("2026-11-01", 1, cost=2_500_000)
    euros.currency = "EUR"
    lines = chart(row("2026-11-01", 1, cost=1_000_000), euros, of="cost")
    assert [line for line in lines if line.startswith("Cost")] == [
        "Cost in EUR by day and model",
        "Cost in USD by day and model",
    ]
    assert "█ small  2.5000" in lines
    assert "█ small  1.0000" in lines


@pytest.mark.parametrize(("days", "bars", "unit"), [(62, 62, "day"), (63, 9, "week"), (1000, 36, "28 days")])
def test_many_days_share_a_bar(days: int, bars: int, unit: str) -> None:
    first = date(2024, 1, 1)
    lines = chart(*(row((first + timedelta(days=i)).isoformat(), 1) for i in range(days)))
    assert lines[0] == f"Requests by {unit} and model"
    assert len(lines) == bars + 2
    assert lines[-1] == f"█ small  {days:,}"


def test_many_models_share_the_last_part() -> None:
    lines = chart(*(row("2026-11-01", 10 - i, f"m{i}") for i in range(9)))
    assert lines[-1].startswith("▞ others  ")
    assert sum(int(line.rpartition(" ")[2]) for line in lines[2:]) == int(lines[1].rpartition(" ")[2])


def test_a_small_value_beside_a_large_one_is_drawn_and_zero_is_not() -> None:
    lines = chart(row("2026-11-01", 1), row("2026-11-02", 100_000), row("2026-11-03", 0))
    assert "▏" in lines[1]
    assert lines[3] == "2026-11-03  0"
