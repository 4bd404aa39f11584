"""Files and batches of OpenAI's API: the body that begins a batch, and the objects of responses."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from genaifactory.monitor.v1 import batches_pb2
from genaifactory_gateway.openai.content import Body

_MICROS = 1_000_000
_WINDOW = "24h"
MAX_SECONDS = 2**32 - 1
"""Of a time to keep files, as messages hold it; monitor's own bound is less."""


class OutputExpiresAfter(Body):
    """How long the files of results are kept."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=0, le=MAX_SECONDS)


class NewBatch(Body):
    """The body of POST /v1/batches."""

    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = None
    output_expires_after: OutputExpiresAfter | None = None
    max_cost: float | None = Field(default=None, gt=0, le=1e12, allow_inf_nan=False)
    """Our extra: the most that its answers may cost, in the currency of the model's price."""

    def request(self) -> batches_pb2.CreateBatchRequest:
        """The request to monitor, which checks the rest."""
        expires = self.output_expires_after
        return batches_pb2.CreateBatchRequest(
            input_file_id=self.input_file_id,
            endpoint=self.endpoint,
            metadata=self.metadata or {},
            # None leaves an optional field unset.
            max_cost_micros=None if self.max_cost is None else round(self.max_cost * _MICROS),
            output_lifetime_seconds=expires.seconds if expires else 0,
        )


def file_object(file: batches_pb2.File) -> dict[str, Any]:
    """OpenAI's file object."""
    return {
        "id": file.file_id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": file.create_time.seconds,
        "expires_at": file.expire_time.seconds,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def batch_object(batch: batches_pb2.Batch) -> dict[str, Any]:
    """OpenAI's batch object, with our `cost`, `currency` and `max_cost`."""

    def ended(status: str) -> int | None:
        return batch.end_time.seconds if batch.status == status else None

    closed = "close_time" if batch.HasField("close_time") else "end_time" if batch.status == "completed" else ""
    return {
        "id": batch.batch_id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model or None,
        "errors": {"object": "list", "data": [_error(error) for error in batch.errors]} if batch.errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": _WINDOW,
        "status": batch.status,
        "output_file_id": batch.output_file_id or None,
        "error_file_id": batch.error_file_id or None,
        "created_at": batch.create_time.seconds,
        "in_progress_at": _seconds(batch, "start_time"),
        "expires_at": batch.expire_time.seconds,
        "finalizing_at": _seconds(batch, closed) if closed else None,
        "completed_at": ended("completed"),
        "failed_at": ended("failed"),
        "expired_at": ended("expired"),
        "cancelling_at": _seconds(batch, "cancel_time"),
        "cancelled_at": ended("cancelled"),
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "usage": _usage(batch),
        "metadata": dict(batch.metadata) or None,
        "cost": batch.cost_micros / _MICROS,
        "currency": batch.currency or None,
        "max_cost": batch.max_cost_micros / _MICROS if batch.HasField("max_cost_micros") else None,
    }


def page(objects: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """OpenAI's list of objects, one page of it."""
    return {
        "object": "list",
        "data": objects,
        "first_id": objects[0]["id"] if objects else None,
        "last_id": objects[-1]["id"] if objects else None,
        "has_more": has_more,
    }


def _error(error: batches_pb2.BatchError) -> dict[str, Any]:
    return {
        "code": error.code,
        "message": error.message,
        "param": error.field or None,
        "line": error.line or None,
    }


def _seconds(batch: batches_pb2.Batch, field: str) -> int | None:
    return getattr(batch, field).seconds if batch.HasField(field) else None  # type: ignore[arg-type]  # any of them


def _usage(batch: batches_pb2.Batch) -> dict[str, Any]:
    tokens = batch.usage
    return {
        "input_tokens": tokens.prompt_tokens,
        "input_tokens_details": {"cached_tokens": tokens.cached_prompt_tokens},
        "output_tokens": tokens.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tokens.prompt_tokens + tokens.completion_tokens,
    }
