"""Administrators of two tenants at the gateway of a whole platform: each acts for their own tenant and no other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest

from genaifactory.gateway.v1 import gateway_pb2 as pb
from genaifactory.gateway.v1 import gateway_pb2_grpc
from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_common import channels, errors, specs
from genaifactory_common.errors import FactoryError, Reason
from genaifactory_local import testing
from genaifactory_local.platform import Options
from genaifactory_local.testing import Platform

BETA_KEY = "gf-administrator-of-beta"
BETA = f"""
  - name: beta
    keys: [{{id: beta-admin, sha256: {specs.hash_key(BETA_KEY)}, role: admin}}]
roles:
"""


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    """With the tenants dev and beta, and nothing stored."""
    factory = tmp_path / "factory.yaml"
    text = await asyncio.to_thread(testing.DEFAULT_FACTORY.read_text, encoding="utf-8")
    await asyncio.to_thread(factory.write_text, text.replace("\nroles:\n", BETA, 1))
    async with testing.running(tmp_path / "state", factory=factory, options=Options(http_port=0, grpc_port=0)) as found:
        yield found


async def _asked(platform: Platform, key: str, name: str, request: Any) -> list[Any]:
    async with channels.connect(platform.endpoints.grpc_address, api_key=key) as channel:
        call = getattr(gateway_pb2_grpc.GatewayServiceStub(channel), name)(request, timeout=60)
        try:
            return [each async for each in call] if hasattr(call, "__aiter__") else [await call]
        except grpc.aio.AioRpcError as error:
            raise errors.from_rpc(error) from None


def _client(platform: Platform, key: str) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.AsyncClient(base_url=platform.openai_url, headers=headers, timeout=60, trust_env=False)


async def _exported(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await client.get("/interactions")).text.splitlines()]


async def test_an_administrator_acts_for_their_own_tenant_alone(platform: Platform) -> None:
    async with _client(platform, platform.key) as dev, _client(platform, BETA_KEY) as beta:
        stored = await beta.put("/documents/secret/plan.md", content=b"# Plan\n\nThe plan of beta is to buy dev.")
        assert (stored.status_code, stored.json()["outcome"]) == (201, "added")
        again = await beta.put("/documents/secret/plan.md", content=b"# Plan\n\nThe plan of beta is to buy dev.")
        assert (again.status_code, again.json()["outcome"]) == (200, "unchanged")
        assert (await beta.get("/documents")).json()["total"] == 1
        assert (await dev.get("/documents")).json()["total"] == 0
        assert (await dev.get("/documents/secret/plan.md")).status_code == 404
        assert (await dev.delete("/documents/secret/plan.md")).status_code == 404

        body = {
            "model": "chat",
            "conversation_id": "c1",
            "messages": [{"role": "user", "content": "Hello, who are you?"}],
        }
        answered = await dev.post("/chat/completions", json=body)
        assert answered.status_code == 200, answered.text
        async with asyncio.timeout(20):
            while not (records := await _exported(dev)):
                await asyncio.sleep(0.1)  # the record is stored a moment after the answer
        assert [each["request_id"] for each in records] == [answered.headers["x-request-id"]]
        assert await _exported(beta) == []
        for name, request in (
            ("QueryInteractions", pb.QueryInteractionsRequest(filter=monitor_pb2.InteractionFilter(tenant="dev"))),
            ("ExportInteractions", pb.ExportInteractionsRequest(filter=monitor_pb2.InteractionFilter(tenant="dev"))),
        ):
            with pytest.raises(FactoryError) as refused:
                await _asked(platform, BETA_KEY, name, request)
            assert refused.value.reason is Reason.PERMISSION_DENIED

        assert (await beta.delete("/conversations/c1")).json()["deleted"] is False
        counted = await _asked(platform, BETA_KEY, "CountConversations", pb.CountConversationsRequest())
        assert [(each.tenant, each.conversations) for each in counted[0].counts] == [("dev", 1)]
        assert (await dev.delete("/conversations/c1")).json()["deleted"] is True


async def test_indexes_are_built_and_swapped_and_what_is_stored_is_counted(platform: Platform) -> None:
    async with _client(platform, BETA_KEY) as beta:
        assert (await beta.put("/documents/a.md", content=b"# A\n\nSixteen days.")).status_code == 201
    steps = await _asked(platform, platform.key, "BuildIndex", pb.BuildIndexRequest())
    assert steps[-1].state == pb.INDEX_STATE_READY
    request = pb.SwapIndexRequest(index_version=steps[-1].index_version)
    (swapped,) = await _asked(platform, platform.key, "SwapIndex", request)
    (listed,) = await _asked(platform, BETA_KEY, "ListIndexes", pb.ListIndexesRequest())
    assert {each.version: each.state for each in listed.indexes} == {
        swapped.active_version: pb.INDEX_STATE_ACTIVE,
        swapped.previous_version: pb.INDEX_STATE_PREVIOUS,
    }
    assert {each.documents for each in listed.indexes} == {1}
    (counted,) = await _asked(platform, platform.key, "CountDocuments", pb.CountDocumentsRequest())
    assert [(each.tenant, each.knowledge_base, each.documents) for each in counted.counts] == [("beta", "documents", 1)]


async def test_loading_an_adapter_calls_the_model_server_which_has_no_engine_for_it(platform: Platform) -> None:
    with pytest.raises(FactoryError) as refused:
        await _asked(platform, platform.key, "LoadAdapter", pb.LoadAdapterRequest(name="a", source_uri="/nowhere"))
    assert refused.value.reason is Reason.UNIMPLEMENTED
