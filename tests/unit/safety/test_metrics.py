"""Metrics of the guardrails: outcomes, findings, and every text that could not be scanned."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import Counter, Histogram

from genaifactory.safety.v1 import safety_pb2
from genaifactory_common import channels
from genaifactory_common.errors import DeadlineExceeded, InvalidArgument, Overloaded, Unavailable
from genaifactory_safety import metrics
from genaifactory_safety.recogniser import Pattern
from genaifactory_safety.settings import Scan

from .conftest import Served
from .test_service import INPUT, OUTPUT, SOURCE, TEXT, Broken, Hanging, check, only, stream


def value(collector: Counter | Histogram, *labels: str) -> float:
    """A counter's value, or how often a histogram observed something."""
    (family,) = collector.labels(*labels).collect()
    return next(sample.value for sample in family.samples if sample.name.endswith(("_total", "_count")))


def not_scanned() -> dict[str, float]:
    """Texts of direction OUTPUT that were not scanned, by reason."""
    samples = (sample for family in metrics.NOT_SCANNED.collect() for sample in family.samples)
    return {
        sample.labels["reason"]: sample.value
        for sample in samples
        if sample.name.endswith("_total") and sample.labels["direction"] == "OUTPUT"
    }


async def test_a_text_is_counted_by_policy_direction_and_verdict_and_its_findings_by_entity(served: Served) -> None:
    verdicts = [("default", "OUTPUT", "MASK"), ("default", "INPUT", "BLOCK"), ("open", "OUTPUT", "ALLOW")]
    findings = [("EMAIL_ADDRESS", "OUTPUT", "MASK"), ("SECRET_AWS_ACCESS_KEY", "INPUT", "BLOCK")]
    before = [value(metrics.VERDICTS, *labels) for labels in verdicts]
    found = [value(metrics.FINDINGS, *labels) for labels in findings]
    timed = value(metrics.SECONDS, "OUTPUT")
    async with served() as stub:
        await check(stub, TEXT)
        await stream(stub, [TEXT[:30], TEXT[30:]])
        await check(stub, TEXT, direction=INPUT)
        await check(stub, TEXT, policy="open")
    assert [value(metrics.VERDICTS, *labels) for labels in verdicts] == [before[0] + 2, before[1] + 1, before[2] + 1]
    assert [value(metrics.FINDINGS, *labels) for labels in findings] == [found[0] + 2, found[1] + 1]
    assert value(metrics.SECONDS, "OUTPUT") == timed + 3


def test_every_reason_has_a_counter_at_0_from_the_start_so_that_prometheus_computes_the_first_increase() -> None:
    assert set(not_scanned()) == {"OVERLOADED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL"}


async def test_a_text_whose_scan_fails_hangs_or_is_refused_under_load_is_counted_as_not_scanned(served: Served) -> None:
    before = not_scanned()
    broken = Broken("SAMPLE", [Pattern("sample", r"\d+", 1.0)])
    async with served(source=SOURCE, recognisers=only(broken)) as stub:
        with pytest.raises(Unavailable):
            await stream(stub, ["number 12345 "])
    Hanging.let_go.clear()
    hanging = Hanging("SAMPLE", [Pattern("sample", r"\d+", 1.0)])
    scan = Scan(inline_characters=0, threads=1, max_queued=0, timeout_seconds=30)
    try:
        async with served(source=SOURCE, recognisers=only(hanging), scan=scan) as stub:
            request = safety_pb2.CheckTextRequest(direction=OUTPUT, text="number 12345", policy="default")
            with pytest.raises(DeadlineExceeded):
                await channels.unary(stub.CheckText, request, timeout_seconds=0.2)
            with pytest.raises(Overloaded):
                await check(stub, "number 12345")
    finally:
        Hanging.let_go.set()
    after = not_scanned()
    assert {reason: after[reason] - before[reason] for reason in after} == {
        "UNAVAILABLE": 1,
        "DEADLINE_EXCEEDED": 1,
        "OVERLOADED": 1,
        "INTERNAL": 0,
    }


async def test_a_wrong_request_and_a_cancelled_call_are_not_counted_as_not_scanned(served: Served) -> None:
    before = not_scanned()
    Hanging.let_go.clear()
    hanging = Hanging("SAMPLE", [Pattern("sample", r"\d+", 1.0)])
    try:
        async with served(source=SOURCE, recognisers=only(hanging), scan=Scan(inline_characters=0)) as stub:
            leaving = asyncio.create_task(check(stub, "number 12345"))
            await asyncio.sleep(0.1)  # it is being scanned
            leaving.cancel()
            await asyncio.wait((leaving,))
            with pytest.raises(InvalidArgument):
                await check(stub, "x", policy="")
    finally:
        Hanging.let_go.set()
    assert not_scanned() == before
