"""Which requests are admitted, which models a key may name, and how a new factory.yaml changes it."""

from __future__ import annotations

import asyncio
import hmac

import pytest

from genaifactory_common import specs
from genaifactory_common.errors import (
    Conflict,
    ContentBlocked,
    ContextTooLong,
    DeadlineExceeded,
    FactoryError,
    Internal,
    InvalidArgument,
    Overloaded,
    RateLimited,
    Unavailable,
    Unimplemented,
    UpstreamFailed,
)
from genaifactory_common.testing import orchestrator as script
from tests.unit.gateway.conftest import FACTORY, USER, Gateway, Start


async def test_a_key_removed_from_factory_yaml_is_refused_at_once(gateway: Gateway) -> None:
    assert (await gateway.chat()).status_code == 200
    document = gateway.source.current
    acme = document.tenants[0]
    new = specs.ApiKey(id="new", sha256=specs.hash_key("sk-new"), role="user")
    tenants = (acme.model_copy(update={"keys": (new,)}), document.tenants[1])
    gateway.source.replace(document.model_copy(update={"tenants": tenants}))
    assert (await gateway.chat()).status_code == 401
    assert (await gateway.chat("sk-new")).status_code == 200


async def test_the_list_of_models_has_those_that_the_key_may_name(gateway: Gateway) -> None:
    async def names(key: str) -> list[str]:
        return [model["id"] for model in (await gateway.get("/v1/models", key=key)).json()["data"]]

    assert await names("sk-acme-user") == ["chat", "minilm", "rag"]
    assert await names("sk-acme-chatter") == ["chat"]
    assert await names("sk-beta-user") == ["chat", "minilm", "rag", "secret-plan"]


async def test_one_model_is_returned_or_not_found_or_forbidden(gateway: Gateway) -> None:
    model = (await gateway.get("/v1/models/chat")).json()
    assert model | {"created": 0} == {
        "id": "chat",
        "object": "model",
        "created": 0,
        "owned_by": "genaifactory",
        "task": "chat",
        "vision": False,
        "description": "Talks.",
    }
    assert (await gateway.get("/v1/models/minilm")).json()["task"] == "embedding"
    assert (await gateway.get("/v1/models/org%2Fother:7b")).status_code == 404
    assert (await gateway.get("/v1/models/secret-plan")).status_code == 404
    assert (await gateway.get("/v1/models/rag", key="sk-acme-chatter")).status_code == 403


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidArgument("bad", field="messages[0].content"), 400, "invalid_request_error"),
        (ContextTooLong("long"), 400, "invalid_request_error"),
        (Conflict("busy"), 409, "invalid_request_error"),
        (ContentBlocked("blocked"), 422, "content_policy_error"),
        (RateLimited("limited", retry_after_seconds=1.5), 429, "rate_limit_error"),
        (Overloaded("full", retry_after_seconds=2), 503, "overloaded_error"),
        (Unavailable("down"), 503, "service_unavailable_error"),
        (UpstreamFailed("down"), 503, "service_unavailable_error"),
        (DeadlineExceeded("slow"), 504, "timeout_error"),
        (Unimplemented("no"), 501, "invalid_request_error"),
        (Internal("ours"), 500, "internal_error"),
    ],
    ids=lambda value: value.reason.value if isinstance(value, FactoryError) else "",
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_from_upstream_keeps_its_meaning(
    gateway: Gateway, error: FactoryError, status: int, kind: str, stream: bool
) -> None:
    gateway.orchestrator.script = [error]
    response = await gateway.chat(stream=stream)
    assert response.status_code == status
    assert response.json()["error"] == {
        "message": error.message,
        "type": kind,
        "param": error.field,
        "code": error.reason.value.lower(),
    }
    wanted = None if error.retry_after_seconds is None else "2"
    assert response.headers.get("retry-after") == wanted


async def test_a_full_gateway_refuses_at_once_and_recovers(start: Start) -> None:
    async with start(max_concurrent_requests=1) as gateway:
        go_on = asyncio.Event()
        gateway.orchestrator.script = [go_on, script.delta("a"), script.done()]
        first = asyncio.create_task(gateway.chat())
        await gateway.orchestrator.started.wait()
        refused = await gateway.chat()
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "overloaded"
        assert refused.headers["retry-after"] == "1"
        go_on.set()
        assert (await first).status_code == 200
        assert (await gateway.chat()).status_code == 200


async def test_requests_of_two_tenants_on_one_connection_stay_apart(gateway: Gateway) -> None:
    host, _, port = gateway.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = b'{"model":"chat","messages":[{"role":"user","content":"hi"}]}'
    for key in ("sk-acme-user", "sk-beta-user", "sk-acme-user"):  # all at once: HTTP pipelining
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            + f"authorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
    for _ in range(3):
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
        await reader.readexactly(int(length.partition(b":")[2]))
    writer.close()
    assert [caller.tenant for caller in gateway.orchestrator.callers] == ["acme", "beta", "acme"]
    assert len(set(gateway.orchestrator.request_ids)) == 3


async def test_the_clients_request_id_is_returned_and_not_used_as_the_records_key(gateway: Gateway) -> None:
    ids = set()
    for _ in range(2):
        response = await gateway.http.get("/healthz", headers={"x-request-id": "mine-1"})
        assert response.headers["x-client-request-id"] == "mine-1"
        ids.add(response.headers["x-request-id"])
    assert len(ids) == 2
    response = await gateway.http.get("/healthz", headers={"x-request-id": "no \t sane id"})
    assert "x-client-request-id" not in response.headers


async def test_the_whole_key_is_compared_in_constant_time(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []
    compare = hmac.compare_digest

    def noted(kept: str, shown: str) -> bool:
        compared.append((kept, shown))
        return compare(kept, shown)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    right = specs.hash_key("sk-other")
    alike = right[:32] + specs.hash_key("something else")[32:]
    async with start(factory=FACTORY.replace(specs.hash_key(USER), alike)) as gateway:
        assert (await gateway.chat("sk-other")).status_code == 401
    assert (alike, right) in compared
