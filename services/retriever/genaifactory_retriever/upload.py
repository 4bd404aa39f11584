"""Reads uploads from the messages of an Ingest call: checks order, sizes and headers, and bounds the memory."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping

from genaifactory.retriever.v1 import retriever_pb2
from genaifactory_common import formats
from genaifactory_common.errors import DeadlineExceeded, InvalidArgument, TooLarge
from genaifactory_retriever.budget import ByteBudget
from genaifactory_retriever.ingestion import Header, Upload
from genaifactory_retriever.uploading import Announced

MAX_URI_CHARACTERS = 2048
MAX_TITLE_CHARACTERS = 1000
MAX_METADATA = 32
MAX_METADATA_CHARACTERS = 256
MAX_GROUPS = 64
MAX_GROUP_CHARACTERS = 128
MAX_DATA_BYTES = 1024 * 1024

_LANGUAGE = re.compile(r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*$")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# A citation is shown as a link, so a uri without a scheme must be a path: not "//host", nor what browsers read as that.
_SCHEME = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*:")
_WEB_ADDRESS = re.compile(r"https?://[^\s/\\?#]", re.IGNORECASE)
_OTHER_HOST = re.compile(r"\s*[/\\]{2}")


async def first_message(requests: AsyncIterator[retriever_pb2.IngestRequest]) -> tuple[str, Announced]:
    """The knowledge base and the upload's size, from the call's first message. Raises InvalidArgument."""
    async for request in requests:
        if request.WhichOneof("part") == "open":
            opened = request.open
            if opened.documents_before > opened.documents_total:
                raise InvalidArgument(
                    f"documents_before is {opened.documents_before}; it must be at most the upload's documents_total "
                    f"({opened.documents_total}).",
                    field="open.documents_before",
                )
            return opened.knowledge_base, Announced(opened.documents_total, opened.documents_before, opened.continues)
        break
    raise InvalidArgument("The first message must be `open`, which names the knowledge base.", field="open")


async def uploads(
    requests: AsyncIterator[retriever_pb2.IngestRequest],
    budget: ByteBudget,
    *,
    max_bytes: int,
    data_timeout_seconds: float,
) -> AsyncIterator[Upload]:
    """The documents of a call after its first message. The bytes of a refused one are read and dropped.

    budget: at least max_bytes; holds the bytes of yielded documents, which the consumer releases.

    Raises InvalidArgument for messages out of order, DeadlineExceeded when one is missing for data_timeout_seconds.
    """
    iterator = aiter(requests)
    while (request := await anext(iterator, None)) is not None:
        part = request.WhichOneof("part")
        if part != "document":
            raise InvalidArgument(
                f"Expected `document`, got `{part or 'an empty message'}`; the document before it is complete.",
                field=part,
            )
        header, refusal = _header(request.document, max_bytes)
        size = request.document.size_bytes
        if refusal is not None:
            await _read(iterator, header.document_id, size, data_timeout_seconds, None)
            yield Upload(header, b"", refusal)
            continue
        await budget.acquire(size)
        data = bytearray()
        try:
            await _read(iterator, header.document_id, size, data_timeout_seconds, data)
        except BaseException:
            budget.release(size)
            raise
        yield Upload(header, bytes(data))


async def _read(
    iterator: AsyncIterator[retriever_pb2.IngestRequest],
    document_id: str,
    size: int,
    timeout_seconds: float,
    into: bytearray | None,
) -> None:
    missing = size
    while missing:
        piece = await _data(iterator, document_id, timeout_seconds)
        if len(piece) > missing:
            raise InvalidArgument(
                f"The document '{document_id}' is longer than its size_bytes of {size}.", field="data"
            )
        missing -= len(piece)
        if into is not None:
            into += piece


async def _data(
    iterator: AsyncIterator[retriever_pb2.IngestRequest], document_id: str, timeout_seconds: float
) -> bytes:
    try:
        async with asyncio.timeout(timeout_seconds):
            request = await anext(iterator, None)
    except TimeoutError:
        raise DeadlineExceeded(f"No data for the document '{document_id}' in {timeout_seconds:.0f} s.") from None
    if request is None or request.WhichOneof("part") != "data":
        raise InvalidArgument(
            f"The document '{document_id}' is shorter than its size_bytes; send all of its `data`.", field="data"
        )
    if not request.data:
        raise InvalidArgument("A `data` message must hold at least one byte.", field="data")
    if len(request.data) > MAX_DATA_BYTES:
        raise TooLarge(f"A `data` message holds at most {MAX_DATA_BYTES} bytes.", field="data")
    return request.data


def _header(message: retriever_pb2.DocumentHeader, max_bytes: int) -> tuple[Header, InvalidArgument | None]:
    """The header, and the error of a document that is refused."""
    # A refused document has a result too, with its id as far as it can be shown.
    header = Header(
        document_id=_CONTROL.sub("", message.document_id)[: formats.MAX_ID_CHARACTERS],
        uri=message.uri,
        media_type=message.media_type,
        title=message.title,
        language=language(message.language) if _LANGUAGE.match(message.language) else "",
        metadata=dict(message.metadata),
        allowed_groups=tuple(message.allowed_groups),
        source=message.source,
    )
    try:
        _check(message, max_bytes)
    except InvalidArgument as error:
        return header, error
    return header, None


def _check(message: retriever_pb2.DocumentHeader, max_bytes: int) -> None:
    check_document_id("document_id", message.document_id)
    check_text("uri", message.uri, MAX_URI_CHARACTERS)
    check_uri("uri", message.uri)
    check_text("source", message.source, formats.MAX_SOURCE_CHARACTERS)
    check_text("title", message.title, MAX_TITLE_CHARACTERS)
    check_text("media_type", message.media_type, MAX_TITLE_CHARACTERS)
    check_language("language", message.language)
    check_metadata("metadata", message.metadata)
    if len(message.allowed_groups) > MAX_GROUPS:
        raise InvalidArgument(f"A document has at most {MAX_GROUPS} allowed_groups.", field="allowed_groups")
    for i, group in enumerate(message.allowed_groups):
        if not group:
            raise InvalidArgument("A group must have a name.", field=f"allowed_groups[{i}]")
        check_text(f"allowed_groups[{i}]", group, MAX_GROUP_CHARACTERS)
    if message.size_bytes == 0:
        raise InvalidArgument("The document is empty; size_bytes must be at least 1.", field="size_bytes")
    if message.size_bytes > max_bytes:
        raise TooLarge(
            f"The document has {message.size_bytes} bytes; at most {max_bytes} are accepted. Split it.",
            field="size_bytes",
        )


def check_document_id(field: str, value: str) -> None:
    """Raises InvalidArgument."""
    if not value:
        raise InvalidArgument(f"{field} must name the document within the knowledge base.", field=field)
    check_text(field, value, formats.MAX_ID_CHARACTERS)


def check_language(field: str, value: str) -> None:
    """Raises InvalidArgument."""
    if value and not _LANGUAGE.match(value[:100]):
        raise InvalidArgument(f"{field} must be a BCP 47 tag such as 'vi' or 'en', or empty.", field=field)


def language(tag: str) -> str:
    """The language of a valid tag without its region: 'vi' for 'vi-VN'."""
    return tag.partition("-")[0].lower()


def check_metadata(field: str, metadata: Mapping[str, str]) -> None:
    """Raises InvalidArgument."""
    if len(metadata) > MAX_METADATA:
        raise InvalidArgument(f"{field} has at most {MAX_METADATA} entries.", field=field)
    for key, value in metadata.items():
        if not key:
            raise InvalidArgument(f"A key of {field} must not be empty.", field=field)
        check_text(f"{field}[{key[:50]}]", key, MAX_METADATA_CHARACTERS)
        check_text(f"{field}[{key[:50]}]", value, MAX_METADATA_CHARACTERS)


def check_uri(field: str, value: str) -> None:
    """Raises InvalidArgument."""
    if _WEB_ADDRESS.match(value) or not (_SCHEME.match(value) or _OTHER_HOST.match(value)):
        return
    raise InvalidArgument(
        f"{field} must be an http or https URL, or a path without a scheme; write './a:b.md' for a path with a colon.",
        field=field,
    )


def check_text(field: str, value: str, max_characters: int) -> None:
    """Raises InvalidArgument for a text that is too long or holds control characters."""
    if len(value) > max_characters:
        raise InvalidArgument(
            f"{field} has {len(value)} characters; at most {max_characters} are accepted.", field=field
        )
    if _CONTROL.search(value):
        raise InvalidArgument(f"{field} must not hold control characters.", field=field)
