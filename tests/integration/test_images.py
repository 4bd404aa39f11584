"""Images through the whole platform: from the official openai client to an OpenAI-compatible API and the record."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletion

from genaifactory.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from genaifactory_common import channels, specs
from genaifactory_common.testing import openai_upstream
from genaifactory_common.testing.images import part, png
from genaifactory_common.testing.openai_upstream import Upstream
from genaifactory_local import testing
from genaifactory_local.platform import Options
from genaifactory_local.testing import Platform

if TYPE_CHECKING:
    from openai._legacy_response import LegacyAPIResponse

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "sk-user-0123456789"
FACTORY = f"""
tenants: [{{name: dev, keys: [{{id: user, sha256: {specs.hash_key(KEY)}, role: user}}]}}]
roles:
  - {{name: user, permissions: [chat]}}
  - {{name: admin, permissions: [chat, embed, models, feedback, usage, ingest, export, operate]}}
models:
  - {{name: extractive, backend: {{type: modelserver, model: extractive}}}}
  - {{name: seeing, vision: true, backend: {{type: openai, base_url: "UPSTREAM", model: m}}}}
routes:
  - {{name: chat, task: chat, models: [extractive], policy: images}}
  - {{name: see, task: chat, models: [seeing], policy: images}}
  - {{name: guarded, task: chat, models: [seeing]}}
policies:
  - {{name: default, rules: [{{entities: [PII]}}]}}
  - {{name: images, images: allow, rules: [{{entities: [PII]}}, {{entities: [SECRET], input: block}}]}}
"""


@dataclass(frozen=True)
class World:
    """A running platform, the client, and the API behind it."""

    platform: Platform
    client: openai.AsyncOpenAI
    upstream: Upstream

    async def ask(self, *content: Any, model: str = "see", **fields: Any) -> LegacyAPIResponse[ChatCompletion]:
        """The raw response to a user's message of these parts."""
        self.upstream.requests.clear()
        messages: Any = [{"role": "user", "content": list(content)}]
        chat = self.client.chat.completions.with_raw_response
        response: LegacyAPIResponse[ChatCompletion] = await chat.create(model=model, messages=messages, **fields)
        return response

    async def export(self, request_id: str) -> dict[str, Any]:
        """The request's line of an export, once it is recorded."""
        self.platform.sign_in()
        request = monitor_pb2.ExportInteractionsRequest(filter=monitor_pb2.InteractionFilter(request_ids=[request_id]))
        async with asyncio.timeout(20), channels.connect(self.platform.endpoints.socket("monitor")) as channel:
            stub = monitor_pb2_grpc.MonitorServiceStub(channel)
            while True:
                async for piece in channels.stream(stub.ExportInteractions, request, timeout_seconds=10):
                    line: dict[str, Any] = json.loads(piece.jsonl)
                    return line
                await asyncio.sleep(0.02)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder: Path = tmp_path_factory.mktemp("images")
    factory = folder / "factory.yaml"
    options = Options(http_port=0, grpc_port=0)
    async with openai_upstream.serve([openai_upstream.answer("A red ", "square.")]) as upstream:
        await asyncio.to_thread(factory.write_text, FACTORY.replace("UPSTREAM", upstream.base_url))
        async with testing.running(folder / "state", factory=factory, options=options) as platform:
            client = await asyncio.to_thread(openai.AsyncOpenAI, base_url=platform.openai_url, api_key=KEY)
            async with client.with_options(max_retries=0, timeout=30) as unhurried:
                yield World(platform, unhurried, upstream)


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


async def test_the_model_receives_the_image_and_the_text_beside_it_masked(world: World) -> None:
    green = png(colour=b"\x00\xff\x00")
    asked = (text("I am an.nguyen@example.com. Is this"), part(detail="low"), text("like this?"), part(green))
    response = await world.ask(*asked)
    assert response.parse().choices[0].message.content == "A red square."
    assert response.headers["x-genaifactory-masked"] == "EMAIL_ADDRESS=1"
    (got,) = [message["content"] for message in world.upstream.requests[0].body["messages"]]
    masked = text("I am <EMAIL_ADDRESS>. Is this")
    assert got == [masked, part(detail="low"), text("like this?"), part(green)]


async def test_the_record_names_the_image_by_its_digest_and_no_file_of_the_platform_holds_its_bytes(
    world: World,
) -> None:
    secret_image = png(33, 31, colour=b"\x12\x34\x56")
    response = await world.ask(text("What is it? (recorded)"), part(secret_image), temperature=0)
    line = await world.export(response.headers["x-request-id"])
    (kept,) = line["input"][0]["images"]
    assert kept["digest"] == {"sha256": hashlib.sha256(secret_image).hexdigest(), "size_bytes": len(secret_image)}
    assert (kept["media_type"], kept["data"]) == ("image/png", None)
    pixels = secret_image[33:-12]
    holding = await asyncio.to_thread(_files_with, world.platform.state.folder, b"What is it? (recorded)")
    assert "monitor.sqlite" in {file.name.removesuffix("-wal") for file in holding}
    for held in (pixels, base64.b64encode(secret_image)):
        assert not await asyncio.to_thread(_files_with, world.platform.state.folder, held)


def _files_with(folder: Path, held: bytes) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and held in file.read_bytes()]


async def test_an_answer_comes_from_the_cache_for_the_same_image_only(world: World) -> None:
    for data, use in ((png(3, 3), "miss"), (png(3, 3), "hit"), (png(3, 4), "miss")):
        response = await world.ask(text("What is it? (again)"), part(data), temperature=0)
        assert response.headers["x-genaifactory-cache"] == use


async def test_a_stream_is_answered_too(world: World) -> None:
    messages: Any = [{"role": "user", "content": [part(), text("What is it? (streamed)")]}]
    stream = await world.client.chat.completions.create(model="see", messages=messages, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "A red square."


@pytest.mark.parametrize(
    ("model", "sent", "status", "field", "says"),
    [
        ("chat", part(), 400, "messages[0].content[1].image_url", "these models of this key do: see."),
        ("guarded", part(), 422, "messages[0].content[1].image_url", "cannot scan images"),
        ("see", part(url="https://example.com/a"), 400, "messages[0].content[1].image_url.url", "fetches no"),
    ],
)
async def test_an_image_that_is_not_allowed_is_an_error_and_is_sent_to_no_model(
    world: World, model: str, sent: dict[str, Any], status: int, field: str, says: str
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        await world.ask(text("What is it?"), sent, model=model)
    error = caught.value.body
    assert isinstance(error, dict)
    assert (caught.value.status_code, error["param"]) == (status, field)
    assert says in error["message"]
    assert not world.upstream.requests


async def test_the_platform_never_connects_to_an_address_that_a_client_names(world: World) -> None:
    reached: list[object] = []

    def reach(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.append(writer)
        writer.close()

    trap = await asyncio.start_server(reach, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{trap.sockets[0].getsockname()[1]}/latest/meta-data"
    async with trap:
        for url in (address, address.upper(), f"data:{address}", f"data:image/png;base64,{address}"):
            with pytest.raises(openai.BadRequestError) as caught:
                await world.ask(text("What is it?"), part(url=url))
            assert address not in str(caught.value)
    assert not reached
    assert not world.upstream.requests


async def test_a_secret_beside_an_image_is_blocked(world: World) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        await world.ask(part(), text("My key is AKIAIOSFODNN7EXAMPLE, what is this?"))
    assert caught.value.status_code == 422
    assert not world.upstream.requests
