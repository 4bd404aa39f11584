"""Images over HTTP and gRPC: accepted for models with vision, refused clearly for others, reserved in limits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import errors, images, specs
from genaifactory_common.testing import orchestrator as script
from genaifactory_common.testing.images import image, part, png
from tests.unit.gateway.conftest import Gateway, Start

USER, NARROW, TIGHT = "sk-user", "sk-narrow", "sk-tight"
FACTORY = f"""
tenants:
  - name: acme
    keys:
      - {{id: user, sha256: {specs.hash_key(USER)}, role: user}}
      - {{id: narrow, sha256: {specs.hash_key(NARROW)}, role: narrow}}
  - name: tight
    limits: {{tokens_per_minute: 4000}}
    keys: [{{id: tight, sha256: {specs.hash_key(TIGHT)}, role: user}}]
roles:
  - {{name: user, permissions: [chat, models]}}
  - {{name: narrow, permissions: [chat], routes: [blind]}}
models:
  - {{name: blind, backend: {{type: modelserver, model: extractive}}}}
  - {{name: sees, vision: true, backend: {{type: openai, base_url: "http://127.0.0.1:9/v1", model: m}}}}
routes:
  - {{name: blind, task: chat, models: [blind], policy: open}}
  - {{name: sees, task: chat, models: [blind, sees], policy: open, max_output_tokens: 100}}
  - {{name: also, task: chat, models: [sees], policy: open}}
  - {{name: guarded, task: chat, models: [sees]}}
policies: [{{name: default}}, {{name: open, images: allow}}]
"""


@pytest.fixture
async def gateway(start: Start) -> AsyncIterator[Gateway]:
    async with start(factory=FACTORY) as running:
        yield running


def _asks(*content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": list(content)}]


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


async def test_text_and_images_arrive_in_their_order(gateway: Gateway) -> None:
    one, two = png(colour=b"\x00\xff\x00"), png(2, 3)
    content = [_text("Is this"), part(one, detail="low"), _text("like these?"), part(two), part(one, detail="auto")]
    response = await gateway.chat(USER, model="sees", messages=_asks(*content))
    assert response.status_code == 200
    (message,) = gateway.orchestrator.requests[0].messages
    assert message.content == "Is this\nlike these?"
    assert [(shown.data, shown.position) for shown in message.images] == [(one, 7), (two, 19), (one, 19)]
    assert [shown.detail for shown in message.images] == [types_pb2.Image.DETAIL_LOW, 0, 0]
    assert list(images.parts(message)) == ["Is this", message.images[0], "like these?", *message.images[1:]]


async def test_an_image_without_text_is_accepted(gateway: Gateway) -> None:
    assert (await gateway.chat(USER, model="sees", messages=_asks(part()))).status_code == 200
    assert gateway.orchestrator.requests[0].messages[0].images[0].data == png()


async def test_the_error_for_a_model_without_vision_names_those_with_vision(gateway: Gateway) -> None:
    response = await gateway.chat(USER, model="blind", messages=_asks(_text("What?"), part()))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "messages[0].content[1].image_url")
    # 'guarded' has vision, but its policy allows no images.
    assert error["message"].startswith("The model 'blind' accepts no images; ")
    assert error["message"].endswith("these models of this key do: also, sees.")
    assert not gateway.orchestrator.requests


async def test_the_list_of_models_shows_which_accept_images(gateway: Gateway) -> None:
    listed = (await gateway.get("/v1/models", key=USER)).json()["data"]
    assert {model["id"]: model["vision"] for model in listed} == {
        "also": True, "blind": False, "guarded": False, "sees": True,
    }  # fmt: skip
    stub = gateway_pb2_grpc.GatewayServiceStub(gateway.channel)
    answer = await stub.ListModels(gateway_pb2.ListModelsRequest(), metadata=[("authorization", f"Bearer {USER}")])
    assert [model.name for model in answer.models if model.vision] == ["also", "sees"]


async def test_the_error_names_only_models_of_the_key(gateway: Gateway) -> None:
    response = await gateway.chat(NARROW, model="blind", messages=_asks(part()))
    assert response.status_code == 400
    assert response.json()["error"]["message"].endswith("no model of this key does.")


async def test_an_upstream_error_names_the_image_by_its_path_in_the_request(gateway: Gateway) -> None:
    blocked = errors.ContentBlocked("No images.", field="messages[1].images[1]")
    gateway.orchestrator.script = [blocked]
    messages = [{"role": "system", "content": "Look."}, *_asks(part(), _text("and"), part())]
    response = await gateway.chat(USER, model="guarded", messages=messages)
    assert (response.status_code, response.json()["error"]["param"]) == (422, "messages[1].content[2].image_url")


async def test_a_large_image_is_refused_with_its_field(gateway: Gateway) -> None:
    response = await gateway.chat(USER, model="sees", messages=_asks(part(png(4096, 4097))))
    assert (response.status_code, response.json()["error"]["param"]) == (413, "messages[0].content[0].image_url.url")


async def test_tokens_of_images_are_reserved_and_settled(gateway: Gateway) -> None:
    gateway.orchestrator.script = [script.delta("Red."), script.done(prompt_tokens=90, completion_tokens=2)]
    asked = _asks(part(), part())
    first = await gateway.chat(TIGHT, model="sees", messages=asked)
    reserved = 4000 - int(first.headers["x-ratelimit-remaining-tokens"])
    assert reserved == 2 * 1445 + 4 + 100
    second = await gateway.chat(TIGHT, model="sees", messages=asked)  # the first one used 92
    assert 4000 - int(second.headers["x-ratelimit-remaining-tokens"]) == reserved + 92
    more = await gateway.chat(TIGHT, model="sees", messages=_asks(*[part()] * 3))
    assert more.status_code == 429
    assert len(gateway.orchestrator.requests) == 2


class TestGrpc:
    async def test_an_image_reaches_a_model_with_vision(self, gateway: Gateway) -> None:
        message = types_pb2.Message(role=types_pb2.ROLE_USER, images=[image()])
        assert [part.WhichOneof("part") async for part in _chat(gateway, message, model="sees")][-1] == "done"
        assert gateway.orchestrator.requests[0].messages[0] == message

    @pytest.mark.parametrize(
        ("wrong", "field", "fields"),
        [
            (image(), "messages[0].images[0]", {"model": "blind"}),
            (image(b"GIF89a", media_type="image/gif"), "messages[0].images[0].data", {}),
            (image(media_type="image/jpeg"), "messages[0].images[0].media_type", {}),
            (image(), "conversation_id", {"conversation_id": "c"}),
        ],
    )
    async def test_a_wrong_image_is_refused_with_its_field(
        self, gateway: Gateway, wrong: types_pb2.Image, field: str, fields: dict[str, str]
    ) -> None:
        message = types_pb2.Message(role=types_pb2.ROLE_USER, content="What?", images=[wrong])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [part async for part in _chat(gateway, message, **({"model": "sees"} | fields))]
        assert errors.from_rpc(caught.value).field == field
        assert not gateway.orchestrator.requests


def _chat(gateway: Gateway, message: types_pb2.Message, **fields: Any) -> Any:
    stub = gateway_pb2_grpc.GatewayServiceStub(gateway.channel)
    request = gateway_pb2.ChatRequest(messages=[message], **fields)
    return stub.Chat(request, metadata=[("authorization", f"Bearer {USER}")], timeout=10)
