"""CheckTexts: the policy's verdicts through the gateway, and what it refuses."""

from __future__ import annotations

import pytest

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels
from genaifactory_common.errors import FactoryError, Reason
from genaifactory_local.testing import Platform

pytestmark = pytest.mark.asyncio(loop_scope="module")

EMAIL = "Write to nguyen.van.an@example.com."
SECRET = "The key is AKIAIOSFODNN7EXAMPLE."


async def check(
    platform: Platform,
    *texts: str,
    policy: str = "default",
    direction: types_pb2.Direction.ValueType = types_pb2.DIRECTION_INPUT,
) -> list[gateway_pb2.CheckedText]:
    request = gateway_pb2.CheckTextsRequest(texts=texts, policy=policy, direction=direction)
    async with platform.connected() as channel:
        stub = gateway_pb2_grpc.GatewayServiceStub(channel)
        return list((await channels.unary(stub.CheckTexts, request, timeout_seconds=30)).texts)


async def test_each_text_has_its_verdict_in_order(shared_platform: Platform) -> None:
    clean, masked, blocked = await check(shared_platform, "Is the laptop mine?", EMAIL, SECRET)
    assert (clean.verdict.action, clean.text) == (types_pb2.ACTION_ALLOW, "Is the laptop mine?")
    assert masked.verdict.action == types_pb2.ACTION_MASK
    assert "nguyen" not in masked.text
    assert (blocked.verdict.action, blocked.text) == (types_pb2.ACTION_BLOCK, "")


async def test_the_direction_chooses_the_rules(shared_platform: Platform) -> None:
    (masked,) = await check(shared_platform, SECRET, direction=types_pb2.DIRECTION_OUTPUT)
    assert masked.verdict.action == types_pb2.ACTION_MASK
    assert "AKIA" not in masked.text


@pytest.mark.parametrize(
    ("texts", "values", "reason", "field"),
    [
        ((), {}, Reason.INVALID_ARGUMENT, "texts"),
        (("a",) * 101, {}, Reason.INVALID_ARGUMENT, "texts"),
        (("x" * 2_000_001,) * 2, {}, Reason.TOO_LARGE, "texts"),
        (("x" * 100_001,), {}, Reason.TOO_LARGE, "text"),
        (("a",), {"policy": "none"}, Reason.NOT_FOUND, "policy"),
        (("a",), {"policy": ""}, Reason.INVALID_ARGUMENT, "policy"),
        (("a",), {"direction": types_pb2.DIRECTION_UNSPECIFIED}, Reason.INVALID_ARGUMENT, "direction"),
    ],
)
async def test_a_wrong_request_names_the_field(
    shared_platform: Platform, texts: tuple[str, ...], values: dict[str, object], reason: Reason, field: str
) -> None:
    with pytest.raises(FactoryError) as refused:
        await check(shared_platform, *texts, **values)  # type: ignore[arg-type]
    assert (refused.value.reason, refused.value.field) == (reason, field)
