"""/v1/batches: requests in a file that are answered when there is room."""

from __future__ import annotations

import orjson

from genaifactory.monitor.v1 import batches_pb2
from genaifactory_common import rpcs
from genaifactory_gateway.admission import SERVICE, Admission, Entry
from genaifactory_gateway.batches.requests import RPCS
from genaifactory_gateway.batches.store import BatchStore
from genaifactory_gateway.batches.worker import Worker
from genaifactory_gateway.http import query
from genaifactory_gateway.http.body import read
from genaifactory_gateway.http.exchange import Exchange
from genaifactory_gateway.http.files import admitted
from genaifactory_gateway.http.paths import Handlers
from genaifactory_gateway.openai import batches as objects

_ALL = "/v1/batches"
_ONE = "/v1/batches/"
_CANCEL = "/cancel"
_MOST_LISTED = 100
# Fields of BatchService -> those of the body.
_NAMES = {"file_id": "input_file_id", "output_lifetime_seconds": "output_expires_after.seconds"}


class HttpBatches:
    """Begins, lists, shows and cancels the key's batches. Needs the permission of their endpoint, 'chat' or 'embed'."""

    def __init__(self, admission: Admission, store: BatchStore, worker: Worker) -> None:
        self._admission = admission
        self._store = store
        self._worker = worker

    def handlers(self) -> Handlers:
        """By path and method."""
        return {
            _ALL: {"POST": self._create, "GET": self._list},
            f"{_ONE}{{id}}": {"GET": self._get},
            f"{_ONE}{{id}}{_CANCEL}": {"POST": self._cancel},
        }

    async def _create(self, exchange: Exchange) -> None:
        async with admitted(self._admission, exchange, "CreateBatch") as entry:
            body = await read(exchange, objects.NewBatch)
            exchange.named = lambda field: _NAMES.get(field or "", field)
            _require_endpoint(entry, body.endpoint)
            await entry.reserve()
            begun = await self._store.call(body.request())
            self._worker.soon()
            await exchange.respond(orjson.dumps(objects.batch_object(begun.batch)))

    async def _list(self, exchange: Exchange) -> None:
        async with admitted(self._admission, exchange, "ListBatches") as entry:
            given = query.parameters(exchange.query, ("limit", "after"))
            limit = query.whole_number("limit", given["limit"], most=_MOST_LISTED)
            await entry.reserve()
            page = await self._store.call(batches_pb2.ListBatchesRequest(page_size=limit, after=given["after"]))
            found = [objects.batch_object(batch) for batch in page.batches]
            await exchange.respond(orjson.dumps(objects.page(found, has_more=page.has_more)))

    async def _get(self, exchange: Exchange) -> None:
        async with admitted(self._admission, exchange, "GetBatch") as entry:
            await entry.reserve()
            found = await self._store.call(batches_pb2.GetBatchRequest(batch_id=exchange.path.removeprefix(_ONE)))
            await exchange.respond(orjson.dumps(objects.batch_object(found.batch)))

    async def _cancel(self, exchange: Exchange) -> None:
        async with admitted(self._admission, exchange, "CancelBatch") as entry:
            await entry.reserve()
            batch_id = exchange.path.removeprefix(_ONE).removesuffix(_CANCEL)
            found = await self._store.call(batches_pb2.CancelBatchRequest(batch_id=batch_id))
            await exchange.respond(orjson.dumps(objects.batch_object(found.batch)))


def _require_endpoint(entry: Entry, endpoint: str) -> None:
    """Raises PermissionDenied unless the key may send the requests of the endpoint itself; monitor refuses others."""
    if (rpc := RPCS.get(endpoint)) is not None:
        rpcs.facts(f"/{SERVICE}/{rpc}").require(entry.holder.role.name, entry.holder.role.permissions)
