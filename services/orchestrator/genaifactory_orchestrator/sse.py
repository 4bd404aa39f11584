"""Server-sent events out of raw bytes, in pieces of any size (WHATWG HTML, 9.2.6)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_EVENT_BYTES = 4 * 1024 * 1024

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class MalformedStream(Exception):
    """The bytes are no event stream that we can read."""


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """`name` is empty for the default, "message"; `data` has its lines joined by a newline."""

    name: bytes
    data: bytes


class Parser:
    """Feed it bytes; it gives back the events that they complete. What comes after the last blank line is no event."""

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._rest = b""
        self._name = b""
        self._data: list[bytes] = []
        self._size = 0
        self._begun = False

    def feed(self, piece: bytes) -> Iterator[ServerSentEvent]:
        """The events that end in this piece. Raises MalformedStream when one is larger than the bound."""
        buffer = self._rest + piece
        if not self._begun:
            if len(buffer) < len(_BOM) and _BOM.startswith(buffer):
                self._rest = buffer
                return
            self._begun = True
            buffer = buffer.removeprefix(_BOM)
        position = 0
        for end in _LINE_END.finditer(buffer):
            if end.group() == b"\r" and end.end() == len(buffer):
                break  # the other half of \r\n may come with the next piece
            event = self._line(buffer[position : end.start()])
            position = end.end()
            if event is not None:
                yield event
        self._rest = buffer[position:]
        if self._size + len(self._rest) > self._max_event_bytes:
            raise MalformedStream("an event is larger than the bound")

    def _line(self, line: bytes) -> ServerSentEvent | None:
        if not line:
            event = ServerSentEvent(self._name, b"\n".join(self._data)) if self._data else None
            self._name, self._data, self._size = b"", [], 0
            return event
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._size += len(value) + 1
            if self._size > self._max_event_bytes:
                raise MalformedStream("an event is larger than the bound")
        elif name == b"event":
            self._name = value
        return None  # comments (an empty name), id and retry mean nothing here
