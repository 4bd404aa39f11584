"""Parsing of server-sent events from raw bytes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genaifactory_orchestrator.models.sse import MalformedStream, Parser, ServerSentEvent


def parse(*pieces: bytes) -> list[tuple[bytes, bytes]]:
    parser = Parser()
    return [(event.name, event.data) for piece in pieces for event in parser.feed(piece)]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        pytest.param(b"data: a\n\ndata: b\n\n", [(b"", b"a"), (b"", b"b")], id="newlines"),
        pytest.param(b"data: a\r\n\r\ndata: b\r\n\r\n", [(b"", b"a"), (b"", b"b")], id="CRLF"),
        pytest.param(b"data: a\r\rdata: b\r\r\n", [(b"", b"a"), (b"", b"b")], id="CR"),
        pytest.param(b"data:a\n\n", [(b"", b"a")], id="no space after the colon"),
        pytest.param(b"data:  a\n\n", [(b"", b" a")], id="only one space is dropped"),
        pytest.param(b"data: a\ndata: b\n\n", [(b"", b"a\nb")], id="data of several lines"),
        pytest.param(b"data\n\n", [(b"", b"")], id="a field without a colon is empty"),
        pytest.param(b": keep-alive\n\ndata: a\n\n:\n\n", [(b"", b"a")], id="comments"),
        pytest.param(b"event: error\ndata: a\n\ndata: b\n\n", [(b"error", b"a"), (b"", b"b")], id="names"),
        pytest.param(b"id: 7\nretry: 10\ndata: a\n\n", [(b"", b"a")], id="other fields"),
        pytest.param(b"event: error\n\ndata: b\n\n", [(b"", b"b")], id="an event without data is none"),
        pytest.param(b"\xef\xbb\xbfdata: a\n\n", [(b"", b"a")], id="byte order mark"),
        pytest.param(b"data: a\n\ndata: b\n", [(b"", b"a")], id="an unfinished event is dropped"),
        pytest.param("data: chào\u2028bạn\n\n".encode(), [(b"", "chào\u2028bạn".encode())], id="other separators"),
    ],
)
def test_every_form_of_stream_is_parsed(stream: bytes, events: list[tuple[bytes, bytes]]) -> None:
    assert parse(stream) == events
    assert parse(*(stream[i : i + 1] for i in range(len(stream)))) == events


LINES = st.sampled_from([b"data: x", b"data:", b"data", b": ping", b"event: e", b"", b"", "data: ệ".encode(), b"id: 1"])
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(lines=st.lists(st.tuples(LINES, ENDS)), cuts=st.lists(st.integers(0, 200)))
def test_events_do_not_depend_on_how_the_stream_is_cut(lines: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    stream = b"".join(line + end for line, end in lines) + b"\ndata: last\n\n"
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    assert parse(*(stream[a:b] for a, b in itertools.pairwise(places))) == parse(stream)


@pytest.mark.parametrize(
    "stream", [b"data: " + b"a" * 200, b"data: aaaaaaaa\n" * 20, b"a" * 200], ids=["line", "lines", "no field"]
)
def test_an_endless_event_is_refused_within_the_bound(stream: bytes) -> None:
    parser = Parser(max_event_bytes=100)
    pieces = (stream[i : i + 10] for i in range(0, len(stream), 10))
    with pytest.raises(MalformedStream, match="larger than the bound"):
        list(itertools.chain.from_iterable(map(parser.feed, pieces)))
    assert next(pieces), "refused before its end"


def test_the_bound_is_for_one_event_and_not_for_the_stream() -> None:
    parser = Parser(max_event_bytes=100)
    events = [event for _ in range(1000) for event in parser.feed(b": ping\ndata: " + b"a" * 50 + b"\n\n")]
    assert events == [ServerSentEvent(b"", b"a" * 50)] * 1000
