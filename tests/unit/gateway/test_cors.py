"""CORS: preflights and responses for pages of other origins, by configuration; none by default."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from genaifactory_common import specs
from tests.unit.gateway.conftest import FACTORY, Gateway, Start

APP = "https://app.example.com"
CHAT = "/v1/chat/completions"
CORS = "access-control-"


def _factory(*origins: str) -> str:
    return f"{FACTORY}\ncors: {{allowed_origins: {list(origins)}, max_age_seconds: 77}}\n"


@pytest.fixture
async def open_gateway(start: Start) -> AsyncIterator[Gateway]:
    """A gateway for pages of two origins."""
    async with start(factory=_factory(APP, "http://localhost:3000")) as running:
        yield running


def _about(response: httpx.Response) -> dict[str, str]:
    return {name.removeprefix(CORS): value for name, value in response.headers.items() if name.startswith(CORS)}


async def _preflight(gateway: Gateway, origin: str, *, path: str = CHAT, method: str = "POST") -> httpx.Response:
    headers = {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
    }
    return await gateway.http.request(
        "OPTIONS", path, headers={name.encode(): value.encode("latin-1") for name, value in headers.items()}
    )


async def test_a_listed_page_may_send_requests_and_read_every_header(open_gateway: Gateway) -> None:
    response = await _preflight(open_gateway, APP)
    assert (response.status_code, response.content) == (204, b"")
    assert "content-length" not in response.headers
    assert _about(response) == {
        "allow-origin": APP,
        "allow-methods": "POST",
        "allow-headers": "authorization, *",
        "max-age": "77",
        "expose-headers": "*",
    }
    assert response.headers["vary"] == "origin"
    for stream in (False, True):
        body = {"model": "chat", "messages": [{"role": "user", "content": "?"}], "stream": stream, "foo": 1}
        answer = await open_gateway.post(CHAT, body, headers={"origin": APP})
        assert answer.status_code == 200
        assert _about(answer) == {"allow-origin": APP, "expose-headers": "*"}
        assert answer.headers["x-genaifactory-ignored"] == "foo"


@pytest.mark.parametrize(
    ("path", "key", "status"), [(CHAT, "sk-wrong", 401), (CHAT, None, 401), ("/v1/nope", None, 404)]
)
async def test_a_page_can_read_its_errors(open_gateway: Gateway, path: str, key: str | None, status: int) -> None:
    response = await open_gateway.post(path, {}, key=key, headers={"origin": APP})
    assert response.status_code == status
    assert _about(response)["allow-origin"] == APP


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example.com",
        "http://app.example.com",
        "https://app.example.com:8443",
        "https://app.example.com.evil.com",
        "https://APP.example.com",
        "null",
        "",
        "*",
        APP + "\u00e9",
    ],
)
async def test_a_page_that_is_not_listed_gets_no_cors_headers(open_gateway: Gateway, origin: str) -> None:
    response = await _preflight(open_gateway, origin)
    assert response.status_code == 403
    assert "cors.allowed_origins" in response.json()["error"]["message"]
    assert _about(response) == {}
    answer = await open_gateway.post(CHAT, {}, headers={"origin": origin})
    assert _about(answer) == {}
    assert answer.headers["vary"] == "origin"


async def test_no_origin_is_allowed_by_default(gateway: Gateway) -> None:
    response = await _preflight(gateway, APP)
    assert (response.status_code, _about(response)) == (403, {})
    answer = await gateway.post(CHAT, {}, headers={"origin": APP})
    assert (_about(answer), "vary" in answer.headers) == ({}, False)


async def test_the_wildcard_origin_never_allows_credentials(start: Start) -> None:
    async with start(factory=_factory("*")) as gateway:
        for origin in (APP, "null"):
            response = await _preflight(gateway, origin)
            assert response.status_code == 204
            assert _about(response)["allow-origin"] == "*"
            assert "allow-credentials" not in _about(response)


async def test_probes_have_no_cors_headers_and_a_plain_options_is_no_preflight(open_gateway: Gateway) -> None:
    assert (await _preflight(open_gateway, APP, path="/metrics", method="GET")).status_code == 405
    assert _about(await open_gateway.http.get("/metrics", headers={"origin": APP})) == {}
    assert (await open_gateway.http.request("OPTIONS", CHAT, headers={"origin": APP})).status_code == 405
    assert (await _preflight(open_gateway, APP, path="/v1/nope")).status_code == 404


async def test_a_change_of_the_file_is_in_force_at_once(open_gateway: Gateway) -> None:
    open_gateway.source.replace(specs.parse(_factory("https://other.example.com")))
    assert (await _preflight(open_gateway, APP)).status_code == 403
    assert (await _preflight(open_gateway, "https://other.example.com")).status_code == 204


@pytest.mark.parametrize(
    "origin",
    ["app.example.com", "https://app.example.com/", "https://APP.example.com", "https://*.example.com", "null",
     "https://a b", "https://app.example.com:0", "ftp://app.example.com", "https://", ""],
)  # fmt: skip
def test_an_impossible_origin_is_refused_in_the_configuration(origin: str) -> None:
    with pytest.raises(specs.InvalidConfiguration, match=r"cors\.allowed_origins\[0\]"):
        specs.parse(_factory(origin))


@pytest.mark.parametrize("origin", ["*", "https://a", "http://localhost:3000", "http://127.0.0.1:80", "http://[::1]:9"])
def test_a_valid_origin_is_accepted(origin: str) -> None:
    assert specs.parse(_factory(origin)).cors.allowed_origins == (origin,)
