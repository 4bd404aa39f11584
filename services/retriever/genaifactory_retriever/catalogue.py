"""Lists the stored documents that a caller may see, by page, and shows one with its text.

Every function blocks, as the library's reads do. groups: of the caller; None: it may see every document of its tenant.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from genaifactory_retriever.library import Library
from genaifactory_retriever.stored import Origin, StoredDocument

_SEEN = (
    "(? IS NULL OR d.allowed_groups = '[]' OR EXISTS (SELECT 1 FROM json_each(d.allowed_groups) AS allowed"
    " JOIN json_each(?) AS own ON allowed.value = own.value))"
)
_FACTS = (
    "SELECT d.document_id, d.uri, d.title, d.language, d.metadata, d.allowed_groups, o.media_type, o.size_bytes,"
    " o.store_time, o.source, c.passages FROM documents AS d LEFT JOIN origins AS o ON o.revision = d.revision"
    " LEFT JOIN contents AS c ON c.index_id = ? AND c.revision = d.revision"
)


@dataclass(frozen=True)
class Filter:
    """Which documents of a tenant."""

    prefix: str = ""
    """Of their id; empty: any."""
    source: str = ""
    """Empty: any."""


@dataclass(frozen=True)
class Facts:
    """A document's properties, without its text."""

    document_id: str
    uri: str
    title: str
    language: str
    metadata: Mapping[str, str]
    allowed_groups: tuple[str, ...]
    origin: Origin
    passages: int


@dataclass(frozen=True)
class Page:
    """Documents in the order of their ids."""

    documents: tuple[Facts, ...]
    total: int
    """Documents that match, on all pages."""
    is_last: bool


@dataclass(frozen=True)
class Piece:
    """The text of a section, or a part of it."""

    headings: tuple[str, ...]
    text: str
    start: int
    """In the document's text, in code points."""


@dataclass(frozen=True)
class Shown:
    """A document, and a piece of its text."""

    facts: Facts
    pieces: tuple[Piece, ...]
    next_offset: int
    """Start of the rest; 0: there is none."""


def page(
    library: Library,
    knowledge_base: str,
    tenant: str,
    groups: tuple[str, ...] | None,
    *,
    index_id: int,
    wanted: Filter,
    after: str,
    limit: int,
) -> Page:
    """At most `limit` documents whose id sorts after `after`. index_id: the version whose passages are counted."""
    matching = (
        f" WHERE d.knowledge_base = ? AND d.tenant = ? AND substr(d.document_id, 1, ?) = ? AND {_SEEN}"  # noqa: S608
        " AND (? = '' OR EXISTS (SELECT 1 FROM origins AS s WHERE s.revision = d.revision AND s.source = ?))"
    )
    parameters = (
        *(knowledge_base, tenant, len(wanted.prefix), wanted.prefix),
        *_seen_by(groups),
        *(wanted.source, wanted.source),
    )
    (total,) = library.first(f"SELECT count(*) FROM documents AS d{matching}", parameters)  # noqa: S608
    rows = library.read(
        f"{_FACTS}{matching} AND d.document_id > ? ORDER BY d.document_id LIMIT ?",
        (index_id, *parameters, after, limit + 1),
    )
    return Page(tuple(map(_facts, rows[:limit])), int(total), len(rows) <= limit)


def show(
    library: Library,
    knowledge_base: str,
    tenant: str,
    groups: tuple[str, ...] | None,
    *,
    index_id: int,
    document_id: str,
    start: int,
    max_characters: int,
) -> Shown | None:
    """A document with at most `max_characters` of its text from `start` on; None: no document the caller may see."""
    row = library.first(
        f"{_FACTS} WHERE d.knowledge_base = ? AND d.tenant = ? AND d.document_id = ? AND {_SEEN}",
        (index_id, knowledge_base, tenant, document_id, *_seen_by(groups)),
    )
    known = library.known(knowledge_base, tenant, document_id)
    document = library.load(known.revision) if known else None
    if row is None or document is None:
        return None
    end = start + max_characters
    return Shown(_facts(row), tuple(_pieces(document, start, end)), end if end < len(document.text) else 0)


def visible(
    library: Library, knowledge_base: str, tenant: str, groups: tuple[str, ...] | None, document_ids: Iterable[str]
) -> list[str]:
    """The ids of documents that the caller may see, in the order given."""
    statement = f"SELECT 1 FROM documents AS d WHERE knowledge_base = ? AND tenant = ? AND document_id = ? AND {_SEEN}"  # noqa: S608
    return [
        document_id
        for document_id in document_ids
        if library.first(statement, (knowledge_base, tenant, document_id, *_seen_by(groups)))
    ]


def _pieces(document: StoredDocument, start: int, end: int) -> Iterator[Piece]:
    for section in document.sections:
        first, last = max(section.start, start), min(section.end, end)
        if first < last:
            yield Piece(section.headings, document.text[first:last], first)


def _seen_by(groups: tuple[str, ...] | None) -> tuple[str | None, str]:
    return (None, "[]") if groups is None else ("", json.dumps(groups))


def _facts(row: tuple[str, str, str, str, str, str, str | None, int, float, str, int | None]) -> Facts:
    document_id, uri, title, language, metadata, groups, media_type, size_bytes, store_time, source, passages = row
    return Facts(
        document_id=document_id,
        uri=uri,
        title=title,
        language=language,
        metadata=json.loads(metadata),
        allowed_groups=tuple(json.loads(groups)),
        origin=Origin() if media_type is None else Origin(media_type, size_bytes, store_time, source),
        passages=passages or 0,
    )
