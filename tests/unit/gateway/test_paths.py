"""Unknown paths, and the right ones that their errors suggest."""

from __future__ import annotations

import pytest

from tests.unit.gateway.conftest import Gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "did you mean /v1/chat/completions?"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/chat/completions", f"{CHAT} A client's base URL ends in /v1."),
        ("/v1/v1/chat/completions", f"{CHAT} A client's base URL ends in /v1, once."),
        ("/v1/chat/completions/", CHAT),
        ("/v1/Chat/Completions", CHAT),
        ("//v1//chat/completions", CHAT),
        ("/V1/chat/completions", CHAT),
        ("/openai/deployments/rag/chat/completions", f"{CHAT} A client's base URL ends in /v1."),
        ("/v1/chat/completion", CHAT),
        ("/embeddings", "did you mean /v1/embeddings? A client's base URL ends in /v1."),
        ("/v1/models/", "did you mean /v1/models?"),
        ("/models/rag", "did you mean /v1/models/{model}?"),
        ("/readyz/", "did you mean /readyz?"),
        ("/v1/completions", "use chat completions, at POST /v1/chat/completions."),
        ("/completions", "use chat completions, at POST /v1/chat/completions."),
        ("/v1/responses", "The Responses API is not served here; use chat completions"),
        ("/v1/responses/resp_1/input_items", "The Responses API is not served here"),
        ("/", "there are /healthz, /metrics, /readyz, /v1/batches, /v1/chat/completions, "),
        ("/v1/images/generations", "there are /healthz, "),
    ],
)
async def test_the_error_for_an_unknown_path_suggests_the_right_one(
    lasting_gateway: Gateway, path: str, says: str
) -> None:
    response = await lasting_gateway.post(path, {})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (404, "not_found")
    assert error["message"].startswith("There is no such path")
    assert says in error["message"]


async def test_an_unknown_path_is_never_repeated_in_its_error(lasting_gateway: Gateway) -> None:
    response = await lasting_gateway.get("/v1/my-secret" * 50)
    assert response.status_code == 404
    assert "secret" not in response.text
    assert len(response.json()["error"]["message"]) < 400


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/v1/models/rag", "GET"),
        ("PUT", "/healthz", "GET"),
    ],
)
async def test_the_error_for_a_wrong_method_names_the_right_one(
    lasting_gateway: Gateway, method: str, path: str, allowed: str
) -> None:
    response = await lasting_gateway.http.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)
    assert f"supports {allowed} only" in response.json()["error"]["message"]
