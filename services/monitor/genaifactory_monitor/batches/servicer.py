"""BatchService: whose files and batches a caller may use, and the conversion between messages and rows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import sqlalchemy as sa
from google.protobuf.timestamp_pb2 import Timestamp

from genaifactory.monitor.v1 import batches_pb2, batches_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import batch_lines, bounds, identity
from genaifactory_common.errors import InvalidArgument
from genaifactory_common.space import Space
from genaifactory_monitor import metrics
from genaifactory_monitor.batches import files, results, store
from genaifactory_monitor.batches.files import Owner
from genaifactory_monitor.batches.upkeep import Upkeep
from genaifactory_monitor.database import Database
from genaifactory_monitor.message_dicts import clock_us, timestamp
from genaifactory_monitor.settings import Batches as Bounds

_DEFAULT_FILES, _MAX_FILES = 100, 1000
_DEFAULT_BATCHES, _MAX_BATCHES = 20, 100
_MAX_LINES, _MAX_CLAIMED = 500, 100
_MAX_WORKER = 64
_MAX_LEASE_MS = 3_600_000
_MILLISECOND_US = 1000


class BatchServicer(batches_pb2_grpc.BatchServiceServicer):
    """The service over one database."""

    def __init__(self, database: Database, own: Bounds, space: Space | None, upkeep: Upkeep) -> None:
        """space: of the disk with the database; None: it is on no disk of this service."""
        self._database = database
        self._bounds = own
        self._space = space
        self._upkeep = upkeep

    async def CreateFile(self, request: batches_pb2.CreateFileRequest, context: Any) -> batches_pb2.CreateFileResponse:
        """Begins a file of the caller."""
        self._require_space()
        file = await files.create(self._database, _owner(), request.filename, self._bounds, clock_us())
        return batches_pb2.CreateFileResponse(file=_file(file))

    async def AppendFile(self, request: batches_pb2.AppendFileRequest, context: Any) -> batches_pb2.AppendFileResponse:
        """Appends to a file of the caller."""
        self._require_space()
        await files.append(self._database, _owner(), request.file_id, request.offset, request.data, self._bounds)
        return batches_pb2.AppendFileResponse()

    async def FinishFile(self, request: batches_pb2.FinishFileRequest, context: Any) -> batches_pb2.FinishFileResponse:
        """Ends a file of the caller."""
        file = await files.finish(self._database, _owner(), request.file_id, request.lifetime_seconds, self._bounds)
        return batches_pb2.FinishFileResponse(file=_file(file))

    async def GetFile(self, request: batches_pb2.GetFileRequest, context: Any) -> batches_pb2.GetFileResponse:
        """Describes a file of the caller."""
        file = await files.find(self._database, _owner(), request.file_id)
        return batches_pb2.GetFileResponse(file=_file(file))

    async def ListFiles(self, request: batches_pb2.ListFilesRequest, context: Any) -> batches_pb2.ListFilesResponse:
        """A page of the caller's files."""
        limit = bounds.wanted(request.page_size, "page_size", default=_DEFAULT_FILES, most=_MAX_FILES)
        found, more = await files.page(
            self._database,
            _owner(),
            purpose=request.purpose,
            limit=limit,
            after=request.after,
            oldest_first=request.oldest_first,
        )
        return batches_pb2.ListFilesResponse(files=map(_file, found), has_more=more)

    async def ReadFile(
        self, request: batches_pb2.ReadFileRequest, context: Any
    ) -> AsyncIterator[batches_pb2.ReadFileResponse]:
        """The content of a file of the caller."""
        async for data in files.read(self._database, _owner(), request.file_id):
            yield batches_pb2.ReadFileResponse(data=data)

    async def DeleteFile(self, request: batches_pb2.DeleteFileRequest, context: Any) -> batches_pb2.DeleteFileResponse:
        """Erases a file of the caller."""
        await files.delete(self._database, _owner(), request.file_id)
        return batches_pb2.DeleteFileResponse()

    async def CreateBatch(
        self, request: batches_pb2.CreateBatchRequest, context: Any
    ) -> batches_pb2.CreateBatchResponse:
        """Begins a batch of the caller."""
        self._require_space()
        batch = await store.create(
            self._database,
            _owner(),
            identity.current().key_id,
            input_file_id=request.input_file_id,
            endpoint=request.endpoint,
            metadata=request.metadata,
            max_cost_micros=request.max_cost_micros if request.HasField("max_cost_micros") else None,
            output_lifetime_seconds=request.output_lifetime_seconds,
            bounds=self._bounds,
            now_us=clock_us(),
        )
        return batches_pb2.CreateBatchResponse(batch=_batch(batch))

    async def GetBatch(self, request: batches_pb2.GetBatchRequest, context: Any) -> batches_pb2.GetBatchResponse:
        """Describes a batch of the caller."""
        batch = await store.find(self._database, _owner(), request.batch_id)
        return batches_pb2.GetBatchResponse(batch=_batch(batch))

    async def ListBatches(
        self, request: batches_pb2.ListBatchesRequest, context: Any
    ) -> batches_pb2.ListBatchesResponse:
        """A page of the caller's batches."""
        limit = bounds.wanted(request.page_size, "page_size", default=_DEFAULT_BATCHES, most=_MAX_BATCHES)
        found, more = await store.page(self._database, _owner(), limit=limit, after=request.after)
        return batches_pb2.ListBatchesResponse(batches=map(_batch, found), has_more=more)

    async def CancelBatch(
        self, request: batches_pb2.CancelBatchRequest, context: Any
    ) -> batches_pb2.CancelBatchResponse:
        """Cancels a batch of the caller."""
        batch = await store.cancel(self._database, _owner(), request.batch_id, clock_us())
        self._upkeep.soon()
        return batches_pb2.CancelBatchResponse(batch=_batch(batch))

    async def ClaimBatch(self, request: batches_pb2.ClaimBatchRequest, context: Any) -> batches_pb2.ClaimBatchResponse:
        """Called by a worker in its own name, as all that follow."""
        lease_us = _lease_us(request.worker, request.lease_ms)
        batch = await store.claim(self._database, request.worker, lease_us, clock_us())
        return batches_pb2.ClaimBatchResponse(batch=None if batch is None else _batch(batch))

    async def AddLines(self, request: batches_pb2.AddLinesRequest, context: Any) -> batches_pb2.AddLinesResponse:
        """Stores lines of a batch that the worker checks."""
        self._require_space()
        lease_us = _lease_us(request.worker, request.lease_ms)
        if len(request.lines) > _MAX_LINES:
            raise InvalidArgument(f"'lines' may hold at most {_MAX_LINES} lines.", field="lines")
        if any(not 1 <= line.number <= self._bounds.max_lines for line in request.lines):
            raise InvalidArgument(f"A batch may have at most {self._bounds.max_lines} requests.", field="lines")
        rows = [{"number": each.number, "custom_id": each.custom_id, "body": each.body} for each in request.lines]
        leased = await store.add_lines(self._database, request.worker, request.batch_id, rows, lease_us, clock_us())
        return batches_pb2.AddLinesResponse(leased=leased)

    async def FinishCheck(
        self, request: batches_pb2.FinishCheckRequest, context: Any
    ) -> batches_pb2.FinishCheckResponse:
        """Begins the answering of a batch, or fails it."""
        errors = [_error(error) for error in request.errors[: batch_lines.MAX_ERRORS]]
        await store.finish_check(self._database, request.worker, request.batch_id, request.model, errors, clock_us())
        return batches_pb2.FinishCheckResponse()

    async def ClaimLines(self, request: batches_pb2.ClaimLinesRequest, context: Any) -> batches_pb2.ClaimLinesResponse:
        """Leases lines, and renews leases."""
        lease_us = _lease_us(request.worker, request.lease_ms)
        limit = bounds.wanted(request.lines, "lines", default=0, most=_MAX_CLAIMED)
        if limit:
            self._require_space()  # for the results
        claimed = await results.claim(
            self._database, request.worker, lease_us, limit, request.except_tenants, clock_us()
        )
        if claimed is None:
            return batches_pb2.ClaimLinesResponse()
        batch, found = claimed
        return batches_pb2.ClaimLinesResponse(batch=_batch(batch), lines=found)

    async def StoreResult(
        self, request: batches_pb2.StoreResultRequest, context: Any
    ) -> batches_pb2.StoreResultResponse:
        """Stores a line's first result. It needs no room that was checked: the answer was given already."""
        if not 1 <= len(request.result) <= batch_lines.MAX_RESULT_BYTES or b"\n" in request.result:
            raise InvalidArgument(
                f"'result' must be one line of 1 to {batch_lines.MAX_RESULT_BYTES} bytes.", field="result"
            )
        usage = request.usage
        result = results.Result(
            batch_id=request.batch_id,
            number=request.number,
            line=request.result,
            failed=request.failed,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_prompt_tokens=usage.cached_prompt_tokens,
            cost_micros=request.cost_micros,
            currency=request.currency,
        )
        stored = await results.add(self._database, result, clock_us())
        if stored:
            metrics.BATCH_LINES.labels("failed" if request.failed else "answered").inc()
        return batches_pb2.StoreResultResponse(stored=stored)

    async def ReleaseLine(
        self, request: batches_pb2.ReleaseLineRequest, context: Any
    ) -> batches_pb2.ReleaseLineResponse:
        """Gives a line back."""
        await results.release(
            self._database,
            request.worker,
            request.batch_id,
            request.number,
            attempts=request.attempts,
            until_us=clock_us() + request.delay_ms * _MILLISECOND_US,
        )
        return batches_pb2.ReleaseLineResponse()

    async def FailBatch(self, request: batches_pb2.FailBatchRequest, context: Any) -> batches_pb2.FailBatchResponse:
        """Ends a batch that cannot go on."""
        await store.fail(self._database, request.batch_id, _error(request.error), clock_us())
        self._upkeep.soon()
        return batches_pb2.FailBatchResponse()

    def _require_space(self) -> None:
        """Raises OutOfSpace."""
        if self._space is not None:
            self._space.require()


def _owner() -> Owner:
    caller = identity.current()
    return Owner(caller.tenant, caller.principal)


def _lease_us(worker: str, lease_ms: int) -> int:
    if not 1 <= len(worker) <= _MAX_WORKER:
        raise InvalidArgument(f"'worker' must have 1 to {_MAX_WORKER} characters.", field="worker")
    if not 1 <= lease_ms <= _MAX_LEASE_MS:
        raise InvalidArgument(f"'lease_ms' must be 1 to {_MAX_LEASE_MS}.", field="lease_ms")
    return lease_ms * _MILLISECOND_US


def _file(row: sa.Row[Any]) -> batches_pb2.File:
    return batches_pb2.File(
        file_id=row.file_id,
        filename=row.filename,
        purpose=row.purpose,
        size_bytes=row.size_bytes,
        create_time=timestamp(row.create_time_us),
        expire_time=timestamp(row.expire_time_us),
    )


def _batch(row: sa.Row[Any]) -> batches_pb2.Batch:
    return batches_pb2.Batch(
        batch_id=row.batch_id,
        tenant=row.tenant,
        key_id=row.key_id,
        endpoint=row.endpoint,
        input_file_id=row.input_file_id,
        status=row.status,
        metadata=row.metadata,
        model=row.model,
        total=row.total,
        completed=row.completed,
        failed=row.failed,
        errors=[batches_pb2.BatchError(**error) for error in row.errors],
        output_file_id=row.output_file_id,
        error_file_id=row.error_file_id,
        create_time=timestamp(row.create_time_us),
        start_time=_moment(row.start_time_us),
        close_time=_moment(row.close_time_us),
        cancel_time=_moment(row.cancel_time_us),
        end_time=_moment(row.end_time_us),
        expire_time=timestamp(row.expire_time_us),
        usage=types_pb2.TokenUsage(
            prompt_tokens=row.prompt_tokens,
            completion_tokens=row.completion_tokens,
            cached_prompt_tokens=row.cached_prompt_tokens,
        ),
        cost_micros=row.cost_micros,
        currency=row.currency,
        max_cost_micros=row.max_cost_micros,
    )


def _error(error: batches_pb2.BatchError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "field": error.field, "line": error.line}


def _moment(moment_us: int | None) -> Timestamp | None:
    return None if moment_us is None else timestamp(moment_us)
