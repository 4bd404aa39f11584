"""Every method of the running platform: which callers it refuses and accepts, and what it calls on their behalf."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import get_args

import grpc.aio
import prometheus_client
import pytest
import pytest_asyncio
import yaml
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.orchestrator.v1 import orchestrator_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, identity, rpcs
from genaifactory_common.followed import Fixed
from genaifactory_common.passes import Issued
from genaifactory_common.specs.tenants import Permission
from genaifactory_local import testing
from genaifactory_local.platform import Options
from genaifactory_local.testing import Platform

pytestmark = pytest.mark.asyncio(loop_scope="module")

PERMISSIONS = frozenset(get_args(Permission))
METHODS = rpcs.methods()
BY_CALLER = [method for method in METHODS if not rpcs.facts(method).peer]
GUARDED = [(method, permission) for method in METHODS for permission in sorted(rpcs.facts(method).permissions)]
GATEWAY, ORCHESTRATOR = "/genaifactory.gateway.v1.GatewayService/", "/genaifactory.orchestrator.v1.OrchestratorService/"
# Permissions that a method needs besides its own, for its calls: usage of all tenants, of monitor.
BESIDES = {f"{GATEWAY}CountRequests": {"usage"}}
QUESTION = "Nhân viên được nghỉ phép bao nhiêu ngày mỗi năm?"


def key(permissions: Iterable[str]) -> str:
    """An API key whose role has exactly these permissions."""
    return "gf-" + "-".join(("key", *sorted(permissions)))


def factory() -> str:
    """The default document, with a key for each set of permissions that the tests need."""
    document = yaml.safe_load(testing.DEFAULT_FACTORY.read_text("utf-8"))
    sets = [frozenset[str](), PERMISSIONS]
    for method in METHODS:
        needed = rpcs.facts(method).permissions
        sets += [PERMISSIONS - needed, *(frozenset({permission}) | BESIDES.get(method, set()) for permission in needed)]
    for permissions in dict.fromkeys(sets):
        name = hashlib.sha256(key(permissions).encode()).hexdigest()
        document["roles"].append({"name": f"r{name[:12]}", "permissions": sorted(permissions)})
        document["tenants"][0]["keys"].append({"id": f"k{name[:12]}", "sha256": name, "role": f"r{name[:12]}"})
    return yaml.safe_dump(document, allow_unicode=True)


@dataclass(frozen=True)
class Place:
    """A running platform and a channel to each of its services, by package."""

    platform: Platform
    channels: dict[str, grpc.aio.Channel]

    async def call(self, method: str, permissions: Iterable[str] | None, request: Message | None = None) -> str:
        """The status with which a call ends. permissions: of the caller; None: without a caller."""
        contract: MethodDescriptor = Default().FindMethodByName(method.strip("/").replace("/", "."))
        message = GetMessageClass(contract.input_type)() if request is None else request
        kind = ("unary", "stream")[contract.client_streaming] + "_" + ("unary", "stream")[contract.server_streaming]
        channel = self.channels[contract.containing_service.file.package]
        stub = getattr(channel, kind)(method, request_serializer=type(message).SerializeToString)
        given = iter([message]) if contract.client_streaming else message
        call = stub(given, timeout=60, metadata=self._metadata(method, permissions))
        try:
            if contract.server_streaming:
                async for _ in call:
                    pass
            else:
                await call
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        return "OK"

    def _metadata(self, method: str, permissions: Iterable[str] | None) -> list[tuple[str, str]]:
        if permissions is None:
            return []
        if method.startswith(GATEWAY):
            return [("authorization", f"Bearer {key(permissions)}")]
        caller = identity.Caller("dev", "p", "k", "tester", tuple(permissions))
        return list(Issued(Fixed(self.platform.signer)).metadata(caller, method, 60))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    folder = tmp_path_factory.mktemp("permissions")
    path = folder / "factory.yaml"
    await asyncio.to_thread(path.write_text, factory(), "utf-8")
    options = Options(http_port=0, grpc_port=0)
    async with testing.running(folder / "state", factory=path, options=options) as platform, AsyncExitStack() as stack:
        await platform.ingest([testing.SAMPLE])
        opened = {}
        for name in ("gateway", "safety", "orchestrator", "retriever", "modelserver", "monitor"):
            address = platform.endpoints.grpc_address if name == "gateway" else platform.endpoints.socket(name)
            opened[f"genaifactory.{name}.v1"] = await stack.enter_async_context(channels.connect(address))
        yield Place(platform, opened)


@pytest.mark.parametrize("method", BY_CALLER)
async def test_a_call_without_a_caller_is_refused(place: Place, method: str) -> None:
    assert (await place.call(method, None)).startswith("UNAUTHENTICATED: ")


@pytest.mark.parametrize("method", [method for method in METHODS if rpcs.facts(method).permissions])
async def test_a_role_with_every_permission_but_the_methods_own_is_refused(place: Place, method: str) -> None:
    outcome = await place.call(method, PERMISSIONS - rpcs.facts(method).permissions)
    assert outcome.startswith("PERMISSION_DENIED: The role '")
    assert " has no permission " in outcome


@pytest.mark.parametrize(("method", "permission"), GUARDED)
async def test_a_role_with_the_methods_permission_alone_may_call_it(place: Place, method: str, permission: str) -> None:
    outcome = await place.call(method, {permission} | BESIDES.get(method, set()))
    assert not outcome.startswith(("PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED", "INTERNAL", "UNKNOWN"))


@pytest.mark.parametrize("method", [method for method in METHODS if not rpcs.facts(method).permissions])
async def test_a_method_without_permissions_may_be_called_by_a_role_without_any(place: Place, method: str) -> None:
    outcome = await place.call(method, None if rpcs.facts(method).peer else ())
    assert not outcome.startswith(("PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED", "INTERNAL", "UNKNOWN"))


def messages() -> list[types_pb2.Message]:
    return [types_pb2.Message(role=types_pb2.ROLE_USER, content=QUESTION)]


# Requests with which a method makes every call of its contract: guarded, answered from documents and generated.
REQUESTS: dict[str, Callable[[], Message]] = {
    f"{GATEWAY}Chat": lambda: gateway_pb2.ChatRequest(model="rag", messages=messages(), fresh=True),
    f"{GATEWAY}Embed": lambda: gateway_pb2.EmbedRequest(model="minilm", texts=["phép"]),
    f"{GATEWAY}SubmitFeedback": lambda: gateway_pb2.SubmitFeedbackRequest(
        request_id=f"req-{'0' * 32}", rating=gateway_pb2.RATING_UP
    ),
    f"{GATEWAY}DeleteConversation": lambda: gateway_pb2.DeleteConversationRequest(conversation_id="none"),
    f"{GATEWAY}SwapIndex": lambda: gateway_pb2.SwapIndexRequest(index_version="v1"),
    f"{GATEWAY}DropIndex": lambda: gateway_pb2.DropIndexRequest(index_version="v99"),
    f"{GATEWAY}Ingest": lambda: gateway_pb2.IngestRequest(open=gateway_pb2.IngestOpen(knowledge_base="documents")),
    f"{GATEWAY}DeleteDocuments": lambda: gateway_pb2.DeleteDocumentsRequest(document_ids=["none"]),
    f"{GATEWAY}GetDocument": lambda: gateway_pb2.GetDocumentRequest(document_id="none"),
    f"{GATEWAY}RecordDriftReport": lambda: gateway_pb2.RecordDriftReportRequest(report=monitor_pb2.DriftReport()),
    f"{GATEWAY}GetReleaseStats": lambda: gateway_pb2.GetReleaseStatsRequest(route="rag"),
    f"{GATEWAY}CheckTexts": lambda: gateway_pb2.CheckTextsRequest(
        texts=["phép"], policy="default", direction=types_pb2.DIRECTION_INPUT
    ),
    f"{ORCHESTRATOR}Answer": lambda: orchestrator_pb2.AnswerRequest(
        request_id="req-1", route="rag", messages=messages(), fresh=True
    ),
    f"{ORCHESTRATOR}Embed": lambda: orchestrator_pb2.EmbedRequest(request_id="req-2", model="minilm", texts=["phép"]),
    f"{ORCHESTRATOR}DeleteConversation": lambda: orchestrator_pb2.DeleteConversationRequest(conversation_id="none"),
}


def served() -> dict[str, float]:
    """Calls that all services of this process have served so far, by method."""
    found: dict[str, float] = {}
    for metric in prometheus_client.REGISTRY.collect():
        for sample in metric.samples:
            if sample.name == "genaifactory_rpc_requests_total":
                method = "/" + sample.labels["method"]
                found[method] = found.get(method, 0) + sample.value
    return found


async def idle() -> None:
    """Waits until no call runs; calls of the platform itself may begin afterwards."""
    async with asyncio.timeout(30):
        while True:
            metrics = await asyncio.to_thread(lambda: list(prometheus_client.REGISTRY.collect()))
            running = [s.value for m in metrics for s in m.samples if s.name == "genaifactory_rpc_running"]
            if not any(running):
                return
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("method", METHODS)
async def test_a_method_calls_what_its_contract_lists_and_nothing_else(place: Place, method: str) -> None:
    await idle()
    before = await asyncio.to_thread(served)
    request = REQUESTS[method]() if method in REQUESTS else None
    await place.call(method, None if rpcs.facts(method).peer else PERMISSIONS, request)
    await idle()
    after = await asyncio.to_thread(served)
    called = {name for name, count in after.items() if count > before.get(name, 0)}
    assert method in called
    granted = {name for names in rpcs.granted(method).values() for name in names}
    assert {name for name in called if not rpcs.facts(name).peer} - {method} == granted
