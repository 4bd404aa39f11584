"""Checks the file of a batch line by line, and stores its lines for the answering."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import aclosing

from genaifactory.monitor.v1 import batches_pb2
from genaifactory_common import batch_lines, rpcs
from genaifactory_common.errors import FactoryError, Internal, InvalidArgument, NotFound, TooLarge, Unauthenticated
from genaifactory_gateway.admission import SERVICE, Admission
from genaifactory_gateway.batches import requests
from genaifactory_gateway.batches.store import BatchStore

logger = logging.getLogger(__name__)

KEY_REMOVED = "key_removed"
"""The code of a batch whose key is not in factory.yaml any more."""
# Lines that are parsed in one turn of a thread, and stored by one call.
_PAGE = 100
# The bodies of one call, at most; leaves room below channels.MAX_MESSAGE_BYTES.
_PAGE_BYTES = 8 << 20


class Check:
    """The check of one batch, by a worker that has leased it."""

    def __init__(self, batch: batches_pb2.Batch, store: BatchStore, worker: str, lease_ms: int) -> None:
        self._batch = batch
        self._store = store
        self._worker = worker
        self._lease_ms = lease_ms
        self._errors: list[batches_pb2.BatchError] = []
        self._ids: set[str] = set()
        self._model = ""

    async def run(self, admission: Admission, request_id: str) -> None:
        """Reads the file as the batch's key, stores its lines, and ends the check.

        Raises FactoryError when that could not be done: it is to be done again.
        """
        try:
            holder = admission.holder(self._batch.tenant, self._batch.key_id)
            facts = rpcs.facts(f"/{SERVICE}/{requests.RPCS[self._batch.endpoint]}")
            facts.require(holder.role.name, holder.role.permissions)
        except FactoryError as error:
            self._fail(error, code=KEY_REMOVED if isinstance(error, Unauthenticated) else None)
            await self._finish()
            return
        admission.speak_for(holder, request_id)
        try:
            leased = await self._read()
        except (NotFound, TooLarge, InvalidArgument) as error:  # of the file: it would be the same again
            self._fail(error)
            leased = True
        except FactoryError:
            raise
        except Exception:  # it would end the worker, here and on every gateway that leases the batch after it
            logger.exception("unexpected error in the check of a batch, request %s", request_id)
            self._fail(Internal(f"The platform could not check the file; its log has {request_id}."))
            leased = True
        if leased:
            await self._finish()

    async def _read(self) -> bool:
        """Checks and stores every line, up to the bound of errors; False: the lease is lost."""
        page: list[tuple[int, bytes]] = []
        size = 0
        content = self._store.read(self._batch.input_file_id)
        async with aclosing(content), aclosing(requests.lines(content)) as lines:
            async for number, line in lines:
                page.append((number, line))
                size += len(line)
                if len(page) == _PAGE or size >= _PAGE_BYTES:
                    if not await self._store_page(page):
                        return False
                    page, size = [], 0
                if len(self._errors) >= batch_lines.MAX_ERRORS:
                    return True
        return await self._store_page(page)

    async def _store_page(self, page: Sequence[tuple[int, bytes]]) -> bool:
        found = await asyncio.to_thread(self._parsed, page)
        for lines in _slices(() if self._errors else found):
            request = batches_pb2.AddLinesRequest(
                worker=self._worker, batch_id=self._batch.batch_id, lines=lines, lease_ms=self._lease_ms
            )
            added: batches_pb2.AddLinesResponse = await self._store.call(request)
            if not added.leased:
                return False
        return True

    def _parsed(self, page: Sequence[tuple[int, bytes]]) -> list[batches_pb2.Line]:
        found = []
        for number, line in page:
            try:
                request = requests.parse(line, self._batch.endpoint)
            except FactoryError as error:
                self._fail(error, line=number)
                continue
            self._model = self._model or request.model
            if request.custom_id in self._ids:
                self._wrong("duplicate_custom_id", "'custom_id' must be another one on each line.", "custom_id", number)
            elif request.model != self._model:
                self._wrong("mismatched_model", f"All lines must name one model, {self._model}.", "body.model", number)
            else:
                self._ids.add(request.custom_id)
                found.append(batches_pb2.Line(number=number, custom_id=request.custom_id, body=request.body))
        return found

    def _fail(self, error: FactoryError, *, code: str | None = None, line: int = 0) -> None:
        self._wrong(code or error.reason.value.lower(), error.message, error.field or "", line)

    def _wrong(self, code: str, message: str, field: str, line: int) -> None:
        if len(self._errors) < batch_lines.MAX_ERRORS:
            self._errors.append(batches_pb2.BatchError(code=code, message=message, field=field, line=line))

    async def _finish(self) -> None:
        if not self._ids and not self._errors:
            self._wrong("empty_file", "The file has no request; send one on each line.", "input_file_id", 0)
        request = batches_pb2.FinishCheckRequest(
            worker=self._worker, batch_id=self._batch.batch_id, model=self._model, errors=self._errors
        )
        await self._store.call(request)


def _slices(lines: Sequence[batches_pb2.Line]) -> Iterator[Sequence[batches_pb2.Line]]:
    """The lines in order, by calls; one call, which renews the lease, where there are none."""
    begin, size = 0, 0
    for end, line in enumerate(lines):
        size += len(line.body)
        if size > _PAGE_BYTES:
            yield lines[begin:end]
            begin, size = end, len(line.body)
    yield lines[begin:]
