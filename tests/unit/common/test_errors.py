"""The table of errors: each is the same on both sides of a real call, over HTTP and after pickling."""

from __future__ import annotations

import pickle

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from genaifactory.safety.v1 import safety_pb2, safety_pb2_grpc
from genaifactory_common import channels, errors, testing
from genaifactory_common.errors import TABLE, FactoryError, Internal, InvalidArgument, RateLimited, Reason
from tests.unit.common.conftest import Scripted

REQUEST = safety_pb2.CheckTextRequest(text="x")


def every_error() -> list[FactoryError]:
    return [
        mapping.error(f"Vì {reason}: 100 % \n sai", field="messages[2].content", reason=reason, retry_after_seconds=1.5)
        for reason, mapping in TABLE.items()
    ]


def packed_details(status: grpc.Status) -> bytes:
    (details,) = [value for key, value in status.trailing_metadata or () if key == "grpc-status-details-bin"]
    assert isinstance(details, bytes)
    return details


async def raised_over_grpc(scripted: Scripted, error: BaseException) -> FactoryError:
    async def fail(_: safety_pb2.CheckTextRequest) -> safety_pb2.CheckTextResponse:
        raise error

    scripted.unary = fail
    testing.act_as()
    async with testing.served(scripted.app()) as channel:
        with pytest.raises(FactoryError) as raised:
            await channels.unary(safety_pb2_grpc.SafetyServiceStub(channel).CheckText, REQUEST, timeout_seconds=5)
    return raised.value


def test_the_table_has_every_reason_and_its_class() -> None:
    assert set(TABLE) == set(Reason)
    for reason, mapping in TABLE.items():
        assert issubclass(mapping.error, FactoryError)
        assert 400 <= mapping.http_status < 600
        assert mapping.grpc_status is not grpc.StatusCode.OK
        assert mapping.error("x", reason=reason).reason is reason


@pytest.mark.parametrize("error", every_error(), ids=lambda e: e.reason.value)
async def test_an_error_crosses_a_real_call_unchanged(error: FactoryError, scripted: Scripted) -> None:
    arrived = await raised_over_grpc(scripted, error)
    assert type(arrived) is type(error)
    assert vars(arrived) == vars(error)


@pytest.mark.parametrize("error", every_error(), ids=lambda e: e.reason.value)
def test_an_error_survives_pickling(error: FactoryError) -> None:
    arrived = pickle.loads(pickle.dumps(error))
    assert (type(arrived), str(arrived), arrived.reason) == (type(error), str(error), error.reason)
    assert (arrived.field, arrived.retry_after_seconds) == (error.field, error.retry_after_seconds)


async def test_an_error_without_details_arrives_without_them(scripted: Scripted) -> None:
    arrived = await raised_over_grpc(scripted, RateLimited("slow down"))
    assert (arrived.message, arrived.field, arrived.retry_after_seconds) == ("slow down", None, None)


@pytest.mark.parametrize("length", [1_000, 10_000, 100_000])
async def test_a_long_message_is_shortened_and_the_error_stays(length: int, scripted: Scripted) -> None:
    arrived = await raised_over_grpc(scripted, InvalidArgument("đ" * length, field="f" * length))
    assert type(arrived) is InvalidArgument
    assert arrived.message.startswith("đđđ")
    assert (arrived.field or "").startswith("fff")


async def test_an_unexpected_exception_is_an_internal_error_without_its_text(
    scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    arrived = await raised_over_grpc(scripted, KeyError("password=hunter2"))
    assert type(arrived) is Internal
    assert "hunter2" not in arrived.message
    assert "KeyError" in caplog.text


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.Overloaded),
        (grpc.StatusCode.UNAUTHENTICATED, errors.Unauthenticated),
        (grpc.StatusCode.UNIMPLEMENTED, errors.Unimplemented),
        (grpc.StatusCode.DATA_LOSS, Internal),
        (grpc.StatusCode.UNKNOWN, Internal),
    ],
)
def test_a_bare_status_of_a_library_becomes_the_nearest_error(
    code: grpc.StatusCode, expected: type[FactoryError]
) -> None:
    bare = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details="it broke")
    assert type(errors.from_rpc(bare)) is expected


def test_malformed_details_do_not_hide_the_status() -> None:
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", b"\xff\xff garbage"))
    bare = grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), trailing, details="no such index")
    assert type(errors.from_rpc(bare)) is errors.NotFound


def test_details_of_another_domain_are_ignored() -> None:
    status = errors.to_status(errors.ContentBlocked("no"))
    details = packed_details(status)
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", details.replace(b"genaifactory.dev", b"googleapis.com!!")))
    bare = grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), trailing, details="no")
    assert type(errors.from_rpc(bare)) is not errors.ContentBlocked


def test_a_status_carries_the_standard_details_for_other_clients() -> None:
    status = errors.to_status(RateLimited("slow down", field="model", retry_after_seconds=2.5))
    packed = status_pb2.Status.FromString(packed_details(status)).details
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    assert [detail.Unpack(into) for detail, into in zip(packed, (info, bad, retry), strict=True)] == [True] * 3
    assert (info.reason, info.domain) == ("RATE_LIMITED", "genaifactory.dev")
    assert bad.field_violations[0].field == "model"
    assert retry.retry_delay.ToMilliseconds() == 2500


def test_an_http_error_has_the_form_of_openai() -> None:
    error = InvalidArgument("temperature must be 0 to 2.", field="temperature")
    assert errors.http_status(error) == 400
    assert errors.openai_body(error) == {
        "error": {
            "message": "temperature must be 0 to 2.",
            "type": "invalid_request_error",
            "param": "temperature",
            "code": "invalid_argument",
        }
    }
