"""The source of truth in SQLite: documents, the state of their revisions, index versions and term statistics.

Vectors are stored elsewhere (`vectors`), so a commit here decides what searches return. A revision's states are
writing -> live -> dead: its points are written before it is live and deleted after it is dead, and a search ignores
points of revisions that are not live. A process that is killed leaves revisions that are writing or dead, and the next
one to open the library deletes their points.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

from pydantic import TypeAdapter

from genaifactory_common import specs, sqlite_files
from genaifactory_common.sqlite_files import Pragmas, SqliteFile
from genaifactory_common.sqlite_thread import Database
from genaifactory_retriever import schema
from genaifactory_retriever.documents import Section
from genaifactory_retriever.stored import (
    OPEN_STATES,
    Access,
    Contents,
    Embedding,
    Index,
    Known,
    Origin,
    Put,
    State,
    StoredDocument,
)

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

_EMBEDDER: TypeAdapter[specs.AnyEmbedder] = TypeAdapter(specs.AnyEmbedder)
# FULL: a commit is on disk when it returns, so a power cut cannot undo what was acknowledged.
_PRAGMAS = Pragmas(synchronous="FULL")
_BUSY_SECONDS = 30.0
_LOSS = "the documents that were stored: those of DOCS are read again, others are to be ingested again"


class Library:
    """The database. Every method but `run` blocks: call writes inside `run`, reads there or on another thread."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the file. Raises Damaged, OSError, and Unavailable when a newer version wrote it.

        Blocks while it checks the file.
        """
        self._file = SqliteFile(path, "The library of documents", _LOSS)
        self._database = Database(self._file, _PRAGMAS, partial(schema.prepare, path=path), busy_seconds=_BUSY_SECONDS)
        self._lock = threading.Lock()
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        with self._translated():
            self._database.open_here()

    async def run(self, work: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        """Runs blocking work on the library's one thread, in the order of the calls."""
        return await self._database.in_thread(work, *arguments)

    def close(self) -> None:
        """Waits for running work, and closes every connection. Blocks."""
        self._database.close_here()
        with self._lock:
            for connection in self._readers:
                connection.close()
            self._readers.clear()

    # Documents

    def known(self, knowledge_base: str, tenant: str, document_id: str) -> Known | None:
        """The stored document of this id."""
        row = self.first(
            "SELECT document_id, revision, indexed, source_hash, content_hash FROM documents"
            " WHERE knowledge_base = ? AND tenant = ? AND document_id = ?",
            (knowledge_base, tenant, document_id),
        )
        return _known(row) if row else None

    def same_content(self, knowledge_base: str, tenant: str, content_hash: str) -> list[Known]:
        """Stored documents of this content, the indexed one first, then by id."""
        rows = self.read(
            "SELECT document_id, revision, indexed, source_hash, content_hash FROM documents"
            " WHERE knowledge_base = ? AND tenant = ? AND content_hash = ? ORDER BY indexed DESC, document_id",
            (knowledge_base, tenant, content_hash),
        )
        return [_known(row) for row in rows]

    def without_passages(self, knowledge_base: str, limit: int) -> list[tuple[str, Known]]:
        """One document of each content that none has passages of, with its tenant; at most `limit`."""
        rows = self.read(
            "SELECT tenant, document_id, min(revision), indexed, source_hash, content_hash FROM documents"
            " WHERE knowledge_base = ? GROUP BY tenant, content_hash HAVING max(indexed) = 0 LIMIT ?",
            (knowledge_base, limit),
        )
        return [(tenant, _known(row)) for tenant, *row in rows]

    def load(self, revision: int) -> StoredDocument | None:
        """The live document of this revision."""
        row = self.first(
            "SELECT tenant, document_id, source_hash, content_hash, title, uri, language, metadata, allowed_groups,"
            " text, sections FROM documents WHERE revision = ?",
            (revision,),
        )
        if row is None:
            return None
        origin = self.first(
            "SELECT media_type, size_bytes, store_time, source FROM origins WHERE revision = ?", (revision,)
        )
        tenant, document_id, source_hash, content_hash, title, uri, language, metadata, groups, text, found = row
        return StoredDocument(
            tenant=tenant,
            document_id=document_id,
            source_hash=source_hash,
            content_hash=content_hash,
            title=title,
            uri=uri,
            language=language,
            metadata=json.loads(metadata),
            allowed_groups=tuple(json.loads(groups)),
            text=text,
            sections=tuple(Section(tuple(headings), start, end) for headings, start, end in json.loads(found)),
            origin=Origin(*origin) if origin else Origin(),
        )

    def counts(self) -> list[tuple[str, str, int]]:
        """Tenant, knowledge base and number of documents, where there are any, sorted."""
        # Grouped in the order of an index, so that only the index is read.
        rows = self.read("SELECT knowledge_base, tenant, count(*) FROM documents GROUP BY 1, 2", ())
        return sorted((tenant, knowledge_base, count) for knowledge_base, tenant, count in rows)

    def indexed_revisions(self, knowledge_base: str) -> list[int]:
        """Live revisions that have passages, oldest first."""
        rows = self.read(
            "SELECT revision FROM documents WHERE knowledge_base = ? AND indexed ORDER BY revision", (knowledge_base,)
        )
        return [revision for (revision,) in rows]

    def access(self, revisions: Sequence[int]) -> dict[int, Access]:
        """Who may see the documents of these revisions; those that are not live any more are left out."""
        marks = ",".join("?" * len(revisions))
        rows = self.read(
            f"SELECT revision, document_id, tenant, allowed_groups FROM documents WHERE revision IN ({marks})",  # noqa: S608
            revisions,
        )
        return {revision: Access(name, tenant, tuple(json.loads(groups))) for revision, name, tenant, groups in rows}

    def reserve(self, knowledge_base: str, count: int) -> list[int]:
        """New revisions in the state writing."""
        with self._transaction() as connection:
            return [
                int(
                    connection.execute(
                        "INSERT INTO revisions (knowledge_base, state) VALUES (?, 'writing')", (knowledge_base,)
                    ).lastrowid
                    or 0
                )
                for _ in range(count)
            ]

    def commit(self, knowledge_base: str, puts: Sequence[Put], removed: Iterable[tuple[str, str]] = ()) -> list[int]:
        """Makes revisions live, replaces or removes (tenant, document_id) documents, in one commit.

        Returns the revisions that are dead now, whose points are to be deleted.
        """
        dead: list[int] = []
        with self._transaction() as connection:
            for tenant, document_id in (*removed, *((put.document.tenant, put.document.document_id) for put in puts)):
                row = connection.execute(
                    "DELETE FROM documents WHERE knowledge_base = ? AND tenant = ? AND document_id = ?"
                    " RETURNING revision",
                    (knowledge_base, tenant, document_id),
                ).fetchone()
                if row:
                    dead.append(row[0])
                    connection.execute("DELETE FROM origins WHERE revision = ?", row)
                    _forget(connection, row[0])
            for put in puts:
                _insert(connection, knowledge_base, put)
                for index_id, contents in put.contents.items():
                    _add_contents(connection, index_id, put.revision, put.document.tenant, contents)
            _set_revisions(connection, [put.revision for put in puts], "live")
            _set_revisions(connection, dead, "dead")
        return dead

    def unfinished(self, knowledge_base: str) -> list[int]:
        """Revisions whose points are to be deleted: writing or dead."""
        rows = self.read(
            "SELECT revision FROM revisions WHERE knowledge_base = ? AND state != 'live' ORDER BY revision",
            (knowledge_base,),
        )
        return [revision for (revision,) in rows]

    def forget_revisions(self, revisions: Iterable[int]) -> None:
        """Deletes revisions whose points are deleted."""
        with self._transaction() as connection:
            connection.executemany(
                "DELETE FROM revisions WHERE revision = ? AND state != 'live'", [(r,) for r in revisions]
            )

    # Index versions

    def knowledge_bases(self) -> list[str]:
        """Names of the knowledge bases that have an index."""
        return [name for (name,) in self.read("SELECT DISTINCT knowledge_base FROM indexes ORDER BY 1", ())]

    def indexes(self, knowledge_base: str) -> list[Index]:
        """All index versions that were ever created, newest first."""
        rows = self.read(
            "SELECT id, knowledge_base, version, state, chunk_tokens, overlap_tokens, create_time, idempotency_key,"
            " embedder, dimensions, digest FROM indexes LEFT JOIN embeddings ON index_id = id"
            " WHERE knowledge_base = ? ORDER BY id DESC",
            (knowledge_base,),
        )
        return [Index(*(*row[:8], _embedding(*row[8:]))) for row in rows]

    def add_index(self, index: Index, embedding: Embedding) -> Index:
        """Stores a new version under the next id and name; returns it with both, and with its embedding."""
        with self._transaction() as connection:
            (count,) = connection.execute(
                "SELECT count(*) FROM indexes WHERE knowledge_base = ?", (index.knowledge_base,)
            ).fetchone()
            version = f"v{count + 1}"
            row = connection.execute(
                "INSERT INTO indexes (knowledge_base, version, state, chunk_tokens, overlap_tokens, embedding_model,"
                " create_time, idempotency_key) VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
                (
                    index.knowledge_base,
                    version,
                    index.state,
                    index.chunk_tokens,
                    index.overlap_tokens,
                    embedding.embedder.model,
                    index.create_time,
                    index.idempotency_key,
                ),
            ).fetchone()
            _insert_embedding(connection, row[0], embedding)
        return replace(index, id=row[0], version=version, embedding=embedding)

    def record_embedding(self, index_id: int, embedding: Embedding) -> None:
        """Of a version that has none recorded."""
        with self._transaction() as connection:
            _insert_embedding(connection, index_id, embedding)

    def set_states(self, states: Mapping[int, State]) -> None:
        """Sets states of index versions in one commit; the statistics of failed and dropped ones are deleted."""
        with self._transaction() as connection:
            for index_id, state in states.items():
                connection.execute("UPDATE indexes SET state = ? WHERE id = ?", (state, index_id))
                if state not in OPEN_STATES:
                    for table in ("contents", "terms", "totals"):
                        connection.execute(f"DELETE FROM {table} WHERE index_id = ?", (index_id,))  # noqa: S608

    def add_contents(self, index_id: int, entries: Sequence[tuple[int, str, Contents]]) -> None:
        """Adds (revision, tenant, contents) to a version that is being built."""
        with self._transaction() as connection:
            for revision, tenant, contents in entries:
                _add_contents(connection, index_id, revision, tenant, contents)

    def totals(self, index_id: int, tenant: str) -> tuple[int, int]:
        """Documents and passages of the tenant in an index version."""
        row = self.first("SELECT documents, passages FROM totals WHERE index_id = ? AND tenant = ?", (index_id, tenant))
        return (row[0], row[1]) if row else (0, 0)

    def all_passages(self, index_id: int) -> int:
        """Passages of every tenant in an index version."""
        (passages,) = self.first("SELECT coalesce(sum(passages), 0) FROM totals WHERE index_id = ?", (index_id,))
        return int(passages)

    def passages_with(self, index_id: int, tenant: str, term_ids: Sequence[int]) -> dict[int, int]:
        """Term id -> passages of the tenant that contain it; terms of no passage are left out."""
        marks = ",".join("?" * len(term_ids))
        rows = self.read(
            f"SELECT term, passages FROM terms WHERE index_id = ? AND tenant = ? AND term IN ({marks})",  # noqa: S608
            (index_id, tenant, *term_ids),
        )
        return dict(rows)

    # Connections

    def _reader(self) -> sqlite3.Connection:
        connection = sqlite_files.connect(self._file.path, _PRAGMAS, busy_seconds=_BUSY_SECONDS)
        with self._lock:
            self._readers.append(connection)
        connection.execute("PRAGMA query_only = ON")
        return connection

    def read(self, statement: str, parameters: Sequence[object]) -> list[Any]:
        """Rows of a read-only statement, on a connection of the calling thread. Raises Unavailable."""
        with self._translated():
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = self._reader()
            return connection.execute(statement, parameters).fetchall()

    def first(self, statement: str, parameters: Sequence[object]) -> Any:
        """The first row of `read`; None if there is none."""
        return next(iter(self.read(statement, parameters)), None)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._translated(), self._database.transaction() as connection:
            yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Raises Unavailable for failures of the file; errors of our own statements pass as they are."""
        try:
            yield
        except (sqlite3.OperationalError, sqlite3.DatabaseError) as error:
            if type(error) not in (sqlite3.OperationalError, sqlite3.DatabaseError):
                raise
            raise self._file.explained(error) from error


def _known(row: tuple[str, int, int, str, str]) -> Known:
    return Known(row[0], row[1], bool(row[2]), row[3], row[4])


def _insert(connection: sqlite3.Connection, knowledge_base: str, put: Put) -> None:
    document = put.document
    connection.execute(
        "INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            knowledge_base,
            document.tenant,
            document.document_id,
            put.revision,
            int(put.indexed),
            document.source_hash,
            document.content_hash,
            document.title,
            document.uri,
            document.language,
            json.dumps(dict(document.metadata)),
            json.dumps(document.allowed_groups),
            document.text,
            json.dumps([(section.headings, section.start, section.end) for section in document.sections]),
        ),
    )
    origin = document.origin
    connection.execute(
        "INSERT INTO origins VALUES (?, ?, ?, ?, ?)",
        (put.revision, origin.media_type, origin.size_bytes, origin.store_time, origin.source),
    )


def _embedding(embedder: str | None, dimensions: int, digest: str) -> Embedding | None:
    return None if embedder is None else Embedding(_EMBEDDER.validate_json(embedder), dimensions, digest)


def _insert_embedding(connection: sqlite3.Connection, index_id: int, embedding: Embedding) -> None:
    connection.execute(
        "INSERT INTO embeddings VALUES (?, ?, ?, ?)",
        (index_id, embedding.embedder.model_dump_json(), embedding.dimensions, embedding.digest),
    )
    if embedding.embedder != specs.MiniLMEmbedder():
        schema.close_to_older_platforms(connection)


def _set_revisions(connection: sqlite3.Connection, revisions: Sequence[int], state: str) -> None:
    connection.executemany("UPDATE revisions SET state = ? WHERE revision = ?", [(state, r) for r in revisions])


def _add_contents(
    connection: sqlite3.Connection, index_id: int, revision: int, tenant: str, contents: Contents
) -> None:
    ids, passages = array("I", contents.term_passages.keys()), array("I", contents.term_passages.values())
    connection.execute(
        "INSERT INTO contents VALUES (?, ?, ?, ?, ?, ?)",
        (index_id, revision, tenant, contents.passages, ids.tobytes(), passages.tobytes()),
    )
    _count(connection, index_id, tenant, ids, passages, 1, contents.passages)


def _forget(connection: sqlite3.Connection, revision: int) -> None:
    rows = connection.execute(
        "DELETE FROM contents WHERE revision = ? AND index_id IN (SELECT id FROM indexes)"
        " RETURNING index_id, tenant, passages, term_ids, term_passages",
        (revision,),
    ).fetchall()
    for index_id, tenant, passages, term_ids, term_passages in rows:
        _count(connection, index_id, tenant, array("I", term_ids), array("I", term_passages), -1, -passages)


def _count(
    connection: sqlite3.Connection,
    index_id: int,
    tenant: str,
    term_ids: array[int],
    term_passages: array[int],
    sign: int,
    passages: int,
) -> None:
    connection.executemany(
        "INSERT INTO terms VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET passages = passages + excluded.passages",
        ((index_id, tenant, term, sign * count) for term, count in zip(term_ids, term_passages, strict=True)),
    )
    if sign < 0:
        connection.executemany(
            "DELETE FROM terms WHERE index_id = ? AND tenant = ? AND term = ? AND passages <= 0",
            ((index_id, tenant, term) for term in term_ids),
        )
    connection.execute(
        "INSERT INTO totals VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
        " SET documents = documents + excluded.documents, passages = passages + excluded.passages",
        (index_id, tenant, sign, passages),
    )
