"""RPCs for administrators: permissions, limits, and that no key reaches another tenant."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, get_args

import grpc.aio
import httpx
import pytest
from google.protobuf.message import Message

from genaifactory.gateway.v1 import gateway_pb2 as pb
from genaifactory.gateway.v1 import gateway_pb2_grpc
from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import errors, specs
from genaifactory_common.errors import FactoryError, Reason, UpstreamFailed
from genaifactory_gateway.settings import Transfers
from tests.unit.gateway.conftest import Gateway, Start, at_rest

USER, EDITOR, VIEWER = "sk-acme-user", "sk-acme-editor", "sk-acme-viewer"
ADMIN, BETA_ADMIN = "sk-acme-admin", "sk-beta-admin"


def metadata(key: str | None) -> tuple[tuple[str, str], ...]:
    return () if key is None else (("authorization", f"Bearer {key}"),)


async def asked(gateway: Gateway, name: str, request: Message, key: str | None = ADMIN) -> list[Any]:
    """The responses of the method, as a list also for a unary one. Raises FactoryError."""
    method = getattr(gateway_pb2_grpc.GatewayServiceStub(gateway.channel), name)
    given = iter([request]) if name == "Ingest" else request
    call = method(given, metadata=metadata(key), timeout=10)
    try:
        return [message async for message in call] if hasattr(call, "__aiter__") else [await call]
    except grpc.aio.AioRpcError as error:
        raise errors.from_rpc(error) from None


# Methods with the permissions of which they need one.
METHODS: dict[str, tuple[Any, set[str]]] = {
    "Ingest": (pb.IngestRequest(open=pb.IngestOpen(knowledge_base="documents")), {"ingest"}),
    "ListIndexes": (pb.ListIndexesRequest(knowledge_base="documents"), {"chat", "ingest"}),
    "BuildIndex": (pb.BuildIndexRequest(knowledge_base="documents"), {"operate"}),
    "SwapIndex": (pb.SwapIndexRequest(knowledge_base="documents", index_version="v2"), {"operate"}),
    "DropIndex": (pb.DropIndexRequest(knowledge_base="documents", index_version="v1"), {"operate"}),
    "QueryInteractions": (pb.QueryInteractionsRequest(), {"export"}),
    "ExportInteractions": (pb.ExportInteractionsRequest(), {"export"}),
    "RecordDriftReport": (pb.RecordDriftReportRequest(report=monitor_pb2.DriftReport(report_id="w")), {"evaluate"}),
    "GetDriftReport": (pb.GetDriftReportRequest(), {"export", "evaluate"}),
    "GetReleaseStats": (pb.GetReleaseStatsRequest(route="rag"), {"usage", "evaluate"}),
    "DeleteConversation": (pb.DeleteConversationRequest(conversation_id="c"), {"chat"}),
    "CountDocuments": (pb.CountDocumentsRequest(), {"operate"}),
    "CountConversations": (pb.CountConversationsRequest(), {"operate"}),
    "CountRequests": (pb.CountRequestsRequest(), {"operate"}),
}

# Without a model server behind them here; see tests/unit/gateway/test_adapters.py.
ALL_METHODS = METHODS | {
    "LoadAdapter": (pb.LoadAdapterRequest(name="a", source_uri="/a"), {"operate"}),
    "UnloadAdapter": (pb.UnloadAdapterRequest(name="a"), {"operate"}),
}


@pytest.mark.parametrize("name", ALL_METHODS)
async def test_a_key_without_the_permission_is_refused_before_any_call(gateway: Gateway, name: str) -> None:
    request, permissions = ALL_METHODS[name]
    document = gateway.source.current
    lacking = tuple(each for each in get_args(specs.Permission) if each not in permissions)
    roles = tuple(
        role.model_copy(update={"permissions": lacking}) if role.name == "admin" else role for role in document.roles
    )
    gateway.source.replace(document.model_copy(update={"roles": roles}))
    with pytest.raises(FactoryError) as refused:
        await asked(gateway, name, request)
    assert refused.value.reason is Reason.PERMISSION_DENIED
    for key, reason in ((None, Reason.UNAUTHENTICATED), ("sk-wrong", Reason.UNAUTHENTICATED)):
        with pytest.raises(FactoryError) as refused:
            await asked(gateway, name, request, key)
        assert refused.value.reason is reason
    assert not [*gateway.retriever.callers, *gateway.monitor.callers, *gateway.orchestrator.callers]


@pytest.mark.parametrize("name", METHODS)
async def test_a_method_with_its_permission_calls_with_the_keys_identity(gateway: Gateway, name: str) -> None:
    await asked(gateway, name, METHODS[name][0])
    callers = gateway.retriever.callers + gateway.monitor.callers + gateway.orchestrator.callers
    assert [(caller.tenant, caller.key_id) for caller in callers] == [("acme", "admin")]


@pytest.mark.parametrize("name", ALL_METHODS)
async def test_every_method_counts_in_the_tenants_limit(gateway: Gateway, name: str) -> None:
    for _ in range(3):
        assert (await gateway.chat("sk-beta-user")).status_code == 200
    with pytest.raises(FactoryError) as refused:
        await asked(gateway, name, ALL_METHODS[name][0], BETA_ADMIN)
    assert refused.value.reason is Reason.RATE_LIMITED
    assert not [*gateway.retriever.callers, *gateway.monitor.callers]


@pytest.mark.parametrize("name", ["QueryInteractions", "ExportInteractions"])
async def test_an_administrator_of_one_tenant_cannot_read_records_of_another(gateway: Gateway, name: str) -> None:
    request = type(METHODS[name][0])
    for tenant in ("beta", "*", "acme\0", "ACME"):
        with pytest.raises(FactoryError) as refused:
            await asked(gateway, name, request(filter=monitor_pb2.InteractionFilter(tenant=tenant)))
        assert (refused.value.reason, refused.value.field) == (Reason.PERMISSION_DENIED, "filter.tenant")
    assert not gateway.monitor.callers
    for tenant in ("", "acme"):
        await asked(gateway, name, request(filter=monitor_pb2.InteractionFilter(tenant=tenant, route="rag")))
    assert [(each.tenant, each.route) for each in gateway.monitor.filters] == [("acme", "rag")] * 2


async def test_verdicts_on_drift_are_read_of_the_keys_tenant_alone(gateway: Gateway) -> None:
    for tenant in ("beta", "*", "ACME"):
        with pytest.raises(FactoryError) as refused:
            await asked(gateway, "GetDriftReport", pb.GetDriftReportRequest(tenant=tenant))
        assert (refused.value.reason, refused.value.field) == (Reason.PERMISSION_DENIED, "tenant")
    assert not gateway.monitor.callers
    smuggled = pb.GetDriftReportRequest.FromString(b"\xfa\x07\x04beta")  # field 127
    smuggled.route = ""
    await asked(gateway, "GetDriftReport", smuggled)
    (sent,) = gateway.monitor.drift_requests
    assert sent.SerializeToString() == monitor_pb2.GetDriftReportRequest(tenant="acme", route="").SerializeToString()


async def test_releases_are_read_of_the_keys_tenant_and_of_all_only_with_operate(gateway: Gateway) -> None:
    for tenant in ("beta", "ACME"):
        with pytest.raises(FactoryError) as refused:
            await asked(gateway, "GetReleaseStats", pb.GetReleaseStatsRequest(route="rag", tenant=tenant))
        assert (refused.value.reason, refused.value.field) == (Reason.PERMISSION_DENIED, "tenant")
    with pytest.raises(FactoryError, match="'operate'"):
        await asked(gateway, "GetReleaseStats", pb.GetReleaseStatsRequest(route="rag", tenant="*"), "sk-acme-user")
    assert not gateway.monitor.callers
    gateway.monitor.releases = [monitor_pb2.ReleaseStats(arm="eight", requests=3)]
    for tenant in ("*", "acme", ""):
        (found,) = await asked(gateway, "GetReleaseStats", pb.GetReleaseStatsRequest(route="rag", tenant=tenant))
        assert list(found.rows) == gateway.monitor.releases
    assert [each.tenant for each in gateway.monitor.release_requests] == ["*", "acme", "acme"]


async def test_a_report_of_drift_reaches_monitor_and_comes_back(gateway: Gateway) -> None:
    report = monitor_pb2.DriftReport(report_id="w", signals=[monitor_pb2.DriftSignal(name="refused", drifted=True)])
    smuggled = monitor_pb2.DriftReport.FromString(report.SerializeToString() + b"\xfa\x07\x04evil")
    for replaced in (False, True):
        (stored,) = await asked(gateway, "RecordDriftReport", pb.RecordDriftReportRequest(report=smuggled))
        assert (stored.report, stored.replaced) == (report, replaced)
    assert gateway.monitor.drift_reports == {"w": report}
    (page,) = await asked(gateway, "GetDriftReport", pb.GetDriftReportRequest())
    assert list(page.reports) == [report]


async def test_a_tenant_smuggled_in_as_an_unknown_field_is_dropped(gateway: Gateway) -> None:
    """A field that the gateway's contract does not have must not be passed on to monitor."""
    smuggled = monitor_pb2.InteractionFilter.FromString(b"\xfa\x07\x04beta")  # field 127
    await asked(gateway, "QueryInteractions", pb.QueryInteractionsRequest(filter=smuggled))
    (sent,) = gateway.monitor.filters
    assert sent.SerializeToString() == monitor_pb2.InteractionFilter(tenant="acme").SerializeToString()


@pytest.mark.parametrize("name", ["Ingest", "ListIndexes", "BuildIndex", "SwapIndex", "DropIndex"])
async def test_a_knowledge_base_of_another_tenant_is_not_found(gateway: Gateway, name: str) -> None:
    request = type(METHODS[name][0])()
    target = request.open if name == "Ingest" else request
    target.knowledge_base = "beta-only"
    with pytest.raises(FactoryError) as refused:
        await asked(gateway, name, request)
    assert (refused.value.reason, refused.value.field) == (Reason.NOT_FOUND, "knowledge_base")
    assert not gateway.retriever.callers


async def test_indexes_are_listed_built_and_swapped(gateway: Gateway) -> None:
    (listed,) = await asked(gateway, "ListIndexes", pb.ListIndexesRequest())
    assert [(each.version, each.state) for each in listed.indexes] == [("v1", pb.INDEX_STATE_ACTIVE)]
    steps = await asked(gateway, "BuildIndex", pb.BuildIndexRequest(idempotency_key="k"))
    assert [(each.passages_done, each.state) for each in steps] == [
        (0, pb.INDEX_STATE_BUILDING),
        (2, pb.INDEX_STATE_READY),
    ]
    (swapped,) = await asked(gateway, "SwapIndex", pb.SwapIndexRequest(index_version="v2"))
    assert (swapped.active_version, swapped.previous_version) == ("v2", "v1")
    assert {each.knowledge_base for each in gateway.retriever.requests} == {"documents"}
    assert gateway.retriever.requests[1].idempotency_key == "k"


async def test_stored_data_is_counted_for_all_tenants(gateway: Gateway) -> None:
    gateway.retriever.documents["a"] = types_pb2.Document(document_id="a")
    gateway.orchestrator.conversations |= {"c", "d"}
    gateway.monitor.usage = [
        monitor_pb2.UsageRow(tenant="gone", requests=2, key_id="k"),
        monitor_pb2.UsageRow(tenant="acme", requests=1),
        monitor_pb2.UsageRow(tenant="gone", requests=3, key_id="l"),
    ]
    (documents,) = await asked(gateway, "CountDocuments", pb.CountDocumentsRequest())
    (conversations,) = await asked(gateway, "CountConversations", pb.CountConversationsRequest())
    (requests,) = await asked(gateway, "CountRequests", pb.CountRequestsRequest())
    assert [(each.tenant, each.knowledge_base, each.documents) for each in documents.counts] == [
        ("acme", "documents", 1),
        ("gone", "documents", 1),
    ]
    assert [(each.tenant, each.conversations) for each in conversations.counts] == [("gone", 2)]
    assert [(each.tenant, each.requests) for each in requests.counts] == [("acme", 1), ("gone", 5)]
    assert gateway.monitor.usage_requests[0].tenant == "*"


async def test_a_conversation_is_deleted_over_http_and_grpc(gateway: Gateway) -> None:
    gateway.orchestrator.conversations |= {"one", "two"}
    (forgotten,) = await asked(gateway, "DeleteConversation", pb.DeleteConversationRequest(conversation_id="one"), USER)
    assert forgotten.existed
    response = await gateway.delete("/v1/conversations/two")
    assert (response.status_code, response.json()) == (
        200,
        {"object": "conversation.deleted", "id": "two", "deleted": True},
    )
    assert (await gateway.delete("/v1/conversations/two")).json()["deleted"] is False
    assert {caller.key_id for caller in gateway.orchestrator.callers} == {"user"}
    wrong = await gateway.delete("/v1/conversations/a/b")
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "id")
    unknown = await gateway.delete("/v1/conversations/two?tenant=beta")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (400, "unknown_field")
    assert (await gateway.delete("/v1/conversations/two", key=VIEWER)).status_code == 403


Piece = monitor_pb2.ExportInteractionsResponse


async def test_an_export_is_json_lines_of_the_keys_tenant(gateway: Gateway) -> None:
    gateway.monitor.pieces = [Piece(jsonl=b'{"a":1}\n{"a":2}\n', count=2), Piece(jsonl=b'{"a":3}\n', count=1)]
    path = "/v1/interactions?start_time=2026-11-21T00:00:00Z&route=rag&key_id=k&model=m"
    response = await gateway.get(path, key=ADMIN)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/jsonl; charset=utf-8")
    assert response.content == b'{"a":1}\n{"a":2}\n{"a":3}\n'
    (sent,) = gateway.monitor.filters
    assert (sent.tenant, sent.route, sent.key_id, sent.model) == ("acme", "rag", "k", "m")
    assert sent.start_time.ToJsonString() == "2026-11-21T00:00:00Z"
    pieces = await asked(gateway, "ExportInteractions", pb.ExportInteractionsRequest())
    assert [(each.jsonl, each.count) for each in pieces] == [(b'{"a":1}\n{"a":2}\n', 2), (b'{"a":3}\n', 1)]


async def test_an_empty_export_is_an_empty_body(gateway: Gateway) -> None:
    response = await gateway.get("/v1/interactions", key=ADMIN)
    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize(
    ("query", "param"), [("?tenant=beta", "tenant"), ("?start_time=yesterday", "start_time"), ("?x=1", "x")]
)
async def test_a_wrong_export_names_the_parameter(gateway: Gateway, query: str, param: str) -> None:
    response = await gateway.get(f"/v1/interactions{query}", key=ADMIN)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert not gateway.monitor.callers


async def test_an_export_that_fails_before_its_first_line_is_an_error(gateway: Gateway) -> None:
    gateway.monitor.pieces = [UpstreamFailed("away", retry_after_seconds=2.0)]
    response = await gateway.get("/v1/interactions", key=ADMIN)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "upstream_failed")


async def test_an_export_that_fails_midway_is_cut_off(gateway: Gateway) -> None:
    gateway.monitor.pieces = [Piece(jsonl=b'{"a":1}\n', count=1), UpstreamFailed("away")]
    with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
        await gateway.get("/v1/interactions", key=ADMIN)


async def test_an_export_waits_for_its_reader_and_ends_with_it(gateway: Gateway) -> None:
    gateway.monitor.pieces = [Piece(jsonl=b"x" * (1 << 20), count=1)] * 64
    stub = gateway_pb2_grpc.GatewayServiceStub(gateway.channel)
    call = stub.ExportInteractions(pb.ExportInteractionsRequest(), metadata=metadata(ADMIN))
    piece = await call.read()
    assert isinstance(piece, pb.ExportInteractionsResponse)
    assert len(piece.jsonl) == 1 << 20
    assert await at_rest(lambda: gateway.monitor.sent) < 32
    call.cancel()
    async with asyncio.timeout(10):
        await gateway.monitor.export_ended.wait()


async def _held(
    gateway: Gateway, key: str
) -> grpc.aio.UnaryStreamCall[pb.ExportInteractionsRequest, pb.ExportInteractionsResponse]:
    """A running export."""
    stub = gateway_pb2_grpc.GatewayServiceStub(gateway.channel)
    call = stub.ExportInteractions(pb.ExportInteractionsRequest(), metadata=metadata(key))
    assert await call.read()
    return call


async def test_one_tenant_cannot_occupy_all_transfers(start: Start) -> None:
    async with start(transfers=Transfers(max_concurrent=3, max_concurrent_per_tenant=2)) as gateway:
        gateway.monitor.pieces = [Piece(jsonl=b"x" * (1 << 20), count=1)] * 64
        held = [await _held(gateway, ADMIN) for _ in range(2)]
        with pytest.raises(FactoryError, match="This tenant runs 2") as refused:
            await asked(gateway, "ExportInteractions", pb.ExportInteractionsRequest())
        assert (refused.value.reason, refused.value.retry_after_seconds) == (Reason.OVERLOADED, 5.0)
        held.append(await _held(gateway, BETA_ADMIN))
        with pytest.raises(FactoryError, match="as many uploads and exports as it can"):
            await asked(gateway, "ExportInteractions", pb.ExportInteractionsRequest(), BETA_ADMIN)
        for call in held:
            call.cancel()
        await _until(lambda: asked(gateway, "QueryInteractions", pb.QueryInteractionsRequest()))
        gateway.monitor.pieces = []
        await _until(lambda: asked(gateway, "ExportInteractions", pb.ExportInteractionsRequest()))


async def _until(ask: Callable[[], Awaitable[object]]) -> None:
    """Repeats the call until it is no longer refused as overloaded."""
    async with asyncio.timeout(10):
        while True:
            try:
                await ask()
            except FactoryError:
                await asyncio.sleep(0.05)
            else:
                return
