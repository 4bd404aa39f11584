"""The cache of answers: exact match, in memory and on disk.

The key covers everything that the answer depends on, and the caller's tenant and groups; the passages are compared when
the entry is read (`Entry.knowledge`), so a swap of the index or a new document is a miss. A failing disk is a miss.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import time
import unicodedata
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from google.protobuf.message import Message
from prometheus_client import Counter, Gauge

from genaifactory.types.v1 import types_pb2
from genaifactory_common import images, sqlite_files
from genaifactory_common.damage import Damaged
from genaifactory_common.space import Room, Space
from genaifactory_common.sqlite_files import Pragmas, SqliteFile
from genaifactory_common.sqlite_thread import Database, migrations
from genaifactory_orchestrator import settings

logger = logging.getLogger(__name__)

LOOKUPS = Counter("genaifactory_cache_lookups_total", "Look-ups of answers.", ["result"])
MEMORY = Gauge("genaifactory_cache_memory_bytes", "Size of the cached answers in memory.")

_MIGRATIONS = (
    """
    CREATE TABLE entries (
        key TEXT PRIMARY KEY, tenant TEXT NOT NULL, question TEXT NOT NULL, output TEXT NOT NULL,
        model TEXT NOT NULL, prompt_version TEXT NOT NULL, knowledge TEXT NOT NULL, refused INTEGER NOT NULL,
        verdict BLOB NOT NULL, correctness TEXT NOT NULL,
        created_at REAL NOT NULL, expires_at REAL NOT NULL, used_at REAL NOT NULL, hits INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX entries_expires ON entries (expires_at);
    CREATE INDEX entries_used ON entries (used_at)
    """,
)
_COLUMNS = (
    "key, tenant, question, output, model, prompt_version, knowledge, refused, verdict, correctness, "
    "created_at, expires_at, hits"
)
# Memory of an entry beside its texts: the objects, the keys, the dictionary's slot.
_OVERHEAD_BYTES = 1024
_MAX_UNWRITTEN = 2000


@dataclass(frozen=True)
class Entry:
    """One answer."""

    key: str
    tenant: str
    question: str
    """The normalised question, after the input check."""
    output: str
    model: str
    prompt_version: str
    knowledge: str
    """Fingerprint of the passages; empty without retrieval."""
    refused: bool
    verdict: bytes
    """The serialized types.v1.Verdict on the output."""
    created_at: float
    expires_at: float
    correctness: str = "unknown"
    """By feedback: "unknown", "right" or "wrong"."""
    hits: int = 0

    @property
    def size(self) -> int:
        """In memory, in bytes."""
        return len(self.output.encode()) + len(self.question.encode()) + len(self.verdict) + _OVERHEAD_BYTES


def key(
    *,
    tenant: str,
    groups: Iterable[str],
    plan: str,
    sampling: types_pb2.Sampling,
    output_format: types_pb2.OutputFormat,
    search_options: types_pb2.SearchOptions,
    messages: Sequence[types_pb2.Message],
) -> str:
    """Hex digest over everything that an answer depends on, except the passages.

    plan: digest of the route with its models, prompt and policy. messages: the whole conversation, as checked.
    """
    digest = hashlib.sha256()
    parts: list[str | bytes] = [tenant, "\x1f".join(sorted(groups)), plan]
    parts += map(_bytes, (sampling, output_format, search_options))
    for message in messages:
        rest = types_pb2.Message()
        rest.CopyFrom(images.without_bytes(message))
        rest.content = ""
        parts += [_bytes(rest), normalised(message.content)]
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode()
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


def normalised(text: str) -> str:
    """One form for texts that look the same: NFC, LF line ends, no outer white space."""
    return unicodedata.normalize("NFC", text).replace("\r\n", "\n").strip()


def _bytes(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


class Cache:
    """Both tiers. `upkeep` writes new entries and hits to disk, so that no answer waits for it."""

    def __init__(self, path: Path, bounds: settings.Cache, space: Space) -> None:
        self._space = space
        self._bounds = bounds
        self._database = Database(
            SqliteFile(path, "The cache of answers", "nothing: answers are made again"),
            Pragmas(synchronous="NORMAL", exclusive=True, secure_delete=True),
            migrations(*_MIGRATIONS),
        )
        self._damaged = False
        self._memory: OrderedDict[str, Entry] = OrderedDict()
        self._memory_bytes = 0
        self._unwritten: dict[str, Entry] = {}
        self._hits: dict[str, int] = {}

    async def open(self) -> None:
        """Opens the file; a damaged one is created again. Raises Unavailable."""
        try:
            await self._database.open()
        except Damaged as error:
            try:
                await self._recreate()
            except OSError:  # it cannot be removed
                raise error from None

    async def close(self) -> None:
        """Writes what is new and closes the file."""
        await self.upkeep()
        await self._database.close()

    async def look_up(self, key: str, *, max_age_seconds: float) -> Entry | None:
        """The entry, if it is not too old. The caller compares its `knowledge`, and counts the hit."""
        entry = self._memory.get(key)
        if entry is not None:
            self._memory.move_to_end(key)
        else:
            try:
                entry = await self._database.run(lambda connection: _select(connection, key))
            except sqlite3.Error as error:
                self._failed(error)
            if entry is not None:
                self._remember(entry)
        now = time.time()
        if entry is None or now >= min(entry.expires_at, entry.created_at + max_age_seconds):
            return None
        return entry

    def count(self, entry: Entry | None) -> None:
        """Counts a hit on `entry`, or a miss."""
        LOOKUPS.labels("miss" if entry is None else "hit").inc()
        if entry is not None:
            self._hits[entry.key] = self._hits.get(entry.key, 0) + 1
            if entry.key in self._memory:
                self._memory[entry.key] = replace(self._memory[entry.key], hits=self._memory[entry.key].hits + 1)

    def store(self, entry: Entry) -> None:
        """Stores an entry, replacing one with its key."""
        if entry.size > self._bounds.max_entry_bytes:
            return
        self._remember(entry)
        if self._bounds.disk_entries and len(self._unwritten) < _MAX_UNWRITTEN:
            self._unwritten[entry.key] = entry

    async def upkeep(self) -> None:
        """Writes new entries and hits to disk, and removes old entries and those beyond the bound."""
        entries, self._unwritten = list(self._unwritten.values()), {}
        if self._space.room is not Room.ENOUGH:
            entries = []  # the remaining room is for records
        hits, self._hits = list(self._hits.items()), {}
        keep, now = self._bounds.disk_entries, time.time()
        try:
            await self._database.run(lambda connection: _upkeep(connection, entries, hits, keep, now))
        except sqlite3.Error as error:
            self._failed(error)
        if self._damaged:
            await self._recreate()

    def _failed(self, error: sqlite3.Error) -> None:
        """A failing disk is a miss. `upkeep` creates a damaged file again, since it never runs twice at once."""
        if not self._damaged:
            logger.error("the cache of answers on disk fails: %s", error)
        self._damaged = self._damaged or sqlite_files.is_damage(error)

    async def _recreate(self) -> None:
        logger.warning("the cache of answers on disk is damaged and is created again: answers are made again")
        await self._database.discard()
        await self._database.open()
        self._damaged = False

    def _remember(self, entry: Entry) -> None:
        if former := self._memory.pop(entry.key, None):
            self._memory_bytes -= former.size
        self._memory[entry.key] = entry
        self._memory_bytes += entry.size
        while self._memory_bytes > self._bounds.memory_bytes:
            _, dropped = self._memory.popitem(last=False)
            self._memory_bytes -= dropped.size
        MEMORY.set(self._memory_bytes)


def _select(connection: sqlite3.Connection, key: str) -> Entry | None:
    row = connection.execute(f"SELECT {_COLUMNS} FROM entries WHERE key = ?", (key,)).fetchone()  # noqa: S608
    if row is None:
        return None
    (_, tenant, question, output, model, prompt_version, knowledge, refused, verdict, correctness, *rest) = row
    created_at, expires_at, hits = rest
    return Entry(
        key, tenant, question, output, model, prompt_version, knowledge, bool(refused), verdict,
        created_at, expires_at, correctness, hits,
    )  # fmt: skip


def _upkeep(
    connection: sqlite3.Connection, entries: list[Entry], hits: list[tuple[str, int]], keep: int, now: float
) -> None:
    connection.executemany(
        f"INSERT OR REPLACE INTO entries ({_COLUMNS}, used_at) "  # noqa: S608
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                e.key, e.tenant, e.question, e.output, e.model, e.prompt_version, e.knowledge, e.refused, e.verdict,
                e.correctness, e.created_at, e.expires_at, e.hits, now,
            )
            for e in entries
        ],
    )  # fmt: skip
    connection.executemany(
        "UPDATE entries SET hits = hits + ?, used_at = ? WHERE key = ?", [(n, now, key) for key, n in hits]
    )
    connection.execute("DELETE FROM entries WHERE expires_at <= ?", (now,))
    connection.execute(
        "DELETE FROM entries WHERE key IN (SELECT key FROM entries ORDER BY used_at DESC LIMIT -1 OFFSET ?)", (keep,)
    )
