"""Reads multipart/form-data while it arrives: short fields, and one file in pieces."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Collection
from dataclasses import dataclass, field

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from genaifactory_common.errors import InvalidArgument, Reason

_MEDIA_TYPE = b"multipart/form-data"
_MAX_PARTS = 16
_MAX_FIELD_BYTES = 1024
_SHOWN = 100


@dataclass
class _Part:
    """A part whose headers were read."""

    name: str
    filename: str | None
    """None: it is no file."""


@dataclass
class Form:
    """A form that is being read. Its fields are complete once its file was read to the end."""

    content_type: bytes
    """The request's header."""
    names: Collection[str]
    """The fields that it may have, besides `file`."""
    fields: dict[str, str] = field(default_factory=dict)
    filename: str = ""
    """Of the file; empty until it begins."""

    async def file(self, pieces: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
        """The content of the part `file`; the first piece is empty, and comes when its name is known.

        Raises InvalidArgument: the body is no form, lacks the file, or has more than it may have.
        """
        parts = _Parts(self.content_type)
        values: dict[str, bytearray] = {}
        after = 0
        async for piece in pieces:
            after += len(piece) if parts.complete else 0
            if after > _MAX_FIELD_BYTES:
                raise InvalidArgument("The form must end with its last boundary; more was sent.")
            for part, data in parts.feed(piece):
                if part.filename is not None and part.name == "file":
                    if data is None:
                        if self.filename:
                            raise InvalidArgument("The form must have one 'file'; it has several.", field="file")
                        self.filename = part.filename or "file"
                        yield b""
                    else:
                        yield data
                    continue
                if part.name not in self.names or part.filename is not None:
                    raise InvalidArgument(
                        f"Unknown field '{part.name[:_SHOWN]}'; known: file, {', '.join(self.names)}.",
                        field=part.name[:_SHOWN],
                        reason=Reason.UNKNOWN_FIELD,
                    )
                value = values.setdefault(part.name, bytearray())
                value += data or b""
                if len(value) > _MAX_FIELD_BYTES:
                    raise InvalidArgument(f"'{part.name}' is longer than {_MAX_FIELD_BYTES} bytes.", field=part.name)
        if not parts.complete:
            raise InvalidArgument("The form ends before its last boundary; send all of it.")
        if not self.filename:
            raise InvalidArgument("'file' is missing; it is required, with a file name.", field="file")
        self.fields |= {name: value.decode("utf-8", "replace") for name, value in values.items()}


class _Parts:
    """The parser, as a list of what each piece of the body has."""

    def __init__(self, content_type: bytes) -> None:
        media_type, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if media_type != _MEDIA_TYPE or not boundary:
            raise InvalidArgument("The header Content-Type must be multipart/form-data with a boundary.")
        self.complete = False
        self._found: list[tuple[_Part, bytes | None]] = []
        self._part = _Part("", None)
        self._header, self._value, self._disposition = bytearray(), bytearray(), b""
        self._count = 0
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": lambda data, start, end: self._found.append((self._part, data[start:end])),
                    "on_end": self._end,
                },
            )
        except FormParserError:
            raise InvalidArgument("The boundary of the form is too long.") from None

    def feed(self, data: bytes) -> list[tuple[_Part, bytes | None]]:
        """Each part that begins, with None, and each piece of content. Raises InvalidArgument."""
        self._found = []
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise InvalidArgument(f"The body is no multipart form: {error}.") from None
        return self._found

    def _begin(self) -> None:
        self._count += 1
        if self._count > _MAX_PARTS:
            raise FormParserError(f"it has more than {_MAX_PARTS} parts")
        self._disposition = b""

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        kind, options = parse_options_header(self._disposition)
        if kind != b"form-data" or b"name" not in options:
            raise FormParserError("a part has no name in its header Content-Disposition")
        filename = options.get(b"filename")
        self._part = _Part(
            options[b"name"].decode("utf-8", "replace"),
            None if filename is None else filename.decode("utf-8", "replace"),
        )
        self._found.append((self._part, None))

    def _end(self) -> None:
        self.complete = True
