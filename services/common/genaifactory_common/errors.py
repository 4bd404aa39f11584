"""One exception tree and one table: our reason <-> gRPC status and ErrorInfo <-> HTTP status and OpenAI error type.

FactoryError
├── InvalidArgument      the request is invalid; `field` is the path of the fault
│   ├── TooLarge         it is valid but too large
│   └── ContextTooLong   the prompt does not fit the model's context
├── Unauthenticated      no identity, or a wrong one
├── PermissionDenied     an identity that may not do this
├── NotFound             what the request names does not exist
├── Conflict             it conflicts with the present state
├── ContentBlocked       a guardrail refused the content
├── RateLimited          a limit of the caller is used up; `retry_after_seconds`
├── Overloaded           the service is full; `retry_after_seconds`
├── Unavailable          the service cannot answer now
│   ├── Unreachable      none of its replicas could be reached while the caller waited
│   ├── UpstreamFailed   no model backend could answer
│   └── OutOfSpace       its disk is full; `retry_after_seconds`
├── DeadlineExceeded     it took longer than allowed
├── Cancelled            the caller cancelled the call
├── Unimplemented        this deployment does not support it
└── Internal             a fault of the platform; the message never carries details
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

logger = logging.getLogger(__name__)

DOMAIN = "genaifactory.dev"
# A status is sent in HTTP/2 headers, of which clients accept 8 KiB; it holds the message three times, encoded.
_MAX_MESSAGE_BYTES = 1000
_MAX_FIELD_BYTES = 250


class Reason(StrEnum):
    """Why a call failed; the `reason` of google.rpc.ErrorInfo and the `code` of an OpenAI error."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    UNKNOWN_FIELD = "UNKNOWN_FIELD"
    TOO_LARGE = "TOO_LARGE"
    CONTEXT_TOO_LONG = "CONTEXT_TOO_LONG"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    NOT_FOUND = "NOT_FOUND"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    CONFLICT = "CONFLICT"
    CONTENT_BLOCKED = "CONTENT_BLOCKED"
    RATE_LIMITED = "RATE_LIMITED"
    OVERLOADED = "OVERLOADED"
    UNAVAILABLE = "UNAVAILABLE"
    UPSTREAM_FAILED = "UPSTREAM_FAILED"
    OUT_OF_SPACE = "OUT_OF_SPACE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    REQUEST_TIMEOUT = "REQUEST_TIMEOUT"
    CANCELLED = "CANCELLED"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"


class FactoryError(Exception):
    """The root of all errors that a caller may see.

    message: one sentence for the caller: what is wrong and what is expected. Never a secret.
    field: the path of the request's or document's bad field ("messages[2].content"), if there is one.
    retry_after_seconds: the time after which a retry may help, if it may.
    """

    reason: ClassVar[Reason] = Reason.INTERNAL

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        reason: Reason | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_seconds = retry_after_seconds
        if reason is not None:
            self.reason = reason  # type: ignore[misc]  # a narrower reason of the same class

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.field, self.reason, self.retry_after_seconds)


def _rebuild(
    kind: type[FactoryError],
    message: str,
    field: str | None,
    reason: Reason,
    retry_after_seconds: float | None,
) -> FactoryError:
    return kind(message, field=field, reason=reason, retry_after_seconds=retry_after_seconds)


class InvalidArgument(FactoryError):
    """The request is invalid; `field` is the path of the fault."""

    reason = Reason.INVALID_ARGUMENT


class TooLarge(InvalidArgument):
    """The request is valid but larger than the platform accepts."""

    reason = Reason.TOO_LARGE


class ContextTooLong(InvalidArgument):
    """The prompt does not fit the model's context."""

    reason = Reason.CONTEXT_TOO_LONG


class Unauthenticated(FactoryError):
    """No identity, or a wrong one."""

    reason = Reason.UNAUTHENTICATED


class PermissionDenied(FactoryError):
    """The identity may not do this."""

    reason = Reason.PERMISSION_DENIED


class NotFound(FactoryError):
    """What the request names does not exist, or not for this caller."""

    reason = Reason.NOT_FOUND


class Conflict(FactoryError):
    """The request conflicts with the present state."""

    reason = Reason.CONFLICT


class ContentBlocked(FactoryError):
    """A guardrail refused the content."""

    reason = Reason.CONTENT_BLOCKED


class RateLimited(FactoryError):
    """A limit of the caller is used up."""

    reason = Reason.RATE_LIMITED


class Overloaded(FactoryError):
    """The service is full."""

    reason = Reason.OVERLOADED


class Unavailable(FactoryError):
    """The service cannot answer now; a retry may help."""

    reason = Reason.UNAVAILABLE


class UpstreamFailed(Unavailable):
    """No model backend could answer."""

    reason = Reason.UPSTREAM_FAILED


class Unreachable(Unavailable):
    """None of the service's replicas could be reached; raised by the caller's own channel, after a wait."""


class OutOfSpace(Unavailable):
    """The service's disk has no room for what the call would store; nothing of it was accepted.

    503 and not WebDAV's 507: clients and proxies retry a 503 with Retry-After, and another replica has a disk of its
    own.
    """

    reason = Reason.OUT_OF_SPACE


class DeadlineExceeded(FactoryError):
    """It took longer than allowed."""

    reason = Reason.DEADLINE_EXCEEDED


class Cancelled(FactoryError):
    """The caller cancelled the call."""

    reason = Reason.CANCELLED


class Unimplemented(FactoryError):
    """This deployment does not support it."""

    reason = Reason.UNIMPLEMENTED


class Internal(FactoryError):
    """A fault of the platform. The message holds no details; the log does."""


@dataclass(frozen=True)
class Status:
    """The error class, gRPC status, HTTP status and OpenAI error type of one reason."""

    error: type[FactoryError]
    grpc_status: grpc.StatusCode
    http_status: int
    openai_type: str


TABLE: dict[Reason, Status] = {
    Reason.INVALID_ARGUMENT: Status(InvalidArgument, grpc.StatusCode.INVALID_ARGUMENT, 400, "invalid_request_error"),
    Reason.UNKNOWN_FIELD: Status(InvalidArgument, grpc.StatusCode.INVALID_ARGUMENT, 400, "invalid_request_error"),
    Reason.TOO_LARGE: Status(TooLarge, grpc.StatusCode.INVALID_ARGUMENT, 413, "invalid_request_error"),
    Reason.CONTEXT_TOO_LONG: Status(ContextTooLong, grpc.StatusCode.OUT_OF_RANGE, 400, "invalid_request_error"),
    Reason.UNAUTHENTICATED: Status(Unauthenticated, grpc.StatusCode.UNAUTHENTICATED, 401, "authentication_error"),
    Reason.PERMISSION_DENIED: Status(PermissionDenied, grpc.StatusCode.PERMISSION_DENIED, 403, "permission_error"),
    Reason.NOT_FOUND: Status(NotFound, grpc.StatusCode.NOT_FOUND, 404, "invalid_request_error"),
    Reason.MODEL_NOT_FOUND: Status(NotFound, grpc.StatusCode.NOT_FOUND, 404, "invalid_request_error"),
    Reason.CONFLICT: Status(Conflict, grpc.StatusCode.ABORTED, 409, "invalid_request_error"),
    Reason.CONTENT_BLOCKED: Status(ContentBlocked, grpc.StatusCode.FAILED_PRECONDITION, 422, "content_policy_error"),
    Reason.RATE_LIMITED: Status(RateLimited, grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "rate_limit_error"),
    Reason.OVERLOADED: Status(Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED, 503, "overloaded_error"),
    Reason.UNAVAILABLE: Status(Unavailable, grpc.StatusCode.UNAVAILABLE, 503, "service_unavailable_error"),
    Reason.UPSTREAM_FAILED: Status(UpstreamFailed, grpc.StatusCode.UNAVAILABLE, 503, "service_unavailable_error"),
    Reason.OUT_OF_SPACE: Status(OutOfSpace, grpc.StatusCode.UNAVAILABLE, 503, "service_unavailable_error"),
    Reason.DEADLINE_EXCEEDED: Status(DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED, 504, "timeout_error"),
    Reason.REQUEST_TIMEOUT: Status(DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED, 408, "timeout_error"),
    Reason.CANCELLED: Status(Cancelled, grpc.StatusCode.CANCELLED, 499, "cancelled_error"),
    Reason.UNIMPLEMENTED: Status(Unimplemented, grpc.StatusCode.UNIMPLEMENTED, 501, "invalid_request_error"),
    Reason.INTERNAL: Status(Internal, grpc.StatusCode.INTERNAL, 500, "internal_error"),
}

# A bare status of a library or a proxy carries no ErrorInfo: it gets the first reason with that status.
_BY_GRPC_STATUS: dict[grpc.StatusCode, Reason] = {}
for _reason, _mapping in TABLE.items():
    _BY_GRPC_STATUS.setdefault(_mapping.grpc_status, _reason)
_BY_GRPC_STATUS[grpc.StatusCode.RESOURCE_EXHAUSTED] = Reason.OVERLOADED
_BY_GRPC_STATUS[grpc.StatusCode.OUT_OF_RANGE] = Reason.CONTEXT_TOO_LONG
_BY_GRPC_STATUS[grpc.StatusCode.FAILED_PRECONDITION] = Reason.CONFLICT
# A cancellation on our side raises CancelledError: with this status the peer ended the call, as a draining server does.
_BY_GRPC_STATUS[grpc.StatusCode.CANCELLED] = Reason.UNAVAILABLE


_BARE_MESSAGES = {
    Reason.UNAVAILABLE: "A service of the platform cannot be reached; try again.",
    Reason.OVERLOADED: "A service of the platform is full; try again.",
    Reason.DEADLINE_EXCEEDED: "The request took longer than allowed.",
    Reason.CANCELLED: "The call was cancelled.",
}


def to_status(error: FactoryError) -> grpc.Status:
    """The gRPC status with ErrorInfo, the bad field and RetryInfo as details; for `context.abort_with_status`."""
    mapping = TABLE[error.reason]
    message = _clipped(error.message, _MAX_MESSAGE_BYTES)
    packed = [_packed(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN))]
    if error.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_clipped(error.field, _MAX_FIELD_BYTES), description=message
        )
        packed.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if error.retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(error.retry_after_seconds * 1000))
        packed.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    code: int = mapping.grpc_status.value[0]
    status = status_pb2.Status(code=code, message=message, details=packed)
    return rpc_status.to_status(status)


def from_rpc(error: grpc.aio.AioRpcError, name: str = "a call") -> FactoryError:
    """The exception of a failed call: from the details if a service of the platform set them, else from the status.

    name: what was called, for the log: "/package.Service/Method".
    """
    message = error.details() or error.code().name
    status = _status_details(error)
    reason: Reason | None = None
    field: str | None = None
    retry_after_seconds: float | None = None
    for detail in status.details if status is not None else ():
        info, bad, retry = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.BadRequest(),
            error_details_pb2.RetryInfo(),
        )
        if detail.Unpack(info) and info.domain == DOMAIN and info.reason in TABLE:
            reason = Reason(info.reason)
        elif detail.Unpack(bad) and bad.field_violations:
            field = bad.field_violations[0].field
        elif detail.Unpack(retry):
            retry_after_seconds = retry.retry_delay.ToMilliseconds() / 1000
    if reason is None:
        reason = _BY_GRPC_STATUS.get(error.code(), Reason.INTERNAL)
        # A library's message may name sockets and hosts: it is for the log alone.
        logger.warning("%s failed with %s: %s", name, error.code().name, message)
        message = _BARE_MESSAGES.get(reason, "A service of the platform failed; its log has the reason.")
    return TABLE[reason].error(message, field=field, reason=reason, retry_after_seconds=retry_after_seconds)


def _status_details(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            try:
                return status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode("latin-1"))
            except DecodeError:  # malformed details must not hide the status itself
                return None
    return None


def _clipped(text: str, max_bytes: int) -> str:
    data = text.encode()
    return text if len(data) <= max_bytes else data[: max_bytes - 3].decode(errors="ignore") + "…"


def _packed(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def http_status(error: FactoryError) -> int:
    """The HTTP status of an error."""
    return TABLE[error.reason].http_status


def openai_body(error: FactoryError) -> dict[str, dict[str, str | None]]:
    """The error as the JSON body of OpenAI's API."""
    return {
        "error": {
            "message": error.message,
            "type": TABLE[error.reason].openai_type,
            "param": error.field,
            "code": error.reason.value.lower(),
        }
    }
