"""The gateway's metrics of failed requests."""

from __future__ import annotations

import pytest
from prometheus_client import Counter

from genaifactory_common import specs
from genaifactory_common.errors import RateLimited, UpstreamFailed
from genaifactory_common.testing import orchestrator as script
from genaifactory_gateway.http.observation import HTTP_ERRORS, HTTP_REQUESTS
from genaifactory_gateway.limits import LIMITS_HIT, Limiter
from genaifactory_gateway.quotas import MemoryQuotas
from tests.unit.gateway.conftest import Gateway

CHAT = "/v1/chat/completions"


def value(counter: Counter, *labels: str) -> float:
    (family,) = counter.labels(*labels).collect()
    return family.samples[0].value


async def test_an_answer_that_fails_midway_counts_as_an_error_despite_its_status_200(gateway: Gateway) -> None:
    failed, answered = value(HTTP_ERRORS, CHAT, "UPSTREAM_FAILED"), value(HTTP_REQUESTS, CHAT, "POST", "200")
    gateway.orchestrator.script = [script.delta("Xin "), UpstreamFailed("No model could go on.")]
    assert (await gateway.chat(stream=True)).status_code == 200
    assert value(HTTP_ERRORS, CHAT, "UPSTREAM_FAILED") == failed + 1
    assert value(HTTP_REQUESTS, CHAT, "POST", "200") == answered + 1


async def test_errors_with_the_same_status_are_counted_by_reason(gateway: Gateway) -> None:
    before = [value(HTTP_ERRORS, CHAT, reason) for reason in ("INVALID_ARGUMENT", "UNKNOWN_FIELD")]
    await gateway.chat(temperature=99)
    body = {"model": "chat", "messages": [{"role": "user", "content": "?"}], "colour": "blue"}
    await gateway.post("/v1/chat/completions", body, headers={"x-genaifactory-strict": "true"})
    after = [value(HTTP_ERRORS, CHAT, reason) for reason in ("INVALID_ARGUMENT", "UNKNOWN_FIELD")]
    assert after == [before[0] + 1, before[1] + 1]


async def test_a_refusal_is_counted_by_tenant_and_limit() -> None:
    limiter = Limiter(MemoryQuotas(lambda: 0.0))
    limits = specs.Limits(requests_per_minute=2, tokens_per_minute=100)
    await limiter.reserve("counted", limits, {"requests": 1, "tokens": 60})
    for tokens in (60, 101):
        with pytest.raises(RateLimited):
            await limiter.reserve("counted", limits, {"requests": 1, "tokens": tokens})
    await limiter.reserve("counted", limits, {"requests": 1})
    with pytest.raises(RateLimited):
        await limiter.reserve("counted", limits, {"requests": 1})
    assert (value(LIMITS_HIT, "counted", "tokens"), value(LIMITS_HIT, "counted", "requests")) == (2, 1)
