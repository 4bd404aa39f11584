"""Wrong requests and documents: the running platform reports what is wrong, where, and what is expected.

One table of requests over HTTP and gRPC, documents and uploads, each against all six real services; after it the
platform answers as before. Mistakes before a platform runs are in test_wrong_configuration.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import time
import zipfile
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pypdf
import pytest
import pytest_asyncio
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory.modelserver.v1 import modelserver_pb2, modelserver_pb2_grpc
from genaifactory.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from genaifactory.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from genaifactory.retriever.v1 import retriever_pb2, retriever_pb2_grpc
from genaifactory.safety.v1 import safety_pb2, safety_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, errors, identity, passes, specs, tokens
from genaifactory_common.testing import signed
from genaifactory_common.testing.images import image, part
from genaifactory_local import testing
from genaifactory_local.platform import Options
from genaifactory_local.testing import Platform

pytestmark = pytest.mark.asyncio(loop_scope="module")

USER, READER, NARROW, OTHER, TIGHT = (f"gf-{name}-0123456789abcdef" for name in ("user", "read", "thin", "them", "few"))
SECRET = "AKIAQ7ZK3M5XN2WB8RTD"
FACTORY = f"""
tenants:
  - name: dev
    limits: {{requests_per_minute: 100000, tokens_per_minute: 1000000000}}  # what is refused counts
    keys:
      - {{id: user, sha256: {specs.hash_key(USER)}, role: user}}
      - {{id: reader, sha256: {specs.hash_key(READER)}, role: reader}}
      - {{id: narrow, sha256: {specs.hash_key(NARROW)}, role: narrow}}
  - {{name: globex, keys: [{{id: other, sha256: {specs.hash_key(OTHER)}, role: user}}]}}
  - name: tight
    limits: {{tokens_per_minute: 100}}
    keys: [{{id: tight, sha256: {specs.hash_key(TIGHT)}, role: user}}]
roles:
  - {{name: user, permissions: [chat, embed, models, feedback, usage]}}
  - {{name: reader, permissions: [models]}}
  - {{name: narrow, permissions: [chat, embed], routes: [chat]}}
models:
  - {{name: extractive, backend: {{type: modelserver, model: extractive}}}}
  - {{name: minilm, kind: embedding, backend: {{type: modelserver, model: minilm}}}}
  - &gone
    name: gone
    backend: {{type: openai, base_url: "http://127.0.0.1:9/v1", model: gone}}
    retry: {{attempts: 1}}
  - {{<<: *gone, name: keyless, backend: {{type: openai, base_url: "http://127.0.0.1:9/v1", model: m, api_key_env: X}}}}
  - {{name: misnamed, backend: {{type: modelserver, model: no-such-model}}}}
routes:
  - {{name: chat, task: chat, models: [extractive]}}
  - {{name: rag, task: rag, models: [extractive], prompt: rag, knowledge_base: documents}}
  - {{name: strict, task: chat, models: [extractive], policy: strict}}
  - {{name: gone, task: chat, models: [gone]}}
  - {{name: keyless, task: chat, models: [keyless]}}
  - {{name: misnamed, task: chat, models: [misnamed]}}
prompts: [{{name: rag, version: 1, system: "Answer from the {{{{ passages | length }}}} passages."}}]
knowledge_bases: [{{name: documents, tenants: [dev]}}]
policies:
  - {{name: default, rules: [{{entities: [SECRET], input: block}}], banned_terms: [zanzibar-protocol]}}
  - {{name: strict, rules: [{{entities: [PII], input: block}}], max_input_characters: 100}}
"""


@dataclass(frozen=True)
class Place:
    """A running platform and clients for it."""

    platform: Platform
    http: httpx.AsyncClient
    channels: dict[str, grpc.aio.Channel]
    folder: Path


@dataclass(frozen=True)
class Refusal:
    """The error that a wrong input returns."""

    code: str
    """HTTP status and code, gRPC status and reason, or a rejected document's reason."""
    where: str | None
    """The path of what is wrong."""
    message: str


Send = Callable[[Place], Awaitable[Refusal]]
Row = tuple[Send, str, str | None, str]
"""How it is sent; the refusal's code and path; and text of its message."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    folder = tmp_path_factory.mktemp("wrong")
    factory = folder / "factory.yaml"
    await asyncio.to_thread(factory.write_text, FACTORY)
    options = Options(http_port=0, grpc_port=0)
    async with (
        testing.running(folder / "state", factory=factory, options=options) as platform,
        httpx.AsyncClient(base_url=platform.endpoints.http_url, trust_env=False, timeout=60) as http,
        contextlib.AsyncExitStack() as stack,
    ):
        await platform.ingest([testing.SAMPLE])
        addresses = {"gateway": platform.endpoints.grpc_address} | {
            name: platform.endpoints.socket(name)
            for name in ("safety", "orchestrator", "retriever", "modelserver", "monitor")
        }
        opened = {
            name: await stack.enter_async_context(channels.connect(address)) for name, address in addresses.items()
        }
        yield Place(platform, http, opened, folder)


@pytest.fixture(autouse=True)
def no_internal_error(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A client's mistake is no internal error of any service, and its secrets are in no log."""
    yield
    records = [record for phase in ("setup", "call") for record in caplog.get_records(phase)]
    assert not [record for record in records if record.exc_info]
    assert not [record for record in records if record.levelno >= logging.ERROR and "set up wrongly" not in record.msg]
    assert SECRET not in "".join(record.getMessage() for record in records)


# --- HTTP ---------------------------------------------------------------------------------------------------------


def http(
    body: object = None,
    path: str = "/v1/chat/completions",
    method: str = "POST",
    key: str | None = USER,
    **headers: str,
) -> Send:
    """A request; `body` is sent as JSON unless it is bytes."""

    async def send(place: Place) -> Refusal:
        own = {"content-type": "application/json"} if body is not None else {}
        if key is not None:
            own["authorization"] = f"Bearer {key}"
        own |= {name.replace("_", "-"): value for name, value in headers.items()}
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        response = await place.http.request(method, path, content=content, headers=own)
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-request-id"].startswith("req-")
        error = response.json()["error"]
        return Refusal(f"{response.status_code} {error['code']}", error["param"], error["message"])

    return send


def asks(text: object = "Xin chào?", key: str | None = USER, **fields: object) -> Send:
    """A chat completion."""
    return http({"model": "chat", "messages": [{"role": "user", "content": text}]} | fields, key=key)


def embeds(given: object, **fields: object) -> Send:
    return http({"model": "minilm", "input": given} | fields, "/v1/embeddings")


def judges(**fields: object) -> Send:
    return http({"request_id": f"req-{'0' * 32}"} | fields, "/v1/feedback")


def gets(path: str, key: str | None = USER) -> Send:
    return http(None, path, "GET", key)


BAD = "400 invalid_argument"
BLOCKED = "422 content_blocked"
NO_KEY = "401 unauthenticated"
NO_MODEL = "404 model_not_found"
FAILED = "503 upstream_failed"
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "look"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}


def after_a_call(result: str) -> list[dict[str, object]]:
    """A conversation whose last message is the result of a tool."""
    return [
        {"role": "user", "content": "Xin chào?"},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": result},
    ]


HTTP: dict[str, Row] = {
    "no key": (asks(key=None), NO_KEY, None, "'Authorization: Bearer <key>'"),
    "a key that is not known": (asks(key="gf-wrong"), NO_KEY, None, "not known"),
    "a key without Bearer": (http({}, key=None, authorization=USER), NO_KEY, None, "must be 'Bearer <key>'"),
    "a key for Azure": (http({}, key=None, api_key=USER), NO_KEY, None, "'Authorization: Bearer <key>'"),
    "a key that may only read": (asks(key=READER), "403 permission_denied", None, "no permission 'chat'"),
    "a route that the key may not name":
        (asks(key=NARROW, model="rag"), "403 permission_denied", "model", "'narrow' may not use the model 'rag'"),
    "a route over another tenant's knowledge": (asks(key=OTHER, model="rag"), NO_MODEL, "model", "it may use: "),
    "OpenAI's own model": (asks(model="gpt-4o"), NO_MODEL, "model", "it may use: "),
    "a model behind a route": (asks(model="extractive"), NO_MODEL, "model", "it may use: "),
    "an embedding model for a chat": (asks(model="minilm"), BAD, "model", "use it with embeddings"),
    "a route for embeddings": (embeds("a", model="chat"), BAD, "model", "use it with chat completions"),
    "a model that is not there": (gets("/v1/models/gpt-4o"), NO_MODEL, "model", "it may use: "),
    "a base_url without /v1": (http({}, "/chat/completions"), "404 not_found", None, "/v1/chat/completions"),
    "the API before chats": (http({}, "/v1/completions"), "404 not_found", None, "/v1/chat/completions"),
    "a question by GET": (gets("/v1/chat/completions"), "405 invalid_argument", None, "POST"),
    "a form": (http(b"model=chat", content_type="application/x-www-form-urlencoded"), BAD, None, "application/json"),
    "no body": (http(b""), BAD, None, "one JSON object"),
    "a body of 5 MiB": (asks("x" * (5 << 20)), "413 too_large", None, "4194304 bytes"),
    "a misspelt field of feedback": (judges(corection="7"), "400 unknown_field", "corection", "mean 'correction'?"),
    "a temperature that is too high": (asks(temperature=3), BAD, "temperature", "less than or equal to 2"),
    "an empty question": (asks(" \n"), BAD, "messages[0].content", "must not be empty"),
    "an image": (asks([part()]), BAD, "messages[0].content[0].image_url", "'chat' accepts no images"),
    "an image's address":
        (asks([part(url="https://example.com/a.png")]), BAD, "messages[0].content[0].image_url.url", "fetches no"),
    "a secret in the question": (asks(f"My key is {SECRET}."), BLOCKED, "messages[0].content", "SECRET_AWS_ACCESS_KEY"),
    "a secret in a streamed question":
        (asks(f"My key is {SECRET}.", stream=True), BLOCKED, "messages[0].content", "Remove"),
    "a secret that a tool returned": (asks(messages=after_a_call(SECRET)), BLOCKED, "messages[2].content", "Remove"),
    "a banned term": (asks("What is the Zanzibar-Protocol?"), BLOCKED, "messages[0].content", "Remove"),
    "a person's number where the policy blocks it":
        (asks("Số CCCD 001099012345", model="strict"), BLOCKED, "messages[0].content", "VN_CCCD"),
    "a question longer than its policy takes":
        (asks("a " * 51, model="strict"), "413 too_large", "messages[0].content", "100 characters"),
    "a conversation longer than the model's context":
        (asks("a " * 40_000), "400 context_too_long", "messages", "32768 words"),
    "tools for a model that calls none": (asks(tools=[TOOL]), BAD, "tools", "leave them away"),
    "a schema for a model that has none": (asks(response_format=SCHEMA), BAD, "response_format", "free text"),
    "a choice for a model that has none":
        (asks(structured_outputs={"choice": ["a"]}), BAD, "structured_outputs", "free text"),
    "probabilities of a model that has none": (asks(logprobs=True), BAD, "logprobs", "no token probabilities"),
    "two answers of a model that has one": (asks(n=2), BAD, "n", "n must be 1"),
    "a conversation id that is a path": (asks(conversation_id="../a"), BAD, "conversation_id", "pattern"),
    "more tokens than the tenant has":
        (asks(key=TIGHT, max_tokens=500), "429 rate_limited", None, "a smaller max_tokens"),
    "a model whose API is gone": (asks(model="gone"), FAILED, None, "'gone' cannot be reached"),
    "a model whose API's key is not set": (asks(model="keyless"), FAILED, None, "operator"),
    "a model that the model server does not have":
        (asks(model="misnamed"), FAILED, None, "model server does not serve"),
    "an empty text to embed": (embeds(["a", ""]), BAD, "input[1]", "must not be empty"),
    "no text to embed": (embeds([]), BAD, "input", "at least one"),
    "tokens to embed": (embeds([101, 7592, 2088, 102]), BAD, "input", "cl100k_base"),
    "more texts than a call takes": (embeds(["a"] * 2049), BAD, "input", "at most 2048"),
    "more text than a call takes": (embeds(["ab " * 10_000] * 70), "413 too_large", "input", "2000000"),
    "another size of vectors": (embeds("a", dimensions=256), BAD, "dimensions", "384"),
    "feedback on nothing": (judges(request_id="my-request", rating="up"), BAD, "request_id", "pattern"),
    "feedback that says nothing": (judges(), BAD, "rating", "must contain a rating"),
    "usage since a word": (gets("/v1/usage?start_time=yesterday"), BAD, "start_time", "2026-11-21T00:00:00Z"),
    "usage of a time that runs backwards":
        (gets("/v1/usage?start_time=2026-02-01T00:00:00Z&end_time=2026-01-01T00:00:00Z"),
         BAD, "end_time", "must be after 'start_time'"),
    "usage by a parameter that is not there":
        (gets("/v1/usage?since=7d"), "400 unknown_field", "since", "start_time, end_time"),
}  # fmt: skip


# --- gRPC ---------------------------------------------------------------------------------------------------------

STUBS: dict[str, Callable[[grpc.aio.Channel], object]] = {
    "gateway": gateway_pb2_grpc.GatewayServiceStub,
    "safety": safety_pb2_grpc.SafetyServiceStub,
    "orchestrator": orchestrator_pb2_grpc.OrchestratorServiceStub,
    "retriever": retriever_pb2_grpc.RetrieverServiceStub,
    "modelserver": modelserver_pb2_grpc.ModelServiceStub,
    "monitor": monitor_pb2_grpc.MonitorServiceStub,
}
STRANGER = tokens.Signer(bytes(32))
PERMISSIONS = ("chat", "embed", "models", "feedback", "usage", "ingest", "export")


def caller(**fields: Any) -> identity.Caller:
    named: dict[str, Any] = {
        "tenant": "dev",
        "principal": "p",
        "key_id": "k",
        "role": "tester",
        "permissions": PERMISSIONS,
    }
    return identity.Caller(**(named | fields))


def rpc(
    method: str,
    request: Message | list[Message],
    *,
    who: identity.Caller | str | None = None,
    signer: tokens.Signer | None = None,
) -> Send:
    """A call of "service.Method". who: an API key for the gateway, a caller for the services behind it; "": none.

    A list is what a client streams.
    """

    async def send(place: Place) -> Refusal:
        service, _, name = method.partition(".")
        metadata: list[tuple[str, str]] = []
        if service == "gateway" and who != "":
            metadata.append(("authorization", f"Bearer {who or USER}"))
        elif who != "":
            calling = who if isinstance(who, identity.Caller) else caller()
            token = signed(_full(service, name), calling, signer or place.platform.signer)
            metadata.append((passes.CONTEXT, token))
        call = getattr(STUBS[service](place.channels[service]), name)(
            iter(request) if isinstance(request, list) else request, timeout=30, metadata=metadata
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _end(call)
        error = errors.from_rpc(caught.value)
        return Refusal(f"{caught.value.code().name} {error.reason}", error.field, error.message)

    return send


def _full(service: str, name: str) -> str:
    return f"/genaifactory.{service}.v1.{STUBS[service].__name__.removesuffix('Stub')}/{name}"


async def _end(call: grpc.aio.UnaryUnaryCall[Message, Message] | AsyncIterable[Message]) -> None:
    if isinstance(call, grpc.aio.UnaryUnaryCall):
        await call
    else:
        async for _ in call:
            pass


def message(content: str = "Xin chào?", role: types_pb2.Role.ValueType = types_pb2.ROLE_USER) -> types_pb2.Message:
    return types_pb2.Message(role=role, content=content)


def shows() -> types_pb2.Message:
    return types_pb2.Message(role=types_pb2.ROLE_USER, content="What is it?", images=[image()])


def chats(who: str | None = None, **fields: Any) -> Send:
    return rpc(
        "gateway.Chat", gateway_pb2.ChatRequest(**({"model": "chat", "messages": [message()]} | fields)), who=who
    )


def answers(who: identity.Caller | None = None, **fields: Any) -> Send:
    named: dict[str, Any] = {"request_id": "r", "route": "chat", "messages": [message()]} | fields
    return rpc("orchestrator.Answer", orchestrator_pb2.AnswerRequest(**named), who=who)


def searches(who: identity.Caller | str | None = None, signer: tokens.Signer | None = None, **fields: Any) -> Send:
    named: dict[str, Any] = {"knowledge_base": "documents", "query": "leave"} | fields
    return rpc("retriever.Search", retriever_pb2.SearchRequest(**named), who=who, signer=signer)


def generates(**fields: Any) -> Send:
    named: dict[str, Any] = {"model": "extractive", "prompt": "a"} | fields
    return rpc("modelserver.Generate", modelserver_pb2.GenerateRequest(**named))


def checks(**fields: Any) -> Send:
    named: dict[str, Any] = {"direction": types_pb2.DIRECTION_INPUT, "text": "a", "policy": "default"} | fields
    return rpc("safety.CheckText", safety_pb2.CheckTextRequest(**named))


def queries(who: identity.Caller | None = None, **fields: Any) -> Send:
    return rpc("monitor.QueryInteractions", monitor_pb2.QueryInteractionsRequest(**fields), who=who)


def records(**fields: Any) -> Send:
    named: dict[str, Any] = {"request_id": "r", "tenant": "dev", "task": "chat", "outcome": 1} | fields
    interactions = [monitor_pb2.Interaction(**named)]
    return rpc("monitor.RecordInteractions", monitor_pb2.RecordInteractionsRequest(interactions=interactions))


def base(kind: Callable[..., Message], **fields: Any) -> Message:
    return kind(**({"knowledge_base": "documents"} | fields))


NO_CALLER = "UNAUTHENTICATED UNAUTHENTICATED"
INVALID = "INVALID_ARGUMENT INVALID_ARGUMENT"
LARGE = "INVALID_ARGUMENT TOO_LARGE"
DENIED = "PERMISSION_DENIED PERMISSION_DENIED"
MISSING = "NOT_FOUND NOT_FOUND"
UNKNOWN = "NOT_FOUND MODEL_NOT_FOUND"
OPEN = safety_pb2.CheckStreamOpen(direction=types_pb2.DIRECTION_OUTPUT, policy="default")
VISITOR, OPERATOR = caller(permissions=("chat",)), caller(permissions=("operate",))
GLOBEX = caller(tenant="globex")
FAR = Timestamp(seconds=4_000_000_000)

GRPC: dict[str, Row] = {
    "gateway: no key": (chats(""), NO_CALLER, None, "'Authorization: Bearer <key>'"),
    "gateway: a message of nobody":
        (chats(messages=[types_pb2.Message(content="a")]),
         INVALID, "messages[0].role", "must be system, user, assistant or tool"),
    "gateway: a secret":
        (chats(messages=[message(SECRET)]), "FAILED_PRECONDITION CONTENT_BLOCKED", "messages[0].content", "Remove"),
    "gateway: more than the context holds":
        (chats(messages=[message("a " * 40_000)]), "OUT_OF_RANGE CONTEXT_TOO_LONG", "messages", "32768 words"),
    "gateway: no text to embed":
        (rpc("gateway.Embed", gateway_pb2.EmbedRequest(model="minilm")), INVALID, "texts", "at least one"),
    "gateway: more text than a call takes":
        (rpc("gateway.Embed", gateway_pb2.EmbedRequest(model="minilm", texts=["ab " * 10_000] * 70)),
         LARGE, "texts", "2000000"),
    "gateway: feedback by a key that may not give it":
        (rpc("gateway.SubmitFeedback", gateway_pb2.SubmitFeedbackRequest(request_id="req-" + "0" * 32), who=NARROW),
         DENIED, None, "'feedback'"),
    "gateway: feedback that says nothing":
        (rpc("gateway.SubmitFeedback", gateway_pb2.SubmitFeedbackRequest(request_id="req-" + "0" * 32)),
         INVALID, "rating", "must contain a rating"),
    "orchestrator: an API key is no caller":
        (rpc("orchestrator.Answer", orchestrator_pb2.AnswerRequest(), who=""), NO_CALLER, None, "caller context"),
    "orchestrator: no such route": (answers(route="poetry"), UNKNOWN, "model", "poetry"),
    "gateway: a secret for a conversation's name":
        (chats(conversation_id=SECRET), "FAILED_PRECONDITION CONTENT_BLOCKED", "conversation_id", "Remove"),
    "gateway: a secret for a user":
        (chats(user=SECRET), "FAILED_PRECONDITION CONTENT_BLOCKED", "user", "Remove"),
    "gateway: an image":
        (chats(messages=[shows()]), INVALID, "messages[0].images[0]", "'chat' accepts no images"),
    "orchestrator: an image": (answers(messages=[shows()]), INVALID, "messages[0].images[0]", "accepts images"),
    "model server: an image":
        (generates(prompt=None, conversation=modelserver_pb2.Conversation(messages=[shows()])),
         INVALID, "messages[0].images[0]", "No model of this server takes images"),
    "orchestrator: no id": (answers(request_id=""), INVALID, "request_id", "1 to 128"),
    "orchestrator: another tenant's knowledge":
        (answers(GLOBEX, route="rag"), UNKNOWN, "model", "rag"),
    "orchestrator: a conversation that has no name":
        (rpc("orchestrator.DeleteConversation", orchestrator_pb2.DeleteConversationRequest()),
         INVALID, "conversation_id", "1 to 128"),
    "retriever: a caller signed by a stranger":
        (searches(signer=STRANGER), NO_CALLER, None, "a key that is not trusted"),
    "retriever: another tenant's documents":
        (searches(GLOBEX), MISSING, "knowledge_base", "documents"),
    "retriever: no such knowledge base": (searches(knowledge_base="wiki"), MISSING, "knowledge_base", "wiki"),
    "retriever: no query": (searches(query=" "), INVALID, "query", "must hold text"),
    "retriever: a thousand passages": (searches(limit=1000), INVALID, "limit", "1 to 100"),
    "retriever: a language by its name": (searches(language="Vietnamese!"), INVALID, "language", "BCP 47"),
    "retriever: no such version": (searches(index_version="v99"), MISSING, "index_version", "v99"),
    "retriever: a swap to what is not there":
        (rpc("retriever.SwapIndex", base(retriever_pb2.SwapIndexRequest, index_version="v99"), who=OPERATOR),
         MISSING, "index_version", "v99"),
    "retriever: a deletion of nothing":
        (rpc("retriever.DeleteDocuments", base(retriever_pb2.DeleteDocumentsRequest)),
         INVALID, "document_ids", "1 to 1000"),
    "retriever: a deletion by a reader":
        (rpc("retriever.DeleteDocuments", base(retriever_pb2.DeleteDocumentsRequest), who=VISITOR),
         DENIED, None, "'ingest'"),
    "modelserver: no such model": (generates(model="llama"), UNKNOWN, "model", "llama"),
    "modelserver: nothing to go on from":
        (rpc("modelserver.Generate", modelserver_pb2.GenerateRequest(model="extractive")),
         INVALID, "messages", "messages or a prompt"),
    "modelserver: an embedding model writes nothing": (generates(model="minilm"), INVALID, "model", "embeds"),
    "modelserver: an adapter without an engine for it":
        (rpc("modelserver.LoadAdapter", modelserver_pb2.LoadAdapterRequest(name="a", source_uri="/a"), who=OPERATOR),
         "UNIMPLEMENTED UNIMPLEMENTED", None, "extractive"),
    "safety: no such policy": (checks(policy="lax"), MISSING, "policy", "lax"),
    "safety: no direction": (checks(direction=0), INVALID, "direction", "DIRECTION_INPUT or DIRECTION_OUTPUT"),
    "safety: text before the opening":
        (rpc("safety.CheckStream", [safety_pb2.CheckStreamRequest(text="a")]), INVALID, "open", "must be 'open'"),
    "safety: two openings":
        (rpc("safety.CheckStream", [safety_pb2.CheckStreamRequest(open=OPEN)] * 2), INVALID, "text", "must be 'text'"),
    "monitor: a page of a thousand": (queries(page_size=1000), INVALID, "page_size", "1 to 500"),
    "monitor: a page that nobody gave": (queries(page_token="2"), INVALID, "page_token", "next_page_token"),
    "monitor: another tenant's interactions":
        (queries(filter=monitor_pb2.InteractionFilter(tenant="globex")), DENIED, "filter.tenant", "'operate'"),
    "monitor: interactions for one who may not read them":
        (queries(VISITOR), DENIED, None, "'export'"),
    "monitor: a record from the future": (records(start_time=FAR), INVALID, "interactions[0].start_time", "ahead"),
    "monitor: a record of no tenant": (records(tenant=""), INVALID, "interactions[0].tenant", "it is empty"),
}  # fmt: skip


# --- documents and uploads ----------------------------------------------------------------------------------------

WORDS = b"# Parking\n\nThe car park of the Hue office has 40 places.\n"


def document(name: str, data: bytes | Callable[[], bytes] = WORDS, **header: Any) -> Send:
    """One document in an upload of its own, between two good ones that must be stored."""

    async def send(place: Place) -> Refusal:
        held = data if isinstance(data, bytes) else await asyncio.to_thread(data)
        header.setdefault("document_id", name)
        parts = [_open(), *_document("before.md", WORDS), *_document(name, held, **header), *_document("z.md", WORDS)]
        *good, refused, last = [response async for response in _ingest(place, parts)]
        assert retriever_pb2.INGEST_OUTCOME_REJECTED not in {response.outcome for response in (*good, last)}
        assert refused.outcome == retriever_pb2.INGEST_OUTCOME_REJECTED
        assert refused.document_id == header["document_id"][:512].replace("\n", "")
        assert refused.index_version == ""
        return Refusal(refused.error_reason, None, refused.error_message)

    return send


def _open(name: str = "documents") -> retriever_pb2.IngestRequest:
    return retriever_pb2.IngestRequest(open=retriever_pb2.IngestOpen(knowledge_base=name))


def _document(uri: str, data: bytes, **header: Any) -> list[retriever_pb2.IngestRequest]:
    named: dict[str, Any] = {"document_id": uri, "uri": uri, "size_bytes": len(data)} | header
    pieces = (data[start : start + (1 << 20)] for start in range(0, len(data), 1 << 20))
    return [
        retriever_pb2.IngestRequest(document=retriever_pb2.DocumentHeader(**named)),
        *(retriever_pb2.IngestRequest(data=piece) for piece in pieces),
    ]


def _ingest(place: Place, parts: Sequence[retriever_pb2.IngestRequest]) -> AsyncIterable[retriever_pb2.IngestResponse]:
    token = signed(_full("retriever", "Ingest"), caller(), place.platform.signer)
    stub = retriever_pb2_grpc.RetrieverServiceStub(place.channels["retriever"])
    return stub.Ingest(iter(parts), timeout=60, metadata=((passes.CONTEXT, token),))


def uploads(*parts: retriever_pb2.IngestRequest, who: identity.Caller | str | None = None) -> Send:
    """An upload whose messages are wrong."""
    return rpc("retriever.Ingest", list(parts), who=who)


def a_pdf(password: str | None = None) -> bytes:
    """One empty page."""
    writer = pypdf.PdfWriter()
    writer.add_blank_page(100, 100)
    if password is not None:
        writer.encrypt(password, algorithm="RC4-128")
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def a_zip(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def a_bomb() -> bytes:
    """A DOCX of half a megabyte that unpacks to 160 MiB."""
    return a_zip("word/document.xml", b"\0" * (160 << 20))


REJECTED = ("INVALID_ARGUMENT", None)
TOO_LARGE = ("TOO_LARGE", None)

DOCUMENTS: dict[str, Row] = {
    "an empty file": (document("a.md", b""), *REJECTED, "at least 1"),
    "nothing but white space": (document("b.md", b" \n\t\n"), *REJECTED, "no readable text"),
    "a page without a text":
        (document("b.html", b"<html><script>var a = 1</script></html>"), *REJECTED, "no readable text"),
    "noise that is named .md": (document("c.md", bytes(range(256)) * 16), *REJECTED, "save it as UTF-8"),
    "a picture that is named .txt": (document("c.txt", b"\x89PNG\r\n\x1a\n" + bytes(64)), *REJECTED, "UTF-8"),
    "a text with NUL": (document("d.txt", b"a\x00b"), *REJECTED, "NUL bytes"),
    "an old Vietnamese encoding":
        (document("e.txt", "Nghỉ phép năm".encode("cp1258", "replace") + b"\xd0\xfe"), *REJECTED, "at byte"),
    "a page in a charset that is none": (document("e.html", b'<meta charset="klingon"><p>a</p>'), *REJECTED, "klingon"),
    "a broken PDF": (document("f.pdf", b"%PDF-1.7 this is no PDF"), *REJECTED, "damaged or of another type"),
    "a PDF cut short": (document("g.pdf", lambda: a_pdf()[:200]), *REJECTED, "damaged or of another type"),
    "a PDF with a password": (document("h.pdf", lambda: a_pdf("secret")), *REJECTED, "without a password"),
    "a scanned PDF": (document("i.pdf", a_pdf), *REJECTED, "run OCR"),
    "a Markdown file that is named .pdf": (document("j.pdf"), *REJECTED, "media_type"),
    "a broken DOCX": (document("k.docx", b"PK\x03\x04 and then nothing"), *REJECTED, "damaged or of another type"),
    "a ZIP that is no DOCX":
        (document("l.docx", lambda: a_zip("a.txt", b"a")), *REJECTED, "damaged or of another type"),
    "Word's old format": (document("m.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"), *REJECTED, "save it as .docx"),
    "a DOCX that unpacks without end": (document("n.docx", a_bomb), *TOO_LARGE, "134217728 bytes"),
    "a file of 33 MiB": (document("o.txt", b"word " * (33 << 18)), *TOO_LARGE, "at most 33554432"),
    "a text of two million words": (document("p.txt", b"ab " * 1_000_000), *TOO_LARGE, "more than 2000000 characters"),
    "an unknown ending": (document("q.exe"), *REJECTED, ".docx"),
    "no ending": (document("README"), *REJECTED, "set media_type"),
    "an unknown media_type": (document("r.md", media_type="application/zip"), *REJECTED, "text/markdown"),
    "a script for a uri": (document("javascript:alert(1)//t.md"), *REJECTED, "uri must be an http"),
    "no id": (document("s.md", document_id=""), *REJECTED, "document_id must name"),
    "an id of 600 characters": (document("t.md", document_id="t" * 600), *REJECTED, "at most 512"),
    "an id with a line feed": (document("u.md", document_id="u\nv"), *REJECTED, "control characters"),
    "a language by its name": (document("v.md", language="tiếng Việt"), *REJECTED, "BCP 47"),
    "metadata without a name": (document("w.md", metadata={"": "a"}), *REJECTED, "must not be empty"),
    "33 metadata": (document("x.md", metadata={str(i): "a" for i in range(33)}), *REJECTED, "at most 32"),
    "metadata of 300 characters": (document("y.md", metadata={"note": "a" * 300}), *REJECTED, "metadata[note] has 300"),
    "a group without a name": (document("y.txt", allowed_groups=[""]), *REJECTED, "must have a name"),
    "an upload for nobody": (uploads(_open(), who=""), NO_CALLER, None, "caller context"),
    "an upload by one who may not": (uploads(_open(), who=VISITOR), DENIED, None, "'ingest'"),
    "an upload to what is not there": (uploads(_open("wiki")), MISSING, "knowledge_base", "wiki"),
    "an upload to another tenant's":
        (uploads(_open(), who=GLOBEX), MISSING, "knowledge_base", "documents"),
    "an upload of nothing": (uploads(), INVALID, "open", "must be `open`"),
    "data before everything": (uploads(retriever_pb2.IngestRequest(data=b"a")), INVALID, "open", "must be `open`"),
    "data before its document":
        (uploads(_open(), retriever_pb2.IngestRequest(data=b"a")), INVALID, "data", "Expected `document`"),
    "an upload that opens twice": (uploads(_open(), _open()), INVALID, "open", "Expected `document`"),
    "more data than was said":
        (uploads(_open(), *_document("a.md", WORDS, size_bytes=5)), INVALID, "data", "longer than its size_bytes of 5"),
    "less data than was said":
        (uploads(_open(), *_document("a.md", WORDS, size_bytes=500)), INVALID, "data", "send all of its `data`"),
    "a next document instead of the rest":
        (uploads(_open(), *_document("a.md", WORDS, size_bytes=500), *_document("b.md", WORDS)),
         INVALID, "data", "send all of its `data`"),
}  # fmt: skip

TABLE = HTTP | GRPC | DOCUMENTS


@pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in TABLE.items()])
async def test_a_wrong_input_is_refused_with_its_place_and_what_is_expected(place: Place, row: Row) -> None:
    send, code, where, says = row
    begun = time.monotonic()
    refusal = await send(place)
    assert (refusal.code, refusal.where) == (code, where), refusal.message
    assert says in refusal.message
    assert SECRET not in refusal.message
    assert USER not in refusal.message
    assert "Traceback" not in refusal.message
    assert time.monotonic() - begun < 20


async def test_after_all_wrong_inputs_the_platform_answers_from_its_documents(place: Place) -> None:
    ready = await place.http.get("/readyz")
    assert ready.json()["status"] == "ready"
    body = {"model": "rag", "messages": [{"role": "user", "content": "How many days of annual leave do I have?"}]}
    response = await place.http.post(
        "/v1/chat/completions", json=body, headers={"authorization": f"Bearer {place.platform.key}"}
    )
    assert "16 days of paid annual leave" in response.json()["choices"][0]["message"]["content"]
