"""CheckTexts costs tokens of the tenant's limit, before safety does any work."""

from __future__ import annotations

import grpc.aio
import pytest

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import errors
from genaifactory_common.errors import RateLimited
from tests.unit.gateway.conftest import BETA_ADMIN, Gateway


async def check(gateway: Gateway, *texts: str) -> None:
    stub = gateway_pb2_grpc.GatewayServiceStub(gateway.channel)
    request = gateway_pb2.CheckTextsRequest(texts=texts, policy="default", direction=types_pb2.DIRECTION_INPUT)
    try:
        await stub.CheckTexts(request, metadata=(("authorization", f"Bearer {BETA_ADMIN}"),), timeout=10)
    except grpc.aio.AioRpcError as error:
        raise errors.from_rpc(error) from None


async def test_more_text_than_the_tenants_tokens_is_refused_before_safety_is_asked(gateway: Gateway) -> None:
    with pytest.raises(RateLimited, match="tokens"):
        await check(gateway, *["x" * 4_000] * 4)  # 4,000 tokens, and 3,000 are allowed in a minute


async def test_a_check_that_fails_has_used_its_tokens(gateway: Gateway) -> None:
    # No safety is running here: the channel sends the call again, and then the tokens of the first are used up.
    with pytest.raises(RateLimited):
        await check(gateway, "x" * 8_000)
