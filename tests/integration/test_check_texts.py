"""CheckTexts: the policy's verdicts through the gateway, and what it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import prometheus_client
import pytest
import pytest_asyncio

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels
from genaifactory_common.errors import FactoryError, NotFound, RateLimited, Reason
from genaifactory_local import testing
from genaifactory_local.platform import Options
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


@pytest_asyncio.fixture(loop_scope="module")
async def limited(tmp_path: Path) -> AsyncIterator[Platform]:
    """A platform whose tenant may use 3,000 tokens a minute."""
    text = await asyncio.to_thread(testing.DEFAULT_FACTORY.read_text, encoding="utf-8")
    assert "tokens_per_minute: 10000000" in text
    file = tmp_path / "factory.yaml"
    await asyncio.to_thread(file.write_text, text.replace("tokens_per_minute: 10000000", "tokens_per_minute: 3000"))
    async with testing.running(tmp_path / "state", factory=file, options=Options(http_port=0, grpc_port=0)) as found:
        yield found


async def scans() -> float:
    """Texts that safety was asked to check."""
    metrics = await asyncio.to_thread(lambda: list(prometheus_client.REGISTRY.collect()))
    return sum(
        sample.value
        for metric in metrics
        for sample in metric.samples
        if sample.name == "genaifactory_rpc_requests_total"
        and sample.labels["method"].endswith("SafetyService/CheckText")
    )


async def test_more_text_than_the_tenants_tokens_is_refused_before_any_of_it_is_scanned(limited: Platform) -> None:
    before = await scans()
    with pytest.raises(RateLimited, match="tokens"):
        await check(limited, *["x" * 4_000] * 4)
    assert await scans() == before


async def test_texts_that_could_not_be_checked_have_used_their_tokens(limited: Platform) -> None:
    with pytest.raises(NotFound):
        await check(limited, "x" * 8_000, policy="none")
    with pytest.raises(RateLimited, match="tokens"):
        await check(limited, "x" * 8_000)
