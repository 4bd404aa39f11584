"""Requests and tokens a minute, with a clock that the test turns."""

from __future__ import annotations

from typing import Any

import pytest

from genaifactory_common import specs
from genaifactory_common.errors import ContentBlocked, RateLimited
from genaifactory_common.testing import orchestrator as script
from genaifactory_gateway.limits import MemoryLimiter

LIMITS = specs.Limits(requests_per_minute=60, tokens_per_minute=6000)
BETA = "sk-beta-user"  # 3 requests and 3000 tokens a minute


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_minutes_worth_may_be_used_at_once_and_comes_back_evenly() -> None:
    clock = _Clock()
    limiter = MemoryLimiter(clock)
    for _ in range(60):
        await limiter.reserve("acme", LIMITS, 0)
    with pytest.raises(RateLimited) as refused:
        await limiter.reserve("acme", LIMITS, 0)
    assert refused.value.retry_after_seconds == pytest.approx(1.0)
    clock.now = 0.99
    with pytest.raises(RateLimited):
        await limiter.reserve("acme", LIMITS, 0)
    clock.now = 1.01
    await limiter.reserve("acme", LIMITS, 0)


async def test_a_refused_request_takes_nothing() -> None:
    limiter = MemoryLimiter(_Clock())
    await limiter.reserve("acme", LIMITS, 5000)
    for _ in range(100):
        with pytest.raises(RateLimited):
            await limiter.reserve("acme", LIMITS, 1001)
    reservation = await limiter.reserve("acme", LIMITS, 1000)
    assert (reservation.requests_state.remaining, reservation.tokens_state.remaining) == (58, 0)


async def test_settling_gives_back_what_was_not_used_and_charges_what_was_used_beyond() -> None:
    clock = _Clock()
    limiter = MemoryLimiter(clock)
    less = await limiter.reserve("acme", LIMITS, 4000)
    await limiter.settle(less, 1000)
    assert limiter.state("acme", LIMITS)[1].remaining == 5000
    more = await limiter.reserve("acme", LIMITS, 1000)
    await limiter.settle(more, 9000)
    assert limiter.state("acme", LIMITS)[1].remaining == 0
    with pytest.raises(RateLimited) as refused:
        await limiter.reserve("acme", LIMITS, 100)
    assert refused.value.retry_after_seconds == pytest.approx(41.0)  # 4,100 too many at 100 a second
    clock.now = 41.01
    await limiter.reserve("acme", LIMITS, 100)


async def test_what_can_never_fit_is_refused_without_a_time_to_try_again() -> None:
    with pytest.raises(RateLimited, match="more than the 6000 tokens a minute") as refused:
        await MemoryLimiter(_Clock()).reserve("acme", LIMITS, 6001)
    assert refused.value.retry_after_seconds is None


async def test_tenants_do_not_share_limits_and_forgotten_ones_hold_no_memory() -> None:
    limiter = MemoryLimiter(_Clock())
    await limiter.reserve("acme", LIMITS, 6000)
    await limiter.reserve("beta", LIMITS, 6000)
    limiter.keep_only(["beta"])
    assert limiter.state("acme", LIMITS)[1].remaining == 6000
    assert limiter.state("beta", LIMITS)[1].remaining == 0


async def test_a_changed_limit_counts_at_once() -> None:
    limiter = MemoryLimiter(_Clock())
    await limiter.reserve("acme", LIMITS, 6000)
    higher = specs.Limits(requests_per_minute=60, tokens_per_minute=10_000)
    assert limiter.state("acme", higher)[1].remaining == 4000


async def test_headers_tell_limits_rest_and_time_and_a_refusal_when_to_try_again(gateway: Any) -> None:
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
    assert second.headers["x-ratelimit-remaining-tokens"] == "2343"  # the first has paid 150
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


async def test_a_request_that_can_never_fit_tells_clients_not_to_try_again(gateway: Any) -> None:
    response = await gateway.chat(BETA, max_tokens=4000)
    assert response.status_code == 429
    assert response.headers["x-should-retry"] == "false"
    assert "retry-after" not in response.headers


async def test_a_request_that_fails_before_any_work_pays_no_tokens(gateway: Any) -> None:
    gateway.orchestrator.script = [script.route(), ContentBlocked("no")]
    assert (await gateway.chat(BETA, max_tokens=2900)).status_code == 422
    gateway.orchestrator.script = [script.done(prompt_tokens=0, completion_tokens=0)]
    assert (await gateway.chat(BETA, max_tokens=2900)).status_code == 200
    assert (await gateway.chat(BETA, max_tokens=2900)).status_code == 200


async def test_every_answer_of_n_is_reserved(gateway: Any) -> None:
    response = await gateway.chat(BETA, n=4, max_tokens=700)
    assert response.headers["x-ratelimit-remaining-tokens"] == "193"
    gateway.clock.now += 60
    response = await gateway.chat(BETA, n=5, max_tokens=700)
    assert response.status_code == 429


async def test_without_max_tokens_the_routes_bound_is_reserved(gateway: Any) -> None:
    assert (await gateway.chat(BETA)).headers["x-ratelimit-remaining-tokens"] == "2493"
