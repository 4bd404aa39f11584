"""The tables of the library, and their creation, also in a file of an older version of the platform."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from genaifactory_common.errors import Unavailable

_VERSION = 2
_MINILM_ALONE = 1
"""The version while each index is MiniLM's: a platform from before there were others can read the file as well."""
_TABLES = """
CREATE TABLE documents (
  knowledge_base TEXT NOT NULL, tenant TEXT NOT NULL, document_id TEXT NOT NULL,
  revision INTEGER NOT NULL UNIQUE, indexed INTEGER NOT NULL,
  source_hash TEXT NOT NULL, content_hash TEXT NOT NULL,
  title TEXT NOT NULL, uri TEXT NOT NULL, language TEXT NOT NULL, metadata TEXT NOT NULL, allowed_groups TEXT NOT NULL,
  text TEXT NOT NULL, sections TEXT NOT NULL,
  PRIMARY KEY (knowledge_base, tenant, document_id)
) WITHOUT ROWID;
CREATE INDEX documents_by_content ON documents (knowledge_base, tenant, content_hash, indexed);
CREATE TABLE revisions (
  revision INTEGER PRIMARY KEY AUTOINCREMENT, knowledge_base TEXT NOT NULL, state TEXT NOT NULL
);
CREATE INDEX revisions_by_state ON revisions (knowledge_base, state);
CREATE TABLE indexes (
  id INTEGER PRIMARY KEY AUTOINCREMENT, knowledge_base TEXT NOT NULL, version TEXT NOT NULL, state TEXT NOT NULL,
  chunk_tokens INTEGER NOT NULL, overlap_tokens INTEGER NOT NULL, embedding_model TEXT NOT NULL,
  create_time REAL NOT NULL, idempotency_key TEXT NOT NULL,
  UNIQUE (knowledge_base, version)
);
CREATE TABLE contents (
  index_id INTEGER NOT NULL, revision INTEGER NOT NULL, tenant TEXT NOT NULL,
  passages INTEGER NOT NULL, term_ids BLOB NOT NULL, term_passages BLOB NOT NULL,
  PRIMARY KEY (index_id, revision)
) WITHOUT ROWID;
CREATE TABLE terms (
  index_id INTEGER NOT NULL, tenant TEXT NOT NULL, term INTEGER NOT NULL, passages INTEGER NOT NULL,
  PRIMARY KEY (index_id, tenant, term)
) WITHOUT ROWID;
CREATE TABLE totals (
  index_id INTEGER NOT NULL, tenant TEXT NOT NULL, documents INTEGER NOT NULL, passages INTEGER NOT NULL,
  PRIMARY KEY (index_id, tenant)
) WITHOUT ROWID;
"""
# A table of its own: a version without it still works after a rollback.
_ORIGINS = """
CREATE TABLE IF NOT EXISTS origins (
  revision INTEGER PRIMARY KEY, media_type TEXT NOT NULL, size_bytes INTEGER NOT NULL, store_time REAL NOT NULL,
  source TEXT NOT NULL
);
DELETE FROM origins WHERE revision NOT IN (SELECT revision FROM documents);
"""
_EMBEDDINGS = """
CREATE TABLE IF NOT EXISTS embeddings (
  index_id INTEGER PRIMARY KEY, embedder TEXT NOT NULL, dimensions INTEGER NOT NULL, digest TEXT NOT NULL
);
"""


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Creates missing tables in one transaction. Raises Unavailable when a newer version wrote the file."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > _VERSION:
        raise Unavailable(
            f"{path} was written by a newer version of the platform (schema {version}, this one has {_VERSION}); run "
            "that version on it."
        )
    tables = f"{_TABLES} PRAGMA user_version = {_MINILM_ALONE};" if version == 0 else ""
    connection.executescript(f"BEGIN IMMEDIATE; {tables} {_ORIGINS} {_EMBEDDINGS} COMMIT;")


def close_to_older_platforms(connection: sqlite3.Connection) -> None:
    """Inside of the transaction that adds an index of another embedder than MiniLM.

    A platform from before there were others would search it with MiniLM's vectors; now it refuses the file.
    """
    connection.execute(f"PRAGMA user_version = {_VERSION}")
