"""Stores files in pieces, each in a transaction of its own, and reads them at the pace of the reader."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from genaifactory_common import batch_lines
from genaifactory_common.database import insert, uninterrupted
from genaifactory_common.errors import Conflict, InvalidArgument, NotFound, RateLimited, TooLarge
from genaifactory_monitor.batches.tables import batches, files, lines, pieces
from genaifactory_monitor.database import Database
from genaifactory_monitor.settings import Batches as Bounds

OPEN_STATUSES = ("validating", "in_progress", "finalizing", "cancelling")
"""Of batches that have not ended."""
RESULT_FILES = 2
"""Of a batch, at most: its answers, and its errors."""
SECOND_US = 1_000_000
DAY_SECONDS = 86_400
_LEAST_LIFETIME_SECONDS = 3600
_MAX_FILENAME = 255
_SHOWN = 64
# A message of results holds about so many bytes, or one result.
_READ_BYTES = 1 << 20
_READ_LINES = 500


class Owner(NamedTuple):
    """Who may use a file or batch: one key of one tenant."""

    tenant: str
    principal: str


@uninterrupted
async def create(database: Database, owner: Owner, filename: str, bounds: Bounds, now_us: int) -> sa.Row[Any]:
    """Begins a file. Raises InvalidArgument, RateLimited, Unavailable."""
    if not 1 <= len(filename) <= _MAX_FILENAME or "\0" in filename:
        raise InvalidArgument(f"The file's name must have 1 to {_MAX_FILENAME} characters.", field="filename")
    row = new_file(owner, filename, batch_lines.PURPOSE, now_us, now_us + bounds.days * DAY_SECONDS * SECOND_US)
    async with database.writing() as connection:
        await require_room(connection, owner.tenant, bounds, more_files=1)
        await connection.execute(sa.insert(files).values(row))
        return await _owned(connection, owner, row["file_id"])


def new_file(owner: Owner, filename: str, purpose: str, now_us: int, expire_time_us: int) -> dict[str, Any]:
    """The row of a file that has no content yet."""
    return {
        "file_id": f"file-{uuid.uuid4().hex}",
        "tenant": owner.tenant,
        "principal": owner.principal,
        "filename": filename,
        "purpose": purpose,
        "size_bytes": 0,
        "finished": False,
        "create_time_us": now_us,
        "expire_time_us": expire_time_us,
        "batch_id": "",
        "outcome": "",
    }


@uninterrupted
async def append(database: Database, owner: Owner, file_id: str, offset: int, data: bytes, bounds: Bounds) -> None:
    """Appends a piece; one that is stored already is ignored.

    Raises NotFound, InvalidArgument, TooLarge, Conflict, RateLimited, Unavailable.
    """
    if not 1 <= len(data) <= batch_lines.PIECE_BYTES:
        raise InvalidArgument(f"'data' must have 1 to {batch_lines.PIECE_BYTES} bytes.", field="data")
    async with database.writing() as connection:
        file = await _owned(connection, owner, file_id, lock=True)
        if file.finished:
            raise Conflict("The file is finished; nothing can be appended to it.", field="file_id")
        if offset + len(data) == file.size_bytes:
            return
        if offset != file.size_bytes:
            raise InvalidArgument(f"'offset' must be {file.size_bytes}, the bytes so far.", field="offset")
        if offset + len(data) > bounds.max_file_bytes:
            raise TooLarge(f"A file may have at most {bounds.max_file_bytes} bytes. Split it.", field="file")
        await require_room(connection, owner.tenant, bounds, more_bytes=len(data))
        piece = insert(pieces, into_postgresql=database.postgresql)
        await connection.execute(piece.values(file_id=file_id, start_byte=offset, data=data))
        await connection.execute(_of(sa.update(files), file_id).values(size_bytes=offset + len(data)))


@uninterrupted
async def finish(database: Database, owner: Owner, file_id: str, lifetime_seconds: int, bounds: Bounds) -> sa.Row[Any]:
    """Ends a file. Raises NotFound, InvalidArgument, Unavailable."""
    seconds = lifetime(lifetime_seconds, "lifetime_seconds", bounds)
    async with database.writing() as connection:
        file = await _owned(connection, owner, file_id, lock=True)
        if not file.size_bytes:
            raise InvalidArgument("The file is empty.", field="file")
        if not file.finished:
            ends = file.create_time_us + seconds * SECOND_US
            await connection.execute(_of(sa.update(files), file_id).values(finished=True, expire_time_us=ends))
        return await _owned(connection, owner, file_id)


def lifetime(seconds: int, field: str, bounds: Bounds) -> int:
    """How long a file is kept, in seconds, when a client asks for `seconds` in `field`; 0: the longest.

    Raises InvalidArgument.
    """
    longest = bounds.days * DAY_SECONDS
    if seconds and not _LEAST_LIFETIME_SECONDS <= seconds <= longest:
        raise InvalidArgument(
            f"The time to keep a file must be {_LEAST_LIFETIME_SECONDS} to {longest} seconds.", field=field
        )
    return seconds or longest


@uninterrupted
async def find(database: Database, owner: Owner, file_id: str) -> sa.Row[Any]:
    """A finished file. Raises NotFound, Unavailable."""
    async with database.reading() as connection:
        return await finished(connection, owner, file_id)


async def finished(connection: AsyncConnection, owner: Owner, file_id: str) -> sa.Row[Any]:
    """A finished file, within a transaction. Raises NotFound."""
    file = await _owned(connection, owner, file_id)
    if not file.finished:
        raise _no_file(file_id)
    return file


@uninterrupted
async def page(
    database: Database, owner: Owner, *, purpose: str, limit: int, after: str, oldest_first: bool
) -> tuple[Sequence[sa.Row[Any]], bool]:
    """Finished files in the order of creation, and whether more follow. Raises NotFound, Unavailable."""
    statement = sa.select(files).where(
        files.c.tenant == owner.tenant, files.c.principal == owner.principal, files.c.finished
    )
    if purpose:
        if "\0" in purpose:  # which PostgreSQL refuses
            raise InvalidArgument("'purpose' must not hold the character U+0000.", field="purpose")
        statement = statement.where(files.c.purpose == purpose)
    order = (files.c.create_time_us, files.c.file_id)
    async with database.reading() as connection:
        if after:
            last = await finished(connection, owner, after)
            mark, place = sa.tuple_(last.create_time_us, last.file_id), sa.tuple_(*order)
            statement = statement.where(place > mark if oldest_first else place < mark)
        statement = statement.order_by(*(column if oldest_first else column.desc() for column in order))
        found = (await connection.execute(statement.limit(limit + 1))).all()
    return found[:limit], len(found) > limit


async def read(database: Database, owner: Owner, file_id: str) -> AsyncGenerator[bytes, None]:
    """The content in pieces. A transaction for each, so that a slow reader holds none. Raises NotFound, Unavailable."""
    file = await find(database, owner, file_id)
    place, sent = 0, 0
    while sent < file.size_bytes:
        data, place = await (_piece if not file.batch_id else _results)(database, file, place)
        if not data:  # deleted while it was read
            raise _no_file(file_id)
        sent += len(data)
        yield data


@uninterrupted
async def _piece(database: Database, file: sa.Row[Any], offset: int) -> tuple[bytes, int]:
    statement = sa.select(pieces.c.data).where(pieces.c.file_id == file.file_id, pieces.c.start_byte == offset)
    async with database.reading() as connection:
        data: bytes = await connection.scalar(statement) or b""
    return data, offset + len(data)


@uninterrupted
async def _results(database: Database, file: sa.Row[Any], number: int) -> tuple[bytes, int]:
    """The results after line `number`, and the last line of them."""
    of_file = (lines.c.batch_id == file.batch_id, lines.c.outcome == file.outcome, lines.c.number > number)
    sizes = sa.select(lines.c.number, sa.func.length(lines.c.result)).where(*of_file)
    async with database.reading() as connection:
        total, last = 0, number
        for found, size in await connection.execute(sizes.order_by(lines.c.number).limit(_READ_LINES)):
            if last > number and total + size > _READ_BYTES:
                break
            total, last = total + size, found
        chosen = sa.select(lines.c.result).where(*of_file, lines.c.number <= last).order_by(lines.c.number)
        data = b"".join(result + b"\n" for result in await connection.scalars(chosen))
    return data, last


@uninterrupted
async def delete(database: Database, owner: Owner, file_id: str) -> None:
    """Erases a file with its content. Raises NotFound, Conflict while an open batch uses it, Unavailable."""
    async with database.writing() as connection:
        await _owned(connection, owner, file_id, lock=True)
        if await in_use(connection, file_id):
            raise Conflict("A batch that has not ended uses the file; cancel it, or wait for its end.", field="file_id")
        await erase(connection, file_id)


async def require_room(
    connection: AsyncConnection, tenant: str, bounds: Bounds, *, more_files: int = 0, more_bytes: int = 0
) -> None:
    """Raises RateLimited unless the tenant may store so much more.

    An open batch counts as two files with the bytes of its input: it holds a copy of the requests, each of which its
    result replaces.
    """
    columns = (sa.func.count(), sa.func.coalesce(sa.func.sum(files.c.size_bytes), 0))
    stored = sa.select(*columns).where(files.c.tenant == tenant)
    inputs = sa.join(batches, files, files.c.file_id == batches.c.input_file_id)
    opened = sa.select(*columns).select_from(inputs)
    opened = opened.where(batches.c.tenant == tenant, batches.c.status.in_(OPEN_STATUSES))
    count, size = (await connection.execute(stored)).one()
    open_count, open_size = (await connection.execute(opened)).one()
    count, size = count + open_count * RESULT_FILES, size + open_size
    if count + more_files > bounds.max_tenant_files or size + more_bytes > bounds.max_tenant_bytes:
        raise RateLimited(
            f"This tenant may store {bounds.max_tenant_files} files of {bounds.max_tenant_bytes} bytes in all, and has "
            f"{count} of {size}, where an open batch counts as {RESULT_FILES} files with the bytes of its input; "
            "delete files that are not needed any more, or wait for a batch to end."
        )


async def in_use(connection: AsyncConnection, file_id: str) -> bool:
    """Whether an open batch has the file as its input."""
    using = batches.c.input_file_id == file_id
    return bool(await connection.scalar(sa.select(sa.exists().where(using, batches.c.status.in_(OPEN_STATUSES)))))


async def erase(connection: AsyncConnection, file_id: str) -> None:
    """Deletes a file's row and its content, which for a file of results is in the lines."""
    file = (await connection.execute(_of(sa.select(files), file_id))).one()
    if file.batch_id:
        of_file = (lines.c.batch_id == file.batch_id, lines.c.outcome == file.outcome)
        await connection.execute(sa.delete(lines).where(*of_file))
        for column in (batches.c.output_file_id, batches.c.error_file_id):
            await connection.execute(sa.update(batches).where(column == file_id).values({column: ""}))
    await connection.execute(sa.delete(pieces).where(pieces.c.file_id == file_id))
    await connection.execute(_of(sa.delete(files), file_id))


async def _owned(connection: AsyncConnection, owner: Owner, file_id: str, *, lock: bool = False) -> sa.Row[Any]:
    if "\0" in file_id:  # which PostgreSQL refuses
        raise _no_file(file_id)
    statement = _of(sa.select(files), file_id).where(
        files.c.tenant == owner.tenant, files.c.principal == owner.principal
    )
    found = (await connection.execute(statement.with_for_update() if lock else statement)).one_or_none()
    if found is None:
        raise _no_file(file_id)
    return found


def _of(statement: Any, file_id: str) -> Any:
    return statement.where(files.c.file_id == file_id)


def _no_file(file_id: str) -> NotFound:
    return NotFound(f"There is no file '{file_id[:_SHOWN]}' of this key.", field="file_id")
