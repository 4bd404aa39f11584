"""Parses server-sent events from raw bytes in pieces of any size (WHATWG HTML, 9.2.6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MAX_EVENT_BYTES = 1024 * 1024

_BOM = b"\xef\xbb\xbf"


class MalformedStream(Exception):
    """The bytes are no valid event stream, or exceed a bound."""


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """`name` is empty for the default, "message"; the lines of `data` are joined by newlines."""

    name: bytes
    data: bytes


class Parser:
    """Returns the events that the bytes complete. Bytes after the last blank line are no event."""

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._rest = bytearray()
        self._name = b""
        self._data: list[bytes] = []
        self._size = 0
        self._begun = False

    def feed(self, piece: bytes) -> Iterator[ServerSentEvent]:
        """Adds a piece; returns the events that end in it. Raises MalformedStream when one is larger than the bound."""
        goes_on = self._rest.endswith(b"\r")
        self._rest += piece
        if goes_on or b"\n" in piece or b"\r" in piece:  # else it is only appended, which keeps a long line linear
            lines = bytes(self._rest).splitlines(keepends=True)  # bytes are split only at \n, \r and \r\n
            # The last line may continue in the next piece, and so may \r\n.
            self._rest = bytearray() if lines[-1].endswith(b"\n") else bytearray(lines.pop())
            for line in lines:
                event = self._line(line.rstrip(b"\r\n"))
                if event is not None:
                    yield event
        if self._size + len(self._rest) > self._max_event_bytes:
            raise MalformedStream("an event is larger than the bound")

    def _line(self, line: bytes) -> ServerSentEvent | None:
        if not self._begun:
            self._begun = True
            line = line.removeprefix(_BOM)
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
        return None  # comments (an empty name), id and retry are ignored
