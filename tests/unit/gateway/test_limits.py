"""Limits of requests and tokens a minute, with a clock that the test sets."""

from __future__ import annotations

from typing import Any

import pytest

from genaifactory.types.v1 import types_pb2
from genaifactory_common import conversation, specs
from genaifactory_common.errors import (
    ContentBlocked,
    ContextTooLong,
    DeadlineExceeded,
    FactoryError,
    Internal,
    Overloaded,
    RateLimited,
    Unavailable,
    UpstreamFailed,
)
from genaifactory_common.testing import orchestrator as script
from genaifactory_gateway.limits import KINDS, Amounts, Limiter
from genaifactory_gateway.quotas import Charge, MemoryQuotas
from tests.unit.gateway.conftest import Gateway

LIMITS = specs.Limits(requests_per_minute=60, tokens_per_minute=6000)
BETA = "sk-beta-user"  # 3 requests and 3000 tokens a minute


def request(tokens: int) -> Amounts:
    return {"requests": 1, "tokens": tokens}


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_whole_limit_may_be_used_at_once_and_drains_evenly() -> None:
    clock = _Clock()
    limiter = Limiter(MemoryQuotas(clock))
    for _ in range(60):
        await limiter.reserve("acme", LIMITS, request(0))
    with pytest.raises(RateLimited) as refused:
        await limiter.reserve("acme", LIMITS, request(0))
    assert refused.value.retry_after_seconds == pytest.approx(1.0)
    clock.now = 0.99
    with pytest.raises(RateLimited):
        await limiter.reserve("acme", LIMITS, request(0))
    clock.now = 1.01
    await limiter.reserve("acme", LIMITS, request(0))


async def test_a_refused_request_reserves_nothing() -> None:
    limiter = Limiter(MemoryQuotas(_Clock()))
    await limiter.reserve("acme", LIMITS, request(5000))
    for _ in range(100):
        with pytest.raises(RateLimited):
            await limiter.reserve("acme", LIMITS, request(1001))
    reservation = await limiter.reserve("acme", LIMITS, request(1000))
    assert (reservation.states["requests"].remaining, reservation.states["tokens"].remaining) == (58, 0)


async def test_settling_refunds_unused_and_charges_additional_amounts() -> None:
    clock = _Clock()
    limiter = Limiter(MemoryQuotas(clock))
    less = await limiter.reserve("acme", LIMITS, request(4000))
    await limiter.settle(less, request(1000))
    assert (await limiter.states("acme", LIMITS))["tokens"].remaining == 5000
    more = await limiter.reserve("acme", LIMITS, request(1000))
    await limiter.settle(more, request(9000))
    assert (await limiter.states("acme", LIMITS))["tokens"].remaining == 0
    with pytest.raises(RateLimited) as refused:
        await limiter.reserve("acme", LIMITS, request(100))
    assert refused.value.retry_after_seconds == pytest.approx(41.0)  # 4,100 too many at 100 a second
    clock.now = 41.01
    await limiter.reserve("acme", LIMITS, request(100))


async def test_a_request_above_the_whole_limit_is_refused_without_a_retry_time() -> None:
    with pytest.raises(RateLimited, match="more than the 6000 tokens a minute") as refused:
        await Limiter(MemoryQuotas(_Clock())).reserve("acme", LIMITS, request(6001))
    assert refused.value.retry_after_seconds is None


async def test_tenants_do_not_share_limits_and_removed_ones_use_no_memory() -> None:
    limiter = Limiter(MemoryQuotas(_Clock()))
    await limiter.reserve("acme", LIMITS, request(6000))
    await limiter.reserve("beta", LIMITS, request(6000))
    limiter.keep_only(["beta"])
    assert (await limiter.states("acme", LIMITS))["tokens"].remaining == 6000
    assert (await limiter.states("beta", LIMITS))["tokens"].remaining == 0


async def test_a_changed_limit_applies_at_once() -> None:
    limiter = Limiter(MemoryQuotas(_Clock()))
    await limiter.reserve("acme", LIMITS, request(6000))
    higher = specs.Limits(requests_per_minute=60, tokens_per_minute=10_000)
    assert (await limiter.states("acme", higher))["tokens"].remaining == 4000


def test_the_table_has_one_kind_for_each_field_of_a_tenant_s_limits() -> None:
    marked = specs.Limits(**{field: number for number, field in enumerate(specs.Limits.model_fields, start=1)})
    assert sorted(rule.limit(marked) for rule in KINDS.values()) == list(range(1, len(specs.Limits.model_fields) + 1))


async def test_charges_of_one_call_are_made_together_or_not_at_all() -> None:
    store = MemoryQuotas(_Clock())
    day, minute = Charge("day", 60, 100, 86_400.0), Charge("minute", 60, 60, 60.0)
    assert (await store.reserve("acme", [day, minute])).refused is None
    assert (await store.reserve("acme", [Charge("day", 40, 100, 86_400.0), minute])).refused == 1
    await store.settle("acme", [Charge("minute", -60, 60, 60.0)])
    refused = await store.reserve("acme", [minute, Charge("day", 41, 100, 86_400.0)])
    assert (refused.before, refused.refused) == ([0.0, 60.0], 1)
    assert (await store.reserve("acme", [Charge("day", 40, 100, 86_400.0), minute])).refused is None


async def test_headers_have_limits_and_remaining_amounts_and_a_refusal_has_retry_after(gateway: Gateway) -> None:
    gateway.orchestrator.script = [script.delta("a"), script.done(prompt_tokens=100, completion_tokens=50)]
    first = await gateway.chat(BETA, max_tokens=500)
    assert first.status_code == 200
    headers = {name: value for name, value in first.headers.items() if name.startswith("x-ratelimit")}
    assert headers == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "20s",
        "x-ratelimit-limit-tokens": "3000",
        "x-ratelimit-remaining-tokens": "2493",  # 500 and an estimate of 7 for the question are reserved
        "x-ratelimit-reset-tokens": "10.14s",
    }
    second = await gateway.chat(BETA, max_tokens=500)
    assert second.headers["x-ratelimit-remaining-tokens"] == "2343"  # the first was charged 150
    assert (await gateway.chat(BETA)).status_code == 200
    refused = await gateway.chat(BETA)
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert "3 requests a minute" in refused.json()["error"]["message"]
    assert refused.headers["retry-after"] == "20"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    gateway.clock.now += 20.01
    assert (await gateway.chat(BETA)).status_code == 200
    assert len(gateway.orchestrator.requests) == 4


async def test_a_request_above_the_whole_limit_tells_clients_not_to_retry(gateway: Gateway) -> None:
    response = await gateway.chat(BETA, max_tokens=4000)
    assert response.status_code == 429
    assert response.headers["x-should-retry"] == "false"
    assert "retry-after" not in response.headers


@pytest.mark.parametrize("error", [Overloaded("full"), Unavailable("down"), UpstreamFailed("broke"), Internal("ours")])
async def test_a_prompt_that_the_platform_fails_to_answer_is_not_charged(gateway: Gateway, error: FactoryError) -> None:
    gateway.orchestrator.script = [script.route(), error]
    gateway.orchestrator.embed_error = error
    long = [{"role": "user", "content": "?" * 8000}]
    assert (await gateway.chat(BETA, messages=long, max_tokens=10)).status_code >= 500
    embedded = await gateway.post("/v1/embeddings", {"model": "minilm", "input": "?" * 8000}, key=BETA)
    assert embedded.status_code >= 500
    assert (await gateway.get("/v1/models", key=BETA)).headers["x-ratelimit-remaining-tokens"] == "3000"


async def test_texts_for_which_a_model_returns_too_few_vectors_are_not_charged(gateway: Gateway) -> None:
    gateway.orchestrator.embed_at_most = 1
    embedded = await gateway.post("/v1/embeddings", {"model": "minilm", "input": ["?" * 4000] * 2}, key=BETA)
    assert embedded.status_code == 503
    assert (await gateway.get("/v1/models", key=BETA)).headers["x-ratelimit-remaining-tokens"] == "3000"


@pytest.mark.parametrize("error", [ContentBlocked("no"), ContextTooLong("long"), DeadlineExceeded("slow")])
async def test_a_prompt_that_is_refused_or_takes_too_long_is_charged(gateway: Gateway, error: FactoryError) -> None:
    gateway.orchestrator.script = [script.route(), error]
    gateway.orchestrator.embed_error = error
    long = [{"role": "user", "content": "?" * 4000}]
    assert (await gateway.chat(BETA, messages=long, max_tokens=10)).status_code >= 400
    embedded = await gateway.post("/v1/embeddings", {"model": "minilm", "input": "?" * 4000}, key=BETA)
    assert embedded.status_code >= 400
    assert (await gateway.get("/v1/models", key=BETA)).headers["x-ratelimit-remaining-tokens"] == "996"


async def test_everything_that_a_model_reads_is_reserved(gateway: Gateway) -> None:
    schema = {"type": "object", "properties": {"a": {"description": "?" * 13_000}}}
    tools = [{"type": "function", "function": {"name": "a", "parameters": schema}}]
    formatted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    more: list[dict[str, Any]] = [{"tools": tools}, {"response_format": formatted}]
    for fields in more:
        gateway.clock.now += 60
        refused = await gateway.chat(BETA, max_tokens=1, **fields)
        assert refused.status_code == 429, refused.text
        assert "tokens" in refused.json()["error"]["message"]
    assert gateway.orchestrator.requests == []
    call = types_pb2.ToolCall(id="c" * 4000, name="a", arguments_json="{}")
    called = types_pb2.Message(role=types_pb2.ROLE_ASSISTANT, tool_calls=[call])
    result = types_pb2.Message(role=types_pb2.ROLE_TOOL, tool_call_id="c" * 4000, name="n" * 4000)
    assert conversation.estimated_prompt_tokens([called, result]) >= 3000


async def test_tokens_of_all_n_choices_are_reserved(gateway: Gateway) -> None:
    response = await gateway.chat(BETA, n=4, max_tokens=700)
    assert response.headers["x-ratelimit-remaining-tokens"] == "193"
    gateway.clock.now += 60
    response = await gateway.chat(BETA, n=5, max_tokens=700)
    assert response.status_code == 429


async def test_the_routes_output_bound_is_reserved_without_max_tokens(gateway: Gateway) -> None:
    assert (await gateway.chat(BETA)).headers["x-ratelimit-remaining-tokens"] == "2493"
