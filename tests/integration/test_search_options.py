"""What a client asks of the search reaches it, through every service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels
from genaifactory_common.errors import InvalidArgument
from genaifactory_local import testing
from genaifactory_local.platform import Options
from genaifactory_local.testing import Platform

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUESTION = "How many days of leave do employees have?"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """With the same policy of two years, for all tests."""
    folder = tmp_path_factory.mktemp("search-options")
    async with testing.running(folder / "state", options=Options(http_port=0, grpc_port=0)) as found:
        async with _client(found) as client:
            for year, days in (("2025", 12), ("2026", 16)):
                text = f"# Annual leave\n\nEmployees have {days} days of annual leave.\n"
                where = {"metadata": f'{{"year": "{year}"}}'}
                stored = await client.put(f"/documents/leave-{year}.md", params=where, content=text.encode())
                assert stored.status_code == 201, stored.text
        yield found


def _client(platform: Platform) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {platform.key}"}
    return httpx.AsyncClient(base_url=platform.openai_url, headers=headers, timeout=60, trust_env=False)


async def _ask(platform: Platform, options: object, *, question: str = QUESTION, model: str = "rag") -> httpx.Response:
    body = {"model": model, "search_options": options, "messages": [{"role": "user", "content": question}]}
    async with _client(platform) as client:
        return await client.post("/chat/completions", json=body)


def _text(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


async def test_a_filter_by_metadata_bounds_what_an_answer_rests_on(platform: Platform) -> None:
    for year, days, other in (("2025", "12 days", "16 days"), ("2026", "16 days", "12 days")):
        for question in (QUESTION, "Summarise the annual leave"):
            text = _text(await _ask(platform, {"filter": {"year": year}}, question=question))
            assert days in text
            assert other not in text
    assert "days" not in _text(await _ask(platform, {"filter": {"year": "2024"}}))
    without: tuple[object, ...] = ({"filter": {}}, {}, None)
    for options in without:
        assert "days" in _text(await _ask(platform, options))


async def test_a_filter_counts_over_grpc_too(platform: Platform) -> None:
    request = gateway_pb2.ChatRequest(
        model="rag",
        messages=[types_pb2.Message(role=types_pb2.ROLE_USER, content=QUESTION)],
        search_options=types_pb2.SearchOptions(filter={"year": "2025"}),
    )
    async with channels.connect(platform.endpoints.grpc_address, api_key=platform.key) as channel:
        stub = gateway_pb2_grpc.GatewayServiceStub(channel)
        answer = [event async for event in channels.stream(stub.Chat, request, timeout_seconds=60)]
        assert "12 days" in "".join(event.delta for event in answer)
        request.search_options.filter[""] = "x"
        with pytest.raises(InvalidArgument) as raised:
            await anext(channels.stream(stub.Chat, request, timeout_seconds=60))
    assert raised.value.field == "search_options.filter"


@pytest.mark.parametrize(
    ("options", "model", "field", "says"),
    [
        ({"filter": {str(n): "x" for n in range(33)}}, "rag", "search_options.filter", "at most 32 entries"),
        ({"filter": {"year": 2026}}, "rag", "search_options.filter.year", "string"),
        ({"filter": "year"}, "rag", "search_options.filter", "dictionary"),
        ({"filter": {"year": "2026"}}, "chat", "search_options", "searches no documents"),
    ],
)
async def test_wrong_options_are_refused_by_name(
    platform: Platform, options: Any, model: str, field: str, says: str
) -> None:
    response = await _ask(platform, options, model=model)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, field)
    assert says in error["message"]


async def test_an_unknown_option_is_named_as_one_without_effect(platform: Platform) -> None:
    response = await _ask(platform, {"filters": {"year": "2026"}})
    assert response.headers["x-genaifactory-ignored"] == "search_options.filters"
