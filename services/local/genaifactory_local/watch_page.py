"""What `genaifactory watch` shows: totals on top, below them the newest requests, in a terminal of any size."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_local import guarded
from genaifactory_local.following import ended
from genaifactory_local.plot import NO_MODEL

_ROWS_KEPT = 500
_LATENCIES_KEPT = 1000
_MINUTE_KEPT = 20_000
_SPARKS = "▁▂▃▄▅▆▇█"
_SPARK_CELLS = 30
_SECONDS = 60
_WIDE_COLUMNS = 110
_LONGEST_NAME = 40
_HINT_COLUMNS = 70
_STYLES = {
    "answered": "green",
    "cached": "cyan",
    "no answer": "yellow",
    "blocked": "bold red",
    "failed": "bold red",
    "cancelled": "dim",
}


class Totals:
    """Sums since the start, and rates and percentiles of what came last. Its memory is bounded."""

    def __init__(self) -> None:
        self.requests = self.failed = self.blocked = self.masked = self.tokens_in = self.tokens_out = 0
        self.cost_micros: dict[str, int] = {}
        """By currency."""
        self._latencies: deque[int] = deque(maxlen=_LATENCIES_KEPT)
        self._first_texts: deque[int] = deque(maxlen=_LATENCIES_KEPT)
        self._ends: deque[float] = deque(maxlen=_MINUTE_KEPT)

    def add(self, record: monitor_pb2.Interaction) -> None:
        """Counts a request."""
        self.requests += 1
        self.failed += record.outcome == monitor_pb2.OUTCOME_FAILED
        self.blocked += record.outcome == monitor_pb2.OUTCOME_BLOCKED
        self.masked += any(item.rule.action == "masked" for item in guarded.enforced(record))
        self.tokens_in += record.usage.prompt_tokens
        self.tokens_out += record.usage.completion_tokens
        if record.currency:
            self.cost_micros[record.currency] = self.cost_micros.get(record.currency, 0) + record.cost_micros
        self._latencies.append(record.duration_us)
        if record.time_to_first_token_us:
            self._first_texts.append(record.time_to_first_token_us)
        self._ends.append(ended(record).timestamp())

    def last_minute(self, now: float) -> list[int]:
        """Requests that ended in each of 30 spans of two seconds, oldest first."""
        counts = [0] * _SPARK_CELLS
        for end in self._ends:
            if 0 <= now - end < _SECONDS:
                counts[-1 - int((now - end) * _SPARK_CELLS / _SECONDS)] += 1
        return counts

    def latency(self, share: float) -> str:
        """Of the last thousand requests; share: 0.95 for p95."""
        return _percentile(self._latencies, share)

    def first_text(self, share: float) -> str:
        """Until the first text of the last thousand requests that had some."""
        return _percentile(self._first_texts, share)


class Page:
    """The whole page; a rich renderable."""

    def __init__(self, title: str, clock: Callable[[], datetime]) -> None:
        """title: what is watched. clock: the time now."""
        self._title = title
        self._clock = clock
        self._totals = Totals()
        self._rows: deque[monitor_pb2.Interaction] = deque(maxlen=_ROWS_KEPT)
        self.trouble = ""
        """Why nothing new can be shown; empty while records are read."""

    def add(self, records: Sequence[monitor_pb2.Interaction]) -> None:
        """Shows more requests, the last on top."""
        for record in records:
            self._totals.add(record)
            self._rows.appendleft(record)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, options.height or console.height
        head = [self._state(width), *self._numbers(width)]
        for line in head:
            line.truncate(width, overflow="ellipsis")
            yield line
        yield Text("─" * width, "dim")
        rows = max(1, height - len(head) - 2)  # the rule and the headings
        if not self._rows:
            yield Text("No requests yet. They appear here as they end.", "dim")
            return
        gap = 2 if width >= _WIDE_COLUMNS else 1
        table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim", expand=True)
        columns = [column for column in _COLUMNS if width >= column.from_width]
        for column in columns:
            table.add_column(
                column.heading,
                justify=column.justify,
                no_wrap=True,
                overflow="ellipsis",
                ratio=column.ratio or None,
                min_width=column.least or None,
                max_width=_LONGEST_NAME if not column.ratio else None,
            )
        for record in list(self._rows)[:rows]:
            table.add_row(*(column.cell(record) for column in columns))
        yield table

    def _state(self, width: int) -> Text:
        if self.trouble:
            return Text("○ ", "bold yellow").append(self.trouble, "yellow")
        now = f"{self._clock().astimezone():%H:%M:%S}"
        if width >= _HINT_COLUMNS:
            now = f"Ctrl-C ends it   {now}"
        line = Text("● ", "bold green").append("GenAI Factory  ", "bold").append(self._title, "dim")
        line.append(" " * max(2, width - len(line.plain) - len(now))).append(now, "dim")
        return line

    def _numbers(self, width: int) -> list[Text]:
        totals = self._totals
        counts = totals.last_minute(self._clock().timestamp())
        cost = " + ".join(f"{micros / 1e6:,.4f} {currency}" for currency, micros in sorted(totals.cost_micros.items()))
        facts = [
            ("", _spark(counts)),
            ("requests/min", f"{sum(counts):,}"),
            ("requests", f"{totals.requests:,}"),
            ("failed", _share(totals.failed, totals.requests)),
            ("blocked", _share(totals.blocked, totals.requests)),
            ("masked", f"{totals.masked:,}"),
            ("p50", totals.latency(0.5)),
            ("p95", totals.latency(0.95)),
            ("first text p50", totals.first_text(0.5)),
            ("tokens in", f"{totals.tokens_in:,}"),
            ("out", f"{totals.tokens_out:,}"),
            ("cost", cost or "0"),
        ]
        lines, line = [], Text()
        for name, value in facts:
            alarming = name in ("failed", "blocked") and value != "0"
            fact = Text(f"{name} " if name else "", "dim").append(value, "bold red" if alarming else "bold")
            if line.plain and len(line.plain) + 3 + len(fact.plain) > width:
                lines.append(line)
                line = Text()
            line.append("   " if line.plain else "").append_text(fact)
        return [*lines, line]


def outcome(record: monitor_pb2.Interaction) -> str:
    """How a request ended, in one or two words."""
    if record.outcome == monitor_pb2.OUTCOME_ANSWERED:
        return "no answer" if record.refused else "cached" if record.cached else "answered"
    return monitor_pb2.Outcome.Name(record.outcome).removeprefix("OUTCOME_").lower()


def why(record: monitor_pb2.Interaction) -> str:
    """What guardrails enforced, and the reason of a failure; never any text of the request."""
    reason = record.error_reason if record.outcome == monitor_pb2.OUTCOME_FAILED else ""
    return "; ".join(filter(None, (reason, guarded.in_words(guarded.enforced(record)))))


def line(record: monitor_pb2.Interaction) -> str:
    """One request on one line, for a pipe or a file."""
    usage = record.usage
    parts = [
        f"{ended(record).astimezone():%Y-%m-%dT%H:%M:%S%z}",
        outcome(record).replace(" ", "-"),
        record.request_id,
        record.route or record.task,
        record.key_id,
        _model(record),
        f"tokens {usage.prompt_tokens}+{usage.completion_tokens}",
        f"cost {record.cost_micros / 1e6:.4f} {record.currency}".rstrip(),
        f"first {_milliseconds(record.time_to_first_token_us)}" if record.time_to_first_token_us else "",
        f"took {_milliseconds(record.duration_us)}",
        why(record),
    ]
    return _printable("  ".join(filter(None, parts)))


def plain(record: monitor_pb2.Interaction) -> dict[str, Any]:
    """One request for programs."""
    return {
        "time": ended(record).isoformat(),
        "request_id": record.request_id,
        "trace_id": record.trace_id,
        "key": record.key_id,
        "route": record.route,
        "model": record.model,
        "outcome": outcome(record),
        "error": record.error_reason,
        "prompt_tokens": record.usage.prompt_tokens,
        "completion_tokens": record.usage.completion_tokens,
        "cost_micros": record.cost_micros,
        "currency": record.currency,
        "time_to_first_token_us": record.time_to_first_token_us,
        "duration_us": record.duration_us,
        "enforced": [item.rule._asdict() | {"findings": item.findings} for item in guarded.enforced(record)],
    }


@dataclass(frozen=True)
class _Column:
    heading: str
    cell: Callable[[monitor_pb2.Interaction], Text]
    from_width: int = 0
    """Not shown in narrower terminals."""
    right: bool = False
    ratio: int = 0
    least: int = 0
    """Minimum width in cells."""

    @property
    def justify(self) -> Any:
        return "right" if self.right else "left"


def _cost(record: monitor_pb2.Interaction) -> Text:
    return Text(f"{record.cost_micros / 1e6:,.4f}" if record.cost_micros else "-", "" if record.cost_micros else "dim")


def _outcome_cell(record: monitor_pb2.Interaction) -> Text:
    word = outcome(record)
    return Text(word, _STYLES.get(word, ""))


def _why_cell(record: monitor_pb2.Interaction) -> Text:
    reason = _printable(why(record))
    return Text(reason, "yellow" if reason.startswith("masked") else "red")


_COLUMNS = (
    _Column("Time", lambda r: Text(f"{ended(r).astimezone():%H:%M:%S}", "dim"), least=8),
    _Column("Outcome", _outcome_cell, least=9),
    _Column("Route", lambda r: Text(_printable(r.route or r.task)), 50),
    _Column("Key", lambda r: Text(_printable(r.key_id)), 90),
    _Column("Model", lambda r: Text(_printable(_model(r)), "" if r.model else "dim"), 70),
    _Column("In", lambda r: Text(f"{r.usage.prompt_tokens:,}"), 80, right=True),
    _Column("Out", lambda r: Text(f"{r.usage.completion_tokens:,}"), 80, right=True),
    _Column("Cost", _cost, 120, right=True),
    _Column("First", lambda r: Text(_milliseconds(r.time_to_first_token_us)), 100, right=True),
    _Column("Took", lambda r: Text(_milliseconds(r.duration_us)), 30, right=True, least=6),
    _Column("Guardrails, errors", _why_cell, 40, ratio=1),
    _Column("Request", lambda r: Text(r.request_id, "dim"), 150),
)


def _model(record: monitor_pb2.Interaction) -> str:
    return record.model or NO_MODEL


def _milliseconds(microseconds: int) -> str:
    if not microseconds:
        return "-"
    seconds = microseconds / 1e6
    return f"{seconds:,.1f} s" if seconds >= 1 else f"{seconds * 1000:,.0f} ms"


def _percentile(values: Sequence[int], share: float) -> str:
    """By nearest rank, without interpolation."""
    ranked = sorted(values)
    return _milliseconds(ranked[min(len(ranked) - 1, int(len(ranked) * share))]) if ranked else "-"


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.0%})" if count else "0"


def _spark(counts: Sequence[int]) -> str:
    highest = max(*counts, 1)
    return "".join(_SPARKS[-(-count * (len(_SPARKS) - 1) // highest)] for count in counts)


def _printable(text: str) -> str:
    """Without control characters: names come from files and records, and must not steer the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)
