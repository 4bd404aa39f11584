"""RecordInteractions: every record is stored once, or refused with the path of the wrong field."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf import timestamp_pb2
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from genaifactory.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, runtime, testing
from genaifactory_common import settings as common_settings
from genaifactory_common.errors import InvalidArgument, TooLarge, Unauthenticated
from genaifactory_common.telemetry import Telemetry
from genaifactory_monitor.app import create_app
from genaifactory_monitor.settings import Settings
from tests.unit.monitor.conftest import Monitor, make_interaction, moment

KEPT = types_pb2.Image(
    media_type="image/png",
    digest=types_pb2.ImageDigest(sha256="0f" * 32, size_bytes=2**33),
    detail=types_pb2.Image.DETAIL_HIGH,
    position=3,
)


async def test_every_field_of_an_interaction_comes_back_as_it_was_recorded(monitor: Monitor) -> None:
    testing.act_as()
    recorded = make_interaction(
        "everything",
        user="khách-1",
        attempts=[
            monitor_pb2.ModelAttempt(model="big", error_reason="UPSTREAM_FAILED", duration_us=2**40),
            monitor_pb2.ModelAttempt(model="small", duration_us=7),
        ],
        prompt_version="rag@3",
        index_version="handbook-2",
        passages=[monitor_pb2.PassageReference(passage_id="p1", document_id="d1", score=0.25)],
        citations=[
            types_pb2.Citation(number=1, passage_id="p1", document_id="d1", title="Sổ tay", uri="a/b.md", end_offset=10)
        ],
        verdicts=[
            types_pb2.Verdict(
                action=types_pb2.ACTION_MASK,
                findings=[
                    types_pb2.Finding(
                        entity_type="VN_CCCD",
                        start_offset=3,
                        end_offset=15,
                        score=0.75,
                        action=types_pb2.ACTION_MASK,
                        scanner="pii",
                    )
                ],
                policy="default",
                scanners=["pii", "secrets"],
                scanned_characters=2**33,
                direction=types_pb2.DIRECTION_INPUT,
            )
        ],
        input=[
            types_pb2.Message(role=types_pb2.ROLE_SYSTEM, content="Trả lời ngắn."),
            types_pb2.Message(role=types_pb2.ROLE_USER, content="Mã 🇻🇳?\n\t\u0001", name="An", images=[KEPT]),
            types_pb2.Message(
                role=types_pb2.ROLE_ASSISTANT,
                tool_calls=[types_pb2.ToolCall(id="c1", name="look", arguments_json='{"a":1}', index=1)],
            ),
            types_pb2.Message(role=types_pb2.ROLE_TOOL, content="{}", tool_call_id="c1"),
        ],
        usage=types_pb2.TokenUsage(prompt_tokens=10**12, completion_tokens=2, cached_prompt_tokens=1),
        cost_micros=10**14,
        currency="VND",
        outcome=monitor_pb2.OUTCOME_FAILED,
        error_reason="UPSTREAM_FAILED",
        error_message="No model answered.",
        cached=True,
        refused=True,
        conversation_id="talk-1",
        trace_id="0123456789abcdef0123456789abcdef",
        at=0.123456,
    )

    await monitor.record(recorded)

    assert list((await monitor.query()).interactions) == [recorded]


async def test_a_record_that_arrives_again_is_known_and_the_first_stays(monitor: Monitor) -> None:
    testing.act_as()
    assert await monitor.record(make_interaction("a", output="first"), make_interaction("b")) == (2, 0)
    assert await monitor.record(make_interaction("c"), make_interaction("a", output="second")) == (1, 1)

    found = (await monitor.query()).interactions
    assert {item.request_id: item.output for item in found}["a"] == "first"
    assert [row.requests for row in await monitor.usage(start_time=moment(-10), end_time=moment(10))] == [3]


async def test_of_one_id_twice_in_a_batch_the_first_is_stored(monitor: Monitor) -> None:
    testing.act_as()
    assert await monitor.record(make_interaction("a", output="1"), make_interaction("a", output="2")) == (1, 1)
    assert [item.output for item in (await monitor.query()).interactions] == ["1"]


async def test_a_tenant_cannot_occupy_an_id_of_another(monitor: Monitor) -> None:
    testing.act_as()
    await monitor.record(make_interaction("a", tenant="rival", output="theirs"))
    assert await monitor.record(make_interaction("a", output="ours")) == (1, 0)
    assert [item.output for item in (await monitor.query()).interactions] == ["ours"]


async def test_500_records_are_one_batch_and_501_are_refused(monitor: Monitor) -> None:
    batch = [make_interaction(f"r{i}") for i in range(501)]
    with pytest.raises(InvalidArgument, match="1 to 500") as refused:
        await monitor.record(*batch)
    assert refused.value.field == "interactions"
    assert await monitor.record(*batch[:500]) == (500, 0)
    assert await monitor.record(*batch[:500]) == (0, 500)


async def test_an_empty_batch_is_refused(monitor: Monitor) -> None:
    with pytest.raises(InvalidArgument, match="1 to 500 records, not 0"):
        await monitor.record()


async def test_the_bytes_of_an_image_are_not_stored(monitor: Monitor) -> None:
    testing.act_as()
    shown = types_pb2.Image(media_type="image/png", data=b"\x89PNG")
    message = types_pb2.Message(role=types_pb2.ROLE_USER, content="What?", images=[shown])
    await monitor.record(make_interaction("a", input=[message]))
    (found,) = (await monitor.query()).interactions
    assert found.input[0].images[0] == types_pb2.Image(media_type="image/png")


async def test_text_with_nul_is_kept_with_a_replacement_character(monitor: Monitor) -> None:
    testing.act_as()
    message = types_pb2.Message(role=types_pb2.ROLE_USER, content="a\0b")
    await monitor.record(make_interaction("a", output="x\0y", input=[message]))
    (found,) = (await monitor.query()).interactions
    assert (found.output, found.input[0].content) == ("x\ufffdy", "a\ufffdb")


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "no request_id": ({"request_id": ""}, "request_id", "1 to 128 characters; it is empty"),
    "long request_id": ({"request_id": "r" * 129}, "request_id", "129 characters; at most 128"),
    "nul in request_id": ({"request_id": "a\0b"}, "request_id", "1 to 128 characters"),
    "no tenant": ({"tenant": ""}, "tenant", "tenant's name"),
    "no such tenant name": ({"tenant": "Acme Ltd"}, "tenant", "not 'Acme Ltd'"),
    "every tenant": ({"tenant": "*"}, "tenant", "tenant's name"),
    "a tenant with a line end": ({"tenant": "acme\n"}, "tenant", "tenant's name"),
    "long tenant": ({"tenant": "t" * 64}, "tenant", "1 to 63"),
    "no start": ({"start_time": None}, "start_time", "must be given"),
    "start before 2000": ({"start_time": timestamp_pb2.Timestamp(seconds=5)}, "start_time", "2000 to 9998"),
    "start before 1970": ({"start_time": timestamp_pb2.Timestamp(seconds=-5)}, "start_time", "2000 to 9998"),
    "start in the far future": ({"start_time": timestamp_pb2.Timestamp(seconds=2**61)}, "start_time", "2000 to 9998"),
    "start next week": ({"at": 10 * 365 * 86_400}, "start_time", "ahead of the monitor's clock"),
    "wrong nanos": ({"start_time": timestamp_pb2.Timestamp(seconds=10**9, nanos=-1)}, "start_time", "2000 to 9998"),
    "no task": ({"task": ""}, "task", "it is empty"),
    "no outcome": ({"outcome": 0}, "outcome", "OUTCOME_ANSWERED, OUTCOME_BLOCKED"),
    "unknown outcome": ({"outcome": 99}, "outcome", "not 99"),
    "negative cost": ({"cost_micros": -1}, "cost_micros", "0 to 1000000000000000, not -1"),
    "cost without currency": ({"currency": ""}, "currency", "must be given with a cost"),
    "no such currency": ({"currency": "dollars"}, "currency", "ISO 4217"),
    "absurd tokens": ({"usage": types_pb2.TokenUsage(prompt_tokens=2**63)}, "usage.prompt_tokens", "0 to"),
    "absurd completion": ({"usage": types_pb2.TokenUsage(completion_tokens=2**60)}, "usage.completion_tokens", "0 to"),
    "absurd duration": ({"duration_us": 2**63}, "duration_us", "0 to"),
    "absurd first token": ({"time_to_first_token_us": 2**64 - 1}, "time_to_first_token_us", "0 to"),
    "trace id of another form": ({"trace_id": "xyz"}, "trace_id", "32 hex digits"),
    "long model": ({"model": "m" * 257}, "model", "257 characters; at most 256"),
    "long user": ({"user": "u" * 300}, "user", "300 characters"),
    "long error": ({"error_message": "e" * 10_001}, "error_message", "at most 10000"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_a_wrong_record_is_refused_with_its_path_and_nothing_of_the_batch_is_stored(
    case: str, sqlite_monitor: Monitor
) -> None:
    fields, field, message = WRONG[case]
    good = make_interaction("good")
    wrong = make_interaction(**({"request_id": "wrong"} | fields))

    with pytest.raises(InvalidArgument, match=message.replace("*", r"\*")) as refused:
        await sqlite_monitor.record(good, good, wrong)

    assert refused.value.field == f"interactions[2].{field}"
    assert await sqlite_monitor.record(good) == (1, 0)


async def test_a_record_that_is_too_long_is_refused_as_too_large(sqlite_monitor: Monitor) -> None:
    longest = sqlite_monitor.settings.max_record_bytes
    with pytest.raises(TooLarge, match=f"at most {longest} are kept") as refused:
        await sqlite_monitor.record(make_interaction("a", output="x" * longest))
    assert refused.value.field == "interactions[0]"


async def test_storing_a_record_is_a_span_in_the_trace_of_its_request(sqlite_settings: Settings) -> None:
    spans = InMemorySpanExporter()
    telemetry = await asyncio.to_thread(Telemetry, "monitor", exporter=spans)
    trace_id = "ab" * 16
    async with testing.served(create_app(sqlite_settings, telemetry)) as channel:
        request = monitor_pb2.RecordInteractionsRequest(
            interactions=[
                make_interaction("a", traceparent=f"00-{trace_id}-{'1' * 16}-01"),
                make_interaction("b", traceparent="garbled"),
                make_interaction("c"),
            ]
        )
        stub = monitor_pb2_grpc.MonitorServiceStub(channel)
        assert (await channels.unary(stub.RecordInteractions, request, timeout_seconds=5)).stored == 3
    await asyncio.to_thread(telemetry.close)
    found = {f"{span.context.trace_id:032x}": span.name for span in spans.get_finished_spans() if span.context}
    assert found[trace_id] == "record interaction"


async def test_recording_needs_a_trusted_transport_and_no_caller(sqlite_settings: Settings) -> None:
    app = create_app(sqlite_settings, Telemetry("monitor"))
    server = common_settings.Server(address="127.0.0.1:0", drain_seconds=0.1)
    request = monitor_pb2.RecordInteractionsRequest(interactions=[make_interaction("a")])
    async with runtime.running(app, server) as address, channels.connect(address) as channel:
        stub = monitor_pb2_grpc.MonitorServiceStub(channel)
        with pytest.raises(Unauthenticated, match="mTLS or a unix socket"):
            await channels.unary(stub.RecordInteractions, request, timeout_seconds=5)


async def test_every_other_method_needs_a_signed_caller(sqlite_monitor: Monitor) -> None:
    for call in (sqlite_monitor.query, sqlite_monitor.usage, sqlite_monitor.feedback, sqlite_monitor.export):
        with pytest.raises(Unauthenticated, match="no caller context"):
            await call()


def test_a_monitor_without_the_gateways_key_does_not_start(sqlite_settings: Settings) -> None:
    keyless = sqlite_settings.model_copy(update={"context_public_key": None})
    with pytest.raises(InvalidArgument, match="GENAIFACTORY_CONTEXT_PUBLIC_KEY"):
        create_app(keyless, Telemetry("monitor"))
