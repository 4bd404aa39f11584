"""Usage as bars in a terminal: a bar for each day, in parts for each model or key."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta
from typing import Literal

from rich.text import Text

from genaifactory.gateway.v1 import gateway_pb2

Measure = Literal["requests", "tokens", "cost"]
Group = Literal["model", "key"]

NO_MODEL = "(no model)"
"""In place of the model of requests that no model answered: summaries, and what ended before one was called."""

_OTHERS = "others"
_MOST_BARS = 62
_MOST_PARTS = 6
_LEAST_BAR_CELLS = 10
_STYLES = ("cyan", "magenta", "green", "yellow", "blue", "white")
# So that parts differ without colours.
_FILLS = "█▓▒░▚▞"

_MEASURES: dict[Measure, Callable[[gateway_pb2.UsageRow], int]] = {
    "requests": lambda row: row.requests,
    "tokens": lambda row: row.usage.prompt_tokens + row.usage.completion_tokens,
    "cost": lambda row: row.cost_micros,
}


def lines(rows: Sequence[gateway_pb2.UsageRow], measure: Measure, by: Group, width: int) -> Iterator[Text]:
    """The lines of a chart that is `width` cells wide; one chart for each currency where cost is measured.

    Days without requests are bars of no length; beyond 62 days a bar is a week, beyond 62 weeks four weeks.
    """
    for currency in sorted({row.currency for row in rows}) if measure == "cost" else ("",):
        chosen = [row for row in rows if row.currency == currency] if currency else rows
        yield from _chart(chosen, measure, by, currency, width)


def _chart(
    rows: Sequence[gateway_pb2.UsageRow], measure: Measure, by: Group, currency: str, width: int
) -> Iterator[Text]:
    first, days, count = _bars(rows)
    sums: dict[int, Counter[str]] = defaultdict(Counter)
    totals: Counter[str] = Counter()
    for row in rows:
        name, value = row.key_id if by == "key" else row.model or NO_MODEL, _MEASURES[measure](row)
        sums[(date.fromisoformat(row.day) - first).days // days][name] += value
        totals[name] += value
    parts = [name for name, _ in totals.most_common()]
    if len(parts) > _MOST_PARTS:
        parts = [*parts[: _MOST_PARTS - 1], _OTHERS]
    labels = [(first + timedelta(days=days * i)).isoformat() for i in range(count)]
    values = [_value(sum(sums[i].values()), measure) for i in range(count)]
    cells = max(_LEAST_BAR_CELLS, width - len(labels[0]) - max(map(len, values)) - 2)
    highest = max(1, *(sum(sums[i].values()) for i in range(count)))
    unit = {1: "day", 7: "week"}.get(days, f"{days} days")
    yield Text(f"{measure.capitalize()}{f' in {currency}' if currency else ''} by {unit} and {by}", "bold")
    for i in range(count):
        bar = _bar(sums[i], parts, highest, cells)
        yield Text(labels[i], "dim").append(" ").append_text(bar).append(" ").append(values[i])
    for part, name in enumerate(parts):
        total = sum(totals[other] for other in totals if _part(other, parts) == part)
        legend = Text(f"{_FILLS[part]} ", _STYLES[part]).append(f"{name}  {_value(total, measure)}", "default")
        legend.truncate(width, overflow="ellipsis")
        yield legend


def _bars(rows: Sequence[gateway_pb2.UsageRow]) -> tuple[date, int, int]:
    """The first day, the days of one bar, and how many bars there are."""
    first, last = (date.fromisoformat(pick(row.day for row in rows)) for pick in (min, max))
    span = (last - first).days + 1
    days = next((days for days in (1, 7) if span <= days * _MOST_BARS), 28)
    return first, days, -(-span // days)


def _bar(sums: Counter[str], parts: Sequence[str], highest: int, cells: int) -> Text:
    """Each part ends where the sum up to it does, so that the bar is as long as their sum."""
    amounts: Counter[int] = Counter()
    for name, value in sums.items():
        amounts[_part(name, parts)] += value
    bar, total, drawn = Text(), 0, 0
    for part in range(len(parts)):
        total += amounts[part]
        end = round(total * cells / highest)
        bar.append(_FILLS[part] * (end - drawn), _STYLES[part])
        drawn = end
    if total and not drawn:
        bar.append("▏", _STYLES[_part(next(iter(sums)), parts)])
    return bar


def _part(name: str, parts: Sequence[str]) -> int:
    return parts.index(name) if name in parts else len(parts) - 1


def _value(value: int, measure: Measure) -> str:
    return f"{value / 1e6:,.4f}" if measure == "cost" else f"{value:,}"
