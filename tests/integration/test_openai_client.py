"""The official openai client, unmodified, against the gateway alone and against the whole platform."""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam
from pydantic import SecretStr

from genaifactory.orchestrator.v1 import orchestrator_pb2
from genaifactory_common import settings, specs, testing
from genaifactory_common.errors import ContentBlocked, UpstreamFailed
from genaifactory_common.telemetry import Telemetry
from genaifactory_common.testing import orchestrator as script
from genaifactory_common.testing.feedback import FakeFeedbackStore
from genaifactory_common.testing.orchestrator import FakeOrchestrator
from genaifactory_gateway.app import Channels, create_app
from genaifactory_gateway.settings import Http, Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

USER, VIEWER, TIGHT = "sk-user-0123456789", "sk-viewer-0123456789", "sk-tight-0123456789"
BANNED = "zanzibar-protocol"

FACTORY = f"""
tenants:
  - name: dev
    keys:
      - {{id: user, sha256: {specs.hash_key(USER)}, role: user}}
      - {{id: viewer, sha256: {specs.hash_key(VIEWER)}, role: viewer}}
  - name: tight
    limits: {{requests_per_minute: 1}}
    keys: [{{id: tight, sha256: {specs.hash_key(TIGHT)}, role: user}}]
roles:
  - {{name: user, permissions: [chat, embed, models, feedback, usage]}}
  - {{name: viewer, permissions: [models]}}
  - {{name: admin, permissions: [chat, embed, models, feedback, usage, ingest, export, operate]}}
models:
  - {{name: extractive, backend: {{type: modelserver, model: extractive}}}}
  - {{name: minilm, kind: embedding, backend: {{type: modelserver, model: minilm}}}}
  - name: nobody
    backend: {{type: openai, base_url: "http://127.0.0.1:9/v1", model: nobody}}
    retry: {{attempts: 1}}
routes:
  - {{name: chat, task: chat, models: [extractive]}}
  - {{name: broken, task: chat, models: [nobody]}}
policies:
  - {{name: default, banned_terms: ["{BANNED}"]}}
"""


@dataclass(frozen=True)
class Endpoint:
    """A base URL and clients for it."""

    base_url: str
    sync_client: Callable[..., openai.OpenAI]
    async_client: Callable[..., openai.AsyncOpenAI]


def _endpoint(base_url: str) -> Endpoint:
    # One of each, made outside of the event loop: a client reads the certificates of the machine.
    sync_client = openai.OpenAI(base_url=base_url, api_key=USER, max_retries=0, timeout=30)
    async_client = openai.AsyncOpenAI(base_url=base_url, api_key=USER, max_retries=0, timeout=30)
    return Endpoint(
        base_url,
        lambda key=USER: sync_client.with_options(api_key=key),
        lambda key=USER: async_client.with_options(api_key=key),
    )


def _scripted(request: orchestrator_pb2.AnswerRequest) -> script.Script:
    if BANNED in request.messages[-1].content:
        return [script.route(), ContentBlocked("The question was blocked.")]
    if request.route == "broken":
        return [script.route(), UpstreamFailed("No model of the route answers.")]
    return [script.route(), script.delta("Tôi "), script.delta("không biết."), script.done()]


@asynccontextmanager
async def _gateway(folder: Path) -> AsyncIterator[str]:
    """The gateway over a scripted orchestrator; `folder` is not used."""
    fake = FakeOrchestrator()
    fake.script = _scripted
    store = FakeFeedbackStore()
    own = Settings(
        context_private_key=SecretStr(base64.b64encode(testing.SIGNER.private_key).decode()),
        http=Http(address="127.0.0.1:0"),
        server=settings.Server(drain_seconds=1.0),
    )
    async with (
        testing.served(fake.app(testing.VERIFIER)) as to_orchestrator,
        testing.served(store.app(testing.VERIFIER)) as to_monitor,
    ):
        # It has no documents, and checks no texts.
        to = Channels(orchestrator=to_orchestrator, monitor=to_monitor, retriever=to_monitor, safety=to_monitor)
        app = create_app(own, specs.Source(specs.parse(FACTORY)), to, Telemetry("gateway"))
        async with testing.served(app):
            yield f"http://{app.http_address()}/v1"


@asynccontextmanager
async def _platform(folder: Path) -> AsyncIterator[str]:
    """All six services."""
    from genaifactory_local import testing as local
    from genaifactory_local.platform import Options

    factory = folder / "factory.yaml"
    await asyncio.to_thread(factory.write_text, FACTORY)
    async with local.running(folder / "state", factory=factory, options=Options(http_port=0, grpc_port=0)) as platform:
        yield platform.openai_url


@pytest_asyncio.fixture(params=[_gateway, _platform], ids=["gateway", "platform"], scope="module", loop_scope="module")
async def endpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Endpoint]:
    """The gateway alone, and the whole platform."""
    async with request.param(tmp_path_factory.mktemp("platform")) as base_url:
        endpoint = await asyncio.to_thread(_endpoint, base_url)
        yield endpoint
        await asyncio.to_thread(endpoint.sync_client().close)
        await endpoint.async_client().close()


_numbers = itertools.count(1)


def _question() -> list[ChatCompletionMessageParam]:
    """A new one each time: an answer from the cache uses no tokens."""
    return [{"role": "user", "content": f"Thủ đô của Việt Nam là gì? ({next(_numbers)})"}]


def _check_stream(chunks: list[ChatCompletionChunk]) -> None:
    *content, usage = chunks
    assert content[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in content)
    assert [chunk.choices[0].finish_reason for chunk in content if chunk.choices[0].finish_reason] == ["stop"]
    assert all(chunk.usage is None for chunk in content)
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.total_tokens == usage.usage.prompt_tokens + usage.usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


async def test_the_asynchronous_client_chats(endpoint: Endpoint) -> None:
    client = endpoint.async_client()
    answer = await client.chat.completions.create(model="chat", messages=_question())
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens > 0
    stream = await client.chat.completions.create(
        model="chat", messages=_question(), stream=True, stream_options={"include_usage": True}
    )
    _check_stream([chunk async for chunk in stream])


async def test_the_synchronous_client_chats(endpoint: Endpoint) -> None:
    def chat() -> None:
        client = endpoint.sync_client()
        answer = client.chat.completions.create(model="chat", messages=_question())
        assert answer.choices[0].message.content
        stream = client.chat.completions.create(
            model="chat", messages=_question(), stream=True, stream_options={"include_usage": True}
        )
        _check_stream(list(stream))

    await asyncio.to_thread(chat)


async def test_embeddings_are_the_same_as_floats_and_as_base64(endpoint: Endpoint) -> None:
    client = endpoint.async_client()
    texts = ["Xin chào", "Hello there"]
    packed = await client.embeddings.create(model="minilm", input=texts)  # the client asks for base64
    plain = await endpoint.async_client().embeddings.create(model="minilm", input=texts, encoding_format="float")
    assert [e.index for e in packed.data] == [0, 1]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-5)
    assert packed.usage.total_tokens > 0
    synchronous = await asyncio.to_thread(
        lambda: endpoint.sync_client().embeddings.create(model="minilm", input=texts[0])
    )
    assert synchronous.data[0].embedding == pytest.approx(packed.data[0].embedding, abs=1e-5)


async def test_models_are_listed_and_retrieved(endpoint: Endpoint) -> None:
    client = endpoint.async_client()
    assert [model.id async for model in client.models.list()] == ["broken", "chat", "minilm"]
    assert (await client.models.retrieve("chat")).owned_by == "genaifactory"
    assert [m.id for m in await asyncio.to_thread(lambda: list(endpoint.sync_client().models.list()))][1] == "chat"


async def test_feedback_on_an_answer_is_accepted_by_its_id(endpoint: Endpoint) -> None:
    client = endpoint.async_client()
    answer = await client.chat.completions.create(model="chat", messages=_question())
    body = {"request_id": answer.id, "rating": "up"}
    assert (await client.post("/feedback", body=body, cast_to=dict[str, Any]))["object"] == "feedback"


WRONG: list[tuple[str, type[openai.APIStatusError], int, dict[str, Any]]] = [
    (USER, openai.BadRequestError, 400, {"model": "chat", "temperature": 9}),
    ("sk-wrong", openai.AuthenticationError, 401, {"model": "chat"}),
    (VIEWER, openai.PermissionDeniedError, 403, {"model": "chat"}),
    (USER, openai.NotFoundError, 404, {"model": "no-such-model"}),
    (USER, openai.APIStatusError, 413, {"model": "chat", "user": "x" * (5 << 20)}),
    (USER, openai.UnprocessableEntityError, 422, {"model": "chat", "messages": [{"role": "user", "content": BANNED}]}),
    (USER, openai.InternalServerError, 503, {"model": "broken"}),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("key", "kind", "status", "fields"), WRONG, ids=[str(status) for _, _, status, _ in WRONG])
async def test_an_error_raises_the_class_that_openai_raises_for_it(
    endpoint: Endpoint, key: str, kind: type[openai.APIStatusError], status: int, fields: dict[str, Any], stream: bool
) -> None:
    body: dict[str, Any] = {"messages": _question(), "stream": stream} | fields
    with pytest.raises(kind) as failed:
        await endpoint.async_client(key).chat.completions.create(**body)
    assert failed.value.status_code == status
    assert type(failed.value) is kind
    assert failed.value.request_id is not None
    with pytest.raises(kind):
        await asyncio.to_thread(lambda: endpoint.sync_client(key).chat.completions.create(**body))


async def test_a_used_up_limit_raises_rate_limit_error_with_the_time_to_wait(endpoint: Endpoint) -> None:
    client = endpoint.async_client(TIGHT)
    await client.models.list()
    for call in (
        client.chat.completions.create(model="chat", messages=_question()),
        client.embeddings.create(model="minilm", input="a"),
    ):
        with pytest.raises(openai.RateLimitError) as failed:
            await call
        assert 1 <= int(failed.value.response.headers["retry-after"]) <= 60
        assert failed.value.response.headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(openai.RateLimitError):
        await asyncio.to_thread(lambda: endpoint.sync_client(TIGHT).models.list())
