"""The guardrails over gRPC: verdicts, streams, wrong requests, and scanners that fail."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import grpc.aio
import pytest

from genaifactory.safety.v1 import safety_pb2, safety_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, specs
from genaifactory_common.errors import (
    FactoryError,
    InvalidArgument,
    NotFound,
    Overloaded,
    Reason,
    Unavailable,
)
from genaifactory_safety.policies import Catalogue
from genaifactory_safety.recogniser import Candidate, Pattern, StrictRecogniser
from genaifactory_safety.settings import Scan

from .conftest import Served, factory
from .planted import document

INPUT, OUTPUT = types_pb2.DIRECTION_INPUT, types_pb2.DIRECTION_OUTPUT
TEXT = "Gọi 0912345678 hoặc viết cho an@example.com, khoá AKIAIOSFODNN7EXAMPLE."
MASKED = "Gọi <VN_PHONE> hoặc viết cho <EMAIL_ADDRESS>, khoá <SECRET_AWS_ACCESS_KEY>."


async def check(
    stub: safety_pb2_grpc.SafetyServiceAsyncStub,
    text: str,
    *,
    direction: types_pb2.Direction.ValueType = OUTPUT,
    policy: str = "default",
) -> safety_pb2.CheckTextResponse:
    request = safety_pb2.CheckTextRequest(direction=direction, text=text, policy=policy)
    return await channels.unary(stub.CheckText, request, timeout_seconds=10)


async def stream(
    stub: safety_pb2_grpc.SafetyServiceAsyncStub,
    pieces: Sequence[str],
    *,
    direction: types_pb2.Direction.ValueType = OUTPUT,
    policy: str = "default",
) -> tuple[str, types_pb2.Verdict]:
    """The text that a stream releases, and its verdict, which must be its last message."""
    async with channels.Duplex(stub.CheckStream, timeout_seconds=10) as call:
        released = ""
        verdict: types_pb2.Verdict | None = None

        async def send() -> None:
            opening = safety_pb2.CheckStreamOpen(direction=direction, policy=policy)
            await call.send(safety_pb2.CheckStreamRequest(open=opening))
            for piece in pieces:
                if verdict is None:
                    await call.send(safety_pb2.CheckStreamRequest(text=piece))
            await call.done_sending()

        sending = asyncio.create_task(send())
        try:
            async for response in call:
                assert verdict is None
                released += response.released
                if response.WhichOneof("part") == "verdict":
                    verdict = response.verdict
            await sending
        finally:
            sending.cancel()
            await asyncio.wait([sending])
    assert verdict is not None
    return released, verdict


async def test_a_whole_text_is_masked_and_the_verdict_names_findings_and_scanners(served: Served) -> None:
    async with served() as stub:
        response = await check(stub, TEXT)
    assert response.text == MASKED
    verdict = response.verdict
    assert (verdict.action, verdict.policy, verdict.direction) == (types_pb2.ACTION_MASK, "default", OUTPUT)
    assert verdict.scanned_characters == len(TEXT)
    assert list(verdict.scanners) == ["pii", "secrets"]
    assert [(f.entity_type, TEXT[f.start_offset : f.end_offset], f.scanner) for f in verdict.findings] == [
        ("VN_PHONE", "0912345678", "pii"),
        ("EMAIL_ADDRESS", "an@example.com", "pii"),
        ("SECRET_AWS_ACCESS_KEY", "AKIAIOSFODNN7EXAMPLE", "secrets"),
    ]


async def test_the_direction_decides_between_mask_and_block(served: Served) -> None:
    async with served() as stub:
        response = await check(stub, TEXT, direction=INPUT)
    assert (response.verdict.action, response.text) == (types_pb2.ACTION_BLOCK, "")


@pytest.mark.parametrize("scan", [Scan(), Scan(inline_characters=0)], ids=["inline", "in threads"])
async def test_a_stream_releases_what_a_check_of_the_whole_text_returns_for_every_cut(
    served: Served, scan: Scan
) -> None:
    rng = random.Random(5)
    async with served(scan=scan) as stub:
        for policy in ("default", "strict"):
            for _ in range(6):
                text, _ = document(rng, sentences=6)
                whole = await check(stub, text, policy=policy)
                cuts = sorted(rng.choices(range(len(text)), k=rng.randint(0, 60)))
                pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
                released, verdict = await stream(stub, pieces, policy=policy)
                assert verdict == whole.verdict
                if verdict.action == types_pb2.ACTION_BLOCK:
                    # A stream has released the text before the block; a check of the whole text returns none.
                    assert whole.text == ""
                    assert released == (await stream(stub, [text], policy=policy))[0]
                else:
                    assert released == whole.text


async def test_after_a_block_the_stream_ends_with_the_verdict_while_the_client_still_sends(served: Served) -> None:
    async with served() as stub:
        pieces = ["Đây là dự ", "án MẬT ", *["và còn nữa "] * 500]
        released, verdict = await stream(stub, pieces, policy="strict")
    assert released == "Đây là "
    assert [(f.entity_type, f.start_offset, f.end_offset) for f in verdict.findings] == [("BANNED_TERM", 7, 16)]
    assert verdict.scanned_characters == 16
    assert "banned_terms" in verdict.scanners


async def test_an_empty_stream_and_an_empty_text_are_clean(served: Served) -> None:
    async with served() as stub:
        released, verdict = await stream(stub, [])
        response = await check(stub, "")
    assert (released, response.text) == ("", "")
    assert verdict == response.verdict
    assert verdict.action == types_pb2.ACTION_ALLOW


async def test_a_policy_without_rules_releases_everything_and_reports_no_scanners(served: Served) -> None:
    async with served() as stub:
        response = await check(stub, TEXT, policy="open")
        released, verdict = await stream(stub, [TEXT], policy="open")
    assert response.text == released == TEXT
    assert list(verdict.scanners) == []


async def test_a_long_text_is_scanned_in_threads_with_the_same_result(served: Served) -> None:
    text = (TEXT + " Một câu bình thường. ") * 2_000
    async with served() as stub:
        response = await check(stub, text)
    assert response.text == (MASKED + " Một câu bình thường. ") * 2_000


WRONG: list[tuple[str, dict[str, Any], type[FactoryError], str]] = [
    ("no direction", {"direction": types_pb2.DIRECTION_UNSPECIFIED}, InvalidArgument, "direction"),
    ("an unknown direction", {"direction": 9}, InvalidArgument, "direction"),
    ("no policy", {"policy": ""}, InvalidArgument, "policy"),
    ("an unknown policy", {"policy": "nope"}, NotFound, "policy"),
    ("too long an input", {"policy": "strict", "direction": INPUT, "text": "x" * 1001}, InvalidArgument, "text"),
]


@pytest.mark.parametrize(("request_", "error", "field"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
async def test_a_wrong_request_is_refused_with_the_name_of_its_field(
    served: Served, request_: dict[str, Any], error: type[FactoryError], field: str
) -> None:
    fields: dict[str, Any] = {"text": "x", "direction": OUTPUT, "policy": "default"} | request_
    async with served() as stub:
        with pytest.raises(error) as raised:
            await channels.unary(stub.CheckText, safety_pb2.CheckTextRequest(**fields), timeout_seconds=5)
        assert raised.value.field == field
        with pytest.raises(error) as raised:
            await stream(stub, [fields.pop("text")], **fields)
    assert raised.value.field in (field, f"open.{field}")


async def test_too_long_an_input_has_its_own_reason_and_the_limit_counts_code_points(served: Served) -> None:
    async with served() as stub:
        assert (await check(stub, "é😀" * 500, direction=INPUT, policy="strict")).verdict.scanned_characters == 1000
        with pytest.raises(InvalidArgument) as raised:
            await check(stub, "x" * 1001, direction=INPUT, policy="strict")
        await check(stub, "xy " * 1001, direction=OUTPUT, policy="strict")
    assert raised.value.reason == Reason.TOO_LARGE
    assert "1000" in raised.value.message


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [safety_pb2.CheckStreamRequest(text="x")],
        [safety_pb2.CheckStreamRequest()],
        [safety_pb2.CheckStreamRequest(open=safety_pb2.CheckStreamOpen(direction=OUTPUT, policy="default"))] * 2,
    ],
    ids=["nothing", "text first", "an empty message", "two openings"],
)
async def test_a_stream_out_of_order_is_refused(
    served: Served, messages: Sequence[safety_pb2.CheckStreamRequest]
) -> None:
    async with served() as stub, channels.Duplex(stub.CheckStream, timeout_seconds=5) as call:
        for message in messages:
            await call.send(message)
        await call.done_sending()
        with pytest.raises(InvalidArgument) as raised:
            _ = [response async for response in call]
    assert raised.value.field in ("open", "text")


async def test_a_call_without_a_signed_caller_is_refused(served: Served) -> None:
    async with served() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.CheckText(safety_pb2.CheckTextRequest(direction=OUTPUT, text="x", policy="default"))
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


class Broken(StrictRecogniser):
    """Raises for every segment."""

    def find(self, text: str, start: int = 0) -> Iterator[Candidate]:
        raise RuntimeError(f"broken at {text}")


class Hanging(StrictRecogniser):
    """Blocks until `let_go` is set."""

    let_go = threading.Event()

    def find(self, text: str, start: int = 0) -> Iterator[Candidate]:
        self.let_go.wait(30)
        yield from super().find(text, start)


def only(recogniser: StrictRecogniser) -> Catalogue:
    return {"PII": (recogniser,), "SECRET": ()}


SOURCE = specs.Source(factory("[{name: default, rules: [{entities: [PII]}]}]"))


async def test_a_scanner_that_raises_makes_the_text_unusable_and_its_text_is_not_logged(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Broken("SAMPLE", [Pattern("sample", r"\d+", 1.0)])
    async with served(source=SOURCE, recognisers=only(broken)) as stub:
        with pytest.raises(Unavailable) as raised:
            await check(stub, "an ordinary start and 12345")
        with pytest.raises(Unavailable):
            await stream(stub, ["an ordinary start ", "and 12", "345 ", "more"])
        assert (await check(stub, "words alone need no scanner")).verdict.action == types_pb2.ACTION_ALLOW
    assert "12345" not in raised.value.message
    assert "12345" not in caplog.text


async def test_a_pattern_that_runs_out_of_time_is_an_error_and_not_a_clean_verdict(served: Served) -> None:
    runaway = StrictRecogniser("SAMPLE", [Pattern("sample", r"^(?:a|aa|a1?)+$", 1.0)])
    async with served(source=SOURCE, recognisers=only(runaway)) as stub:
        with pytest.raises(Unavailable):
            await stream(stub, ["a" * 60 + "1! "])


async def test_a_scanner_that_hangs_is_an_error_after_the_timeout_and_new_calls_are_refused(served: Served) -> None:
    Hanging.let_go.clear()
    hanging = Hanging("SAMPLE", [Pattern("sample", r"\d+", 1.0)])
    scan = Scan(inline_characters=0, threads=1, max_queued=0, timeout_seconds=0.2)
    try:
        async with served(source=SOURCE, recognisers=only(hanging), scan=scan) as stub:
            with pytest.raises(Unavailable):
                await stream(stub, ["number 12345 "])
            # The thread is still occupied: a new call is refused at once, not queued without a bound.
            with pytest.raises(Overloaded) as raised:
                await check(stub, "number 12345")
            with pytest.raises(Overloaded):
                await stream(stub, ["number 12345"])
            assert raised.value.retry_after_seconds
    finally:
        Hanging.let_go.set()
