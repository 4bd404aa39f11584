"""/v1/files: files of requests for batches, and of their results."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager

import orjson

from genaifactory.monitor.v1 import batches_pb2
from genaifactory_common import batch_lines
from genaifactory_common.errors import DeadlineExceeded, FactoryError, InvalidArgument, Reason
from genaifactory_gateway.admission import Admission, Entry
from genaifactory_gateway.batches.store import BatchStore, method
from genaifactory_gateway.http import query
from genaifactory_gateway.http.exchange import Exchange
from genaifactory_gateway.http.multipart import Form
from genaifactory_gateway.http.paths import Handlers
from genaifactory_gateway.openai import batches as objects
from genaifactory_gateway.transfers import Transfers

_ALL = "/v1/files"
_ONE = "/v1/files/"
_CONTENT = "/content"
_PURPOSE, _ANCHOR, _SECONDS = "purpose", "expires_after[anchor]", "expires_after[seconds]"
_MOST_LISTED, _PAGE = 10_000, 1000
# Fields of BatchService -> what the client sent.
_NAMES = {"file_id": "id", "batch_id": "id", "lifetime_seconds": _SECONDS}


class HttpFiles:
    """Stores, lists, reads and erases the key's files. Needs one of the permissions 'chat' and 'embed'."""

    def __init__(self, admission: Admission, store: BatchStore, transfers: Transfers) -> None:
        self._admission = admission
        self._store = store
        self._transfers = transfers

    def handlers(self) -> Handlers:
        """By path and method."""
        return {
            _ALL: {"POST": self._create, "GET": self._list},
            f"{_ONE}{{id}}": {"GET": self._get, "DELETE": self._delete},
            f"{_ONE}{{id}}{_CONTENT}": {"GET": self._content},
        }

    async def _create(self, exchange: Exchange) -> None:
        async with self._admitted(exchange, "CreateFile") as entry:
            exchange.require_plain()
            form = Form(exchange.headers.get(b"content-type", b""), (_PURPOSE, _ANCHOR, _SECONDS))
            with self._transfers.one(entry.holder.tenant.name):
                await entry.reserve()
                async with aclosing(form.file(self._in_time(exchange.pieces()))) as content:
                    await anext(content)  # the file's name
                    begun = await self._store.call(batches_pb2.CreateFileRequest(filename=form.filename))
                    file_id = begun.file.file_id
                    try:
                        await self._store.append(file_id, content)
                        finish = batches_pb2.FinishFileRequest(file_id=file_id, lifetime_seconds=_lifetime(form.fields))
                        finished = await self._store.call(finish)
                    except FactoryError:
                        await self._store.discard(file_id)
                        raise
            await exchange.respond(orjson.dumps(objects.file_object(finished.file)))

    async def _in_time(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        settings, loop = self._transfers.settings, asyncio.get_running_loop()
        ends = loop.time() + settings.timeout_seconds
        while True:
            try:
                async with asyncio.timeout_at(min(loop.time() + settings.idle_seconds, ends)):
                    piece = await anext(pieces, None)
                if loop.time() > ends:  # pieces that arrived already are read without a wait
                    raise TimeoutError
            except TimeoutError:
                raise DeadlineExceeded(
                    f"No data arrived for {settings.idle_seconds:g} s, or the file not within "
                    f"{settings.timeout_seconds:g} s; send it without such a pause, or in smaller files.",
                    reason=Reason.REQUEST_TIMEOUT,
                ) from None
            if piece is None:
                return
            yield piece

    async def _list(self, exchange: Exchange) -> None:
        async with self._admitted(exchange, "ListFiles") as entry:
            given = query.parameters(exchange.query, ("purpose", "limit", "order", "after"))
            if given["order"] not in ("", "asc", "desc"):
                raise InvalidArgument("'order' must be asc or desc.", field="order")
            limit = query.whole_number("limit", given["limit"], most=_MOST_LISTED)
            await entry.reserve()
            page = await self._store.call(
                batches_pb2.ListFilesRequest(
                    purpose=given["purpose"],
                    page_size=min(limit, _PAGE),
                    after=given["after"],
                    oldest_first=given["order"] == "asc",
                )
            )
            found = [objects.file_object(file) for file in page.files]
            await exchange.respond(orjson.dumps(objects.page(found, has_more=page.has_more)))

    async def _get(self, exchange: Exchange) -> None:
        async with self._admitted(exchange, "GetFile") as entry:
            await entry.reserve()
            found = await self._store.call(batches_pb2.GetFileRequest(file_id=exchange.path.removeprefix(_ONE)))
            await exchange.respond(orjson.dumps(objects.file_object(found.file)))

    async def _content(self, exchange: Exchange) -> None:
        async with self._admitted(exchange, "ReadFile") as entry:
            file_id = exchange.path.removeprefix(_ONE).removesuffix(_CONTENT)
            with self._transfers.one(entry.holder.tenant.name):
                await entry.reserve()
                async with exchange.while_connected(), aclosing(self._store.read(file_id)) as pieces:
                    async for piece in pieces:
                        if not exchange.status:  # so that an error before the first piece has its own status
                            await exchange.start_lines()
                        await exchange.write(piece)
                    if not exchange.status:
                        await exchange.start_lines()
                    await exchange.write(b"", last=True)

    async def _delete(self, exchange: Exchange) -> None:
        async with self._admitted(exchange, "DeleteFile") as entry:
            await entry.reserve()
            file_id = exchange.path.removeprefix(_ONE)
            await self._store.call(batches_pb2.DeleteFileRequest(file_id=file_id))
            await exchange.respond(orjson.dumps({"id": file_id, "object": "file", "deleted": True}))

    def _admitted(self, exchange: Exchange, name: str) -> AbstractAsyncContextManager[Entry]:
        return admitted(self._admission, exchange, name)


@asynccontextmanager
async def admitted(admission: Admission, exchange: Exchange, name: str) -> AsyncIterator[Entry]:
    """Admits a request by what the method of BatchService requires that it calls; errors name the id of its path."""
    async with admission.admit(exchange.authorization, method(name), exchange.request_id, exchange.entered) as entry:
        exchange.named = lambda field: _NAMES.get(field or "", field)
        yield entry


def _lifetime(fields: Mapping[str, str]) -> int:
    """How long the file is to be kept, in seconds; 0: as long as possible. Raises InvalidArgument."""
    if fields.get(_PURPOSE) != batch_lines.PURPOSE:
        raise InvalidArgument(f"'{_PURPOSE}' must be '{batch_lines.PURPOSE}'; no other is supported.", field=_PURPOSE)
    if fields.get(_ANCHOR, "created_at") != "created_at":
        raise InvalidArgument(f"'{_ANCHOR}' must be created_at.", field=_ANCHOR)
    return query.whole_number(_SECONDS, fields.get(_SECONDS, ""), most=objects.MAX_SECONDS)
