"""The queue of interactions for monitor: on disk, bounded, at-least-once.

    place = outbox.reserve()        # before any work: with a full queue the request is refused, and no record is lost
    with place:
        ...
        await place.put(record)     # on disk, and safe from kill -9, when this returns

Concurrent records share one commit. A sender sends batches to monitor, which ignores records that it has, and removes
them after the acknowledgement. A record that monitor refuses is moved aside, so that it does not block the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from google.protobuf.message import DecodeError
from prometheus_client import Counter, Gauge

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_common import background
from genaifactory_common.backoff import Backoff
from genaifactory_common.errors import FactoryError, Internal, InvalidArgument, OutOfSpace, Overloaded, Unavailable
from genaifactory_common.space import Space, is_full
from genaifactory_common.sqlite_files import Pragmas, SqliteFile
from genaifactory_common.sqlite_thread import Database, migrations
from genaifactory_orchestrator import settings

logger = logging.getLogger(__name__)

RECORDS = Gauge("genaifactory_outbox_records", "Interactions on disk that monitor has not acknowledged.")
BYTES = Gauge("genaifactory_outbox_bytes", "Size of the interactions that monitor has not acknowledged.")
REFUSED = Counter("genaifactory_outbox_refused_total", "Requests refused because the outbox was full. Alert on it.")
POISON = Counter("genaifactory_outbox_poison_total", "Interactions that monitor refused and that were moved aside.")
FAILURES = Counter("genaifactory_outbox_send_failures_total", "Batches that monitor did not accept.", ["reason"])

Send = Callable[[list[monitor_pb2.Interaction]], Awaitable[None]]
"""Stores interactions at monitor; returns after its acknowledgement; raises FactoryError."""

Row = tuple[int, str, bytes]
"""Number, request id and serialized Interaction."""

_MIGRATIONS = (
    """
    CREATE TABLE records (id INTEGER PRIMARY KEY AUTOINCREMENT, request_id TEXT NOT NULL, data BLOB NOT NULL);
    CREATE TABLE poison (
        id INTEGER PRIMARY KEY, request_id TEXT NOT NULL, data BLOB NOT NULL,
        error TEXT NOT NULL, moved_at REAL NOT NULL)
    """,
)
# Well below the 16 MiB of a gRPC message.
_BATCH_BYTES = 4 * 1024 * 1024
# One record may cause an internal error of monitor: after so many in a row, records are sent one by one.
_INTERNAL_ERRORS_BEFORE_SUSPICION = 5
_FIRST_BACKOFF_SECONDS = 0.2


class Place:
    """A reservation for one record; a context manager that releases it if it was not used."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._used = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self._used:
            self._used = True
            self._outbox._reserved -= 1

    def put_soon(self, record: monitor_pb2.Interaction) -> asyncio.Future[None]:
        """Enqueues the record; the future is done when it is on disk. For a request that is being cancelled."""
        if self._used:
            raise Internal("A place in the outbox is for one record.")
        self._used = True
        return self._outbox._accept(record)

    async def put(self, record: monitor_pb2.Interaction) -> None:
        """Returns when the record is on disk. Raises Unavailable when it cannot be written."""
        # Shielded: the commit is shared with other requests, and this record is accepted in any case.
        await asyncio.shield(self.put_soon(record))


class Outbox:
    """The queue. `open` before the first `reserve`; `close` continues to send for `flush_seconds`."""

    def __init__(self, path: Path, bounds: settings.Outbox, space: Space, send: Send) -> None:
        self._bounds = bounds
        self._space = space
        self._send = send
        self._database = Database(
            SqliteFile(path, "The queue of records", "records of answers that have not reached the monitor"),
            Pragmas(synchronous="FULL", exclusive=True, secure_delete=True),
            migrations(*_MIGRATIONS),
        )
        self._reserved = 0
        self._records = 0
        self._bytes = 0
        self._accepted: list[tuple[str, bytes, asyncio.Future[None]]] = []
        self._has_accepted = asyncio.Event()
        self._has_records = asyncio.Event()
        self._closing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Opens the file, and begins to send the records of a former process. Raises Unavailable."""
        await self._database.open()
        self._records, self._bytes = await self._database.run(_totals)
        self._count(0, 0)
        self._tasks = [
            asyncio.create_task(self._commit_forever(), name="outbox-commit"),
            asyncio.create_task(self._send_forever(), name="outbox-send"),
        ]

    async def close(self) -> None:
        """Sends the remaining records for at most `flush_seconds`; the rest stays on disk for the next process."""
        self._closing.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._bounds.flush_seconds):
                while self._records or self._accepted:
                    await asyncio.wait(self._tasks, timeout=0.02)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._accepted:
            await self._commit()
        if self._records:
            logger.warning("%d interactions stay on disk until the next start", self._records)
        await self._database.close()

    @property
    def waiting(self) -> int:
        """Records on disk that monitor has not acknowledged."""
        return self._records

    def reserve(self) -> Place:
        """Reserves a place for one record. Raises Overloaded when the queue is full, OutOfSpace when its disk is."""
        self._space.require()
        taken = self._records + len(self._accepted) + self._reserved
        if taken >= self._bounds.max_records or self._bytes >= self._bounds.max_bytes:
            REFUSED.inc()
            raise Overloaded(
                "The queue of records is full, since monitor does not accept them; try again later.",
                retry_after_seconds=5.0,
            )
        self._reserved += 1
        return Place(self)

    def _accept(self, record: monitor_pb2.Interaction) -> asyncio.Future[None]:
        self._reserved -= 1
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # A cancelled request does not wait for its future; its failure is logged by the commit.
        stored.add_done_callback(_retrieved)
        self._accepted.append((record.request_id, record.SerializeToString(), stored))
        self._has_accepted.set()
        return stored

    async def _commit_forever(self) -> None:
        while True:
            await self._has_accepted.wait()
            await self._commit()

    async def _commit(self) -> None:
        """Writes all accepted records in one transaction; meanwhile the next group is collected."""
        group, self._accepted = self._accepted, []
        self._has_accepted.clear()
        rows = [(request_id, data) for request_id, data, _ in group]
        work = asyncio.ensure_future(self._write(rows))
        try:
            await background.to_the_end(work)
        except asyncio.CancelledError:  # waiting requests still get the outcome
            self._settle(group, work.exception())
            raise
        except sqlite3.Error as error:
            self._settle(group, error)
        else:
            self._settle(group, None)

    async def _write(self, rows: list[tuple[str, bytes]]) -> None:
        """Writes records. Raises sqlite3.Error. Releases the spare room: their requests were accepted before."""

        def insert(connection: sqlite3.Connection) -> None:
            _insert(connection, rows)

        try:
            await self._database.run(insert)
        except sqlite3.OperationalError as error:
            if not is_full(error):
                raise
            await asyncio.to_thread(self._space.release_spare)
            await self._database.run(insert)

    def _settle(self, group: list[tuple[str, bytes, asyncio.Future[None]]], error: BaseException | None) -> None:
        if error is None:
            self._count(len(group), sum(len(data) for _, data, _ in group))
        else:
            why = self._database.explained(error).message if isinstance(error, sqlite3.Error) else error
            logger.error("%d interactions cannot be written to disk: %s", len(group), why)
        for _, _, stored in group:
            if stored.done():
                continue
            if error is None:
                stored.set_result(None)
            else:
                stored.set_exception(_unrecorded(error, self._space))

    def _count(self, records: int, size: int) -> None:
        self._records += records
        self._bytes += size
        RECORDS.set(self._records)
        BYTES.set(self._bytes)
        if self._records:
            self._has_records.set()
        else:
            self._has_records.clear()

    async def _send_forever(self) -> None:
        backoff, failures = Backoff(_FIRST_BACKOFF_SECONDS, self._bounds.max_backoff_seconds), 0
        while True:
            await self._has_records.wait()
            await self._pause(self._bounds.gather_seconds)
            try:
                batch = await self._database.run(partial(_oldest, limit=self._bounds.batch_records))
                await self._deliver(batch, failures)
                failures = 0
            except FactoryError as error:
                FAILURES.labels(error.reason.value).inc()
                if failures == 0:
                    logger.warning("monitor does not accept interactions; they wait on disk: %s", error.message)
                failures += 1
                await self._pause(backoff.seconds(failures))
            except Exception:  # the records are on disk, and are sent again after any error
                logger.exception("the outbox cannot send")
                await self._pause(self._bounds.max_backoff_seconds)

    async def _pause(self, seconds: float) -> None:
        """Waits; when closing, at most 0.05 s, which is enough not to spin while monitor is down."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                if self._closing.is_set():
                    await asyncio.sleep(min(seconds, 0.05))
                else:
                    await self._closing.wait()

    async def _deliver(self, batch: list[Row], failures: int) -> None:
        """Sends and removes a batch; halves it until a refused record is alone in its batch."""
        if not batch:
            return
        try:
            await self._send([_parsed(data) for _, _, data in batch])
        except Internal:
            if failures < _INTERNAL_ERRORS_BEFORE_SUSPICION:
                raise
            await self._deliver_apart(batch)
        except (InvalidArgument, DecodeError) as error:
            if len(batch) == 1:
                await self._move_aside(batch[0], error)
                return
            middle = len(batch) // 2
            await self._deliver(batch[:middle], failures)
            await self._deliver(batch[middle:], failures)
        else:
            await self._remove_sent(batch)

    async def _deliver_apart(self, batch: list[Row]) -> None:
        """Sends records one by one. Those with an internal error are moved aside, if monitor accepts any other.

        Raises Internal when it accepts none: then monitor is at fault, and no record.
        """
        broken: list[tuple[Row, Internal]] = []
        for row in batch:
            try:
                await self._deliver([row], 0)
            except Internal as error:
                broken.append((row, error))
        if len(broken) == len(batch):
            raise broken[-1][1]
        for row, reason in broken:
            await self._move_aside(row, reason)

    async def _remove_sent(self, batch: list[Row]) -> None:
        ids = [(number,) for number, _, _ in batch]
        await self._database.run(lambda connection: _remove(connection, ids))
        self._count(-len(batch), -sum(len(data) for _, _, data in batch))

    async def _move_aside(self, row: Row, error: Exception) -> None:
        number, request_id, data = row
        reason = error.message if isinstance(error, FactoryError) else type(error).__name__
        POISON.inc()
        logger.error("monitor refuses the interaction %s; it is moved aside: %s", request_id, reason)
        keep = self._bounds.max_poison_records
        await self._database.run(lambda connection: _set_aside(connection, number, reason, keep))
        self._count(-1, -len(data))


def _unrecorded(error: BaseException, space: Space) -> Unavailable:
    if is_full(error):
        full = space.error()
        return OutOfSpace(
            f"The answer cannot be recorded, so it is withdrawn. {full.message}",
            retry_after_seconds=full.retry_after_seconds,
        )
    return Unavailable("The answer cannot be recorded, so it is withdrawn; the orchestrator's log has the reason.")


def _retrieved(future: asyncio.Future[None]) -> None:
    if not future.cancelled():
        future.exception()


def _parsed(data: bytes) -> monitor_pb2.Interaction:
    return monitor_pb2.Interaction.FromString(data)


def _totals(connection: sqlite3.Connection) -> tuple[int, int]:
    count, size = connection.execute("SELECT count(*), coalesce(sum(length(data)), 0) FROM records").fetchone()
    return int(count), int(size)


def _insert(connection: sqlite3.Connection, rows: list[tuple[str, bytes]]) -> None:
    connection.executemany("INSERT INTO records (request_id, data) VALUES (?, ?)", rows)


def _oldest(connection: sqlite3.Connection, limit: int) -> list[Row]:
    batch: list[Row] = []
    size = 0
    for row in connection.execute("SELECT id, request_id, data FROM records ORDER BY id LIMIT ?", (limit,)):
        size += len(row[2])
        if batch and size > _BATCH_BYTES:
            break
        batch.append(row)
    return batch


def _remove(connection: sqlite3.Connection, ids: list[tuple[int]]) -> None:
    connection.executemany("DELETE FROM records WHERE id = ?", ids)


def _set_aside(connection: sqlite3.Connection, number: int, reason: str, keep: int) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO poison SELECT id, request_id, data, ?, ? FROM records WHERE id = ?",
        (reason, time.time(), number),
    )
    connection.execute("DELETE FROM records WHERE id = ?", (number,))
    connection.execute("DELETE FROM poison WHERE id NOT IN (SELECT id FROM poison ORDER BY id DESC LIMIT ?)", (keep,))
