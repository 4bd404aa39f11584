"""The spans of one request as a tree: which service did what, when, for how long, and with what outcome."""

from __future__ import annotations

import re
import sqlite3
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from genaifactory_common import span_store
from genaifactory_common.errors import InvalidArgument, Unavailable
from genaifactory_common.span_store import Span
from genaifactory_gateway import rules

LAST = "last"
"""Names the last request."""

# The record is stored a moment after the answer.
_SETTLE_SECONDS = 3.0
# Each service writes its spans twice a second: by then those of all others are in the file, too.
_WRITTEN_SECONDS = 1.5
_LOOK_SECONDS = 0.25
_NARROW_COLUMNS = 110
_BAR_CELLS = 24
_LEAST_CELLS = 8

_SHOWN = {
    "gen_ai.request.model": "",
    "gen_ai.usage.input_tokens": "tokens in",
    "gen_ai.usage.output_tokens": "tokens out",
    "gen_ai.response.time_to_first_chunk": "first token after",
    "gen_ai.response.finish_reasons": "finished by",
    "genaifactory.passages": "passages",
    "genaifactory.index_version": "index",
    "genaifactory.cache.hit": "cached",
    "genaifactory.guardrail.direction": "",
    "genaifactory.guardrail.action": "",
    "genaifactory.guardrail.findings": "found",
    "genaifactory.guardrail.policy": "policy",
    "http.response.status_code": "HTTP",
    "error.type": "",
    span_store.CALLER_TRACE: "client's trace",
}
"""Attributes of a span that are shown, in this order, each with its label."""


@dataclass(frozen=True)
class Node:
    """A span and the spans below it."""

    span: Span
    children: Sequence[Node]


def request_id(text: str) -> str:
    """The id of a request, from an `x-request-id` or an answer's `id`. Raises InvalidArgument."""
    if not re.fullmatch(rules.REQUEST_ID, text):
        raise InvalidArgument(
            f"'{text}' is not the id of a request. Give the x-request-id of a response (req-...), the id of an answer "
            f"(chatcmpl-...), or: {LAST}.",
            field="REQUEST",
        )
    return f"req-{text.partition('-')[2]}"


def read(file: Path, request: str) -> list[Span]:
    """The spans of a request id, or of the last request; empty when none are stored.

    Waits up to 3 s for the last of them. Raises InvalidArgument for a wrong id, Unavailable when the file is damaged.
    """
    wanted = None if request == LAST else request_id(request)
    until = time.monotonic() + _SETTLE_SECONDS
    spans = _read(file, wanted)
    while not _complete(spans) and time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)
        spans = _read(file, wanted)
    return spans


def roots(spans: Sequence[Span]) -> list[Node]:
    """The spans as trees, in the order of time; more than one where spans between are missing."""
    here = {span.span_id for span in spans}
    below: dict[str, list[Span]] = {}
    for span in spans:
        below.setdefault(span.parent_id if span.parent_id in here else "", []).append(span)

    def node(span: Span) -> Node:
        return Node(span, tuple(node(child) for child in below.get(span.span_id, ())))

    return [node(span) for span in below.get("", ())]


def details(span: Span) -> str:
    """A span's attributes in one line; none of them holds text of a question or an answer."""
    return ", ".join(
        f"{name} {_value(key, span.attributes[key])}".strip()
        for key, name in _SHOWN.items()
        if span.attributes.get(key) not in (None, "", [])
    )


def table(spans: Sequence[Span], width: int) -> Table:
    """The tree, with a bar for each span's time, on the scale of the first's; a narrow terminal has no bars."""
    narrow = width < _NARROW_COLUMNS
    start, scale = spans[0].start_ns, max(1, _duration(spans[0]))
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    times = max(len(_milliseconds(max(span.end_ns for span in spans) - start)), len("Took"))
    names = max(_LEAST_CELLS, width - 2 * (times + 1) - 1)
    shown.add_column("Service and operation", no_wrap=True, overflow="ellipsis", max_width=names if narrow else None)
    shown.add_column("From", justify="right", no_wrap=True, min_width=times)
    shown.add_column("Took", justify="right", no_wrap=True, min_width=times)
    if not narrow:
        shown.add_column("", no_wrap=True, width=_BAR_CELLS)
        shown.add_column("", overflow="fold")

    def add(node: Node, first: str, rest: str) -> None:
        span = node.span
        style = "red" if span.failed else ""
        name = Text(first, "dim").append(f"{span.service} ", f"bold {style}".strip()).append(_short(span.name), style)
        noted = Text(details(span), style or "dim")
        if narrow:
            branch = rest + ("│  " if node.children else "   ")
            lines = textwrap.wrap(noted.plain, max(_LEAST_CELLS, names - len(branch)))
            name = Text("\n").join([name, *(Text(branch, "dim").append(line, noted.style) for line in lines)])
        cells = [name, Text(_milliseconds(span.start_ns - start)), Text(_milliseconds(_duration(span)))]
        shown.add_row(*cells, *(() if narrow else (_bar(span, start, scale), noted)))
        for i, child in enumerate(node.children):
            last = i == len(node.children) - 1
            add(child, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))

    for root in roots(spans):
        add(root, "", "")
    return shown


def plain(spans: Sequence[Span]) -> list[Mapping[str, Any]]:
    """The spans for programs, as trees."""

    def value(node: Node) -> Mapping[str, Any]:
        span = node.span
        return {
            "service": span.service,
            "name": span.name,
            "trace_id": span.trace_id,
            "span_id": span.span_id,
            "start_us": span.start_ns // 1000,
            "duration_us": _duration(span) // 1000,
            "failed": span.failed,
            "attributes": {key: span.attributes[key] for key in _SHOWN if key in span.attributes},
            "children": [value(child) for child in node.children],
        }

    return [value(root) for root in roots(spans)]


def _read(file: Path, wanted: str | None) -> list[Span]:
    try:
        with span_store.reading(file) as reader:
            if reader is None:
                return []
            found = wanted or reader.last_request()
            return reader.of_request(found) if found else []
    except sqlite3.Error as error:
        raise Unavailable(f"{file} cannot be read ({error}). Delete it; the next request creates it again.") from None


def _complete(spans: Sequence[Span]) -> bool:
    """Whether all spans are there: the gateway's, which ends last, and monitor's, if the orchestrator was called."""
    services = {span.service for span in spans}
    if "gateway" not in services or ("orchestrator" in services and "monitor" not in services):
        return False
    return time.time_ns() - max(span.end_ns for span in spans) > _WRITTEN_SECONDS * 1e9


def _duration(span: Span) -> int:
    return max(0, span.end_ns - span.start_ns)


def _milliseconds(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e6:,.1f} ms"


def _bar(span: Span, start: int, scale: int) -> Text:
    """A span that begins after the first has ended (the record's) is drawn at the right edge."""
    first = min(_BAR_CELLS - 1, max(0, (span.start_ns - start) * _BAR_CELLS // scale))
    cells = min(_BAR_CELLS - first, max(1, round(_duration(span) * _BAR_CELLS / scale)))
    return Text(" " * first + "━" * cells, "red" if span.failed else "cyan")


def _short(name: str) -> str:
    """An RPC by its method alone."""
    return name.rpartition("/")[2] if name.startswith("genaifactory.") else name


def _value(key: str, value: Any) -> str:
    if key.endswith("time_to_first_chunk"):
        return _milliseconds(int(float(value) * 1e9))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
