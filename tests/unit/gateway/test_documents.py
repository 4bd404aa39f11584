"""Documents over HTTP and gRPC: permissions, the caller's identity, ids, and errors."""

from __future__ import annotations

from collections.abc import Awaitable
from urllib.parse import quote

import grpc.aio
import pytest

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import bounds, errors, telemetry
from genaifactory_common.errors import FactoryError, Reason, Unavailable
from tests.unit.gateway.conftest import Gateway

EDITOR = "sk-acme-editor"
NAMES = ("handbook/leave.md", "handbook/Nghỉ phép? #1 50%.md", "other/a b.md")


@pytest.fixture(autouse=True)
def stored(gateway: Gateway) -> None:
    for number, name in enumerate(NAMES):
        document = types_pb2.Document(
            document_id=name,
            title=f"T{number}",
            size_bytes=10,
            passages=2,
            source="/home/an",
            metadata={"year": "2026"},
        )
        document.store_time.FromJsonString("2026-11-28T06:00:00Z")
        gateway.retriever.documents[name] = document


def stub(gateway: Gateway) -> gateway_pb2_grpc.GatewayServiceAsyncStub:
    return gateway_pb2_grpc.GatewayServiceStub(gateway.channel)


def metadata(key: str = EDITOR) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


async def failure(call: Awaitable[object]) -> FactoryError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return errors.from_rpc(caught.value)


async def test_documents_are_listed_by_page_with_their_properties(gateway: Gateway) -> None:
    first = (await gateway.get("/v1/documents?page_size=2", key=EDITOR)).json()
    assert (first["object"], first["knowledge_base"], first["total"]) == ("list", "documents", 3)
    assert [each["id"] for each in first["data"]] == sorted(NAMES)[:2]
    assert first["data"][1] == {
        "object": "document",
        "id": "handbook/leave.md",
        "uri": "",
        "title": "T0",
        "language": "",
        "media_type": "",
        "size_bytes": 10,
        "passages": 2,
        "store_time": "2026-11-28T06:00:00Z",
        "allowed_groups": [],
        "metadata": {"year": "2026"},
        "source": "/home/an",
    }
    token = quote(first["next_page_token"])
    rest = (await gateway.get(f"/v1/documents?page_size=2&page_token={token}", key=EDITOR)).json()
    assert [each["id"] for each in rest["data"]] == ["other/a b.md"]
    assert rest["next_page_token"] is None
    some = (await gateway.get("/v1/documents?prefix=other/&knowledge_base=documents", key=EDITOR)).json()
    assert some["total"] == 1


async def test_the_retriever_gets_the_callers_identity(gateway: Gateway) -> None:
    await gateway.get("/v1/documents?source=/home/an", key=EDITOR)
    (caller,), (request,) = gateway.retriever.callers, gateway.retriever.requests
    assert (caller.tenant, caller.groups, caller.permissions) == ("acme", ("staff",), ("ingest",))
    assert request.source == "/home/an"


@pytest.mark.parametrize("name", NAMES)
async def test_a_document_of_any_name_is_shown_and_removed_by_its_encoded_path(gateway: Gateway, name: str) -> None:
    path = f"/v1/documents/{quote(name)}"
    shown = (await gateway.get(path, key=EDITOR)).json()
    assert (shown["id"], shown["knowledge_base"], shown["next_offset"]) == (name, "documents", None)
    assert shown["sections"] == [{"headings": ["Top"], "text": name, "start_offset": 0, "end_offset": len(name)}]
    removed = await gateway.delete(path, key=EDITOR)
    assert (removed.status_code, removed.json()) == (200, {"object": "document.deleted", "id": name, "deleted": True})
    assert name not in gateway.retriever.documents
    for again in (await gateway.delete(path, key=EDITOR), await gateway.get(path, key=EDITOR)):
        assert again.status_code == 404
        assert (again.json()["error"]["code"], again.json()["error"]["param"]) == ("not_found", "id")
        assert name in again.json()["error"]["message"]


def refused_by_the_retriever() -> float:
    """Calls without permission that the gateway passed on to the retriever."""
    return sum(
        sample.value
        for sample in next(iter(telemetry.RPC_REQUESTS.collect())).samples
        if sample.name.endswith("_total")
        and (sample.labels["service"], sample.labels["code"]) == ("retriever", "PERMISSION_DENIED")
    )


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("path", ["/v1/documents", "/v1/documents/handbook/leave.md"])
@pytest.mark.parametrize(("key", "status"), [(None, 401), ("sk-wrong", 401), ("sk-acme-user", 403)])
async def test_without_the_permission_documents_are_neither_shown_nor_removed(
    gateway: Gateway, method: str, path: str, key: str | None, status: int
) -> None:
    if (method, path) == ("DELETE", "/v1/documents"):
        status = 405
    before = refused_by_the_retriever()
    response = await (gateway.get if method == "GET" else gateway.delete)(path, key=key)
    assert response.status_code == status
    assert not gateway.retriever.requests
    assert refused_by_the_retriever() == before
    assert set(gateway.retriever.documents) == set(NAMES)


@pytest.mark.parametrize(
    ("query", "status", "param", "words"),
    [
        ("?knowledge_base=nope", 404, "knowledge_base", "there are: documents"),
        ("?knowledge_base=beta-only", 404, "knowledge_base", "there are: documents"),
        ("?page_size=0", 400, "page_size", "from 1 to 1000"),
        (f"?page_size={bounds.MAX_DOCUMENTS + 1}", 400, "page_size", "from 1 to 1000"),
        ("?page_size=-1", 400, "page_size", "from 1 to 1000"),
        ("?page_size=" + "9" * 5000, 400, "page_size", "from 1 to 1000"),
        ("?page_size=²", 400, "page_size", "from 1 to 1000"),
        ("?limit=3", 400, "limit", "known: knowledge_base, prefix, source, page_size, page_token"),
    ],
)
async def test_the_error_for_a_wrong_list_names_the_right_values(
    gateway: Gateway, query: str, status: int, param: str, words: str
) -> None:
    response = await gateway.get(f"/v1/documents{query}", key=EDITOR)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert words in error["message"]
    assert not gateway.retriever.requests


async def test_of_several_knowledge_bases_one_must_be_named(gateway: Gateway) -> None:
    beta_editor = gateway.source.current.model_copy(
        update={
            "roles": tuple(
                role.model_copy(update={"permissions": (*role.permissions, "ingest")})
                for role in gateway.source.current.roles
            )
        }
    )
    gateway.source.replace(beta_editor)
    response = await gateway.get("/v1/documents", key="sk-beta-user")
    assert response.status_code == 400
    assert "one of: documents, beta-only" in response.json()["error"]["message"]


async def test_grpc_lists_shows_and_removes(gateway: Gateway) -> None:
    page = await stub(gateway).ListDocuments(
        gateway_pb2.ListDocumentsRequest(prefix="handbook/", page_size=1), metadata=metadata()
    )
    assert [each.document_id for each in page.documents] == ["handbook/Nghỉ phép? #1 50%.md"]
    assert (page.total, page.knowledge_base, page.next_page_token) == (2, "documents", page.documents[0].document_id)
    shown = await stub(gateway).GetDocument(
        gateway_pb2.GetDocumentRequest(document_id="handbook/leave.md"), metadata=metadata()
    )
    assert shown.sections[0].text == "handbook/leave.md"
    request = gateway_pb2.DeleteDocumentsRequest(document_ids=["handbook/leave.md", "nope"])
    done = await stub(gateway).DeleteDocuments(request, metadata=metadata())
    assert (done.deleted, list(done.missing_ids)) == (1, ["nope"])
    error = await failure(stub(gateway).DeleteDocuments(request, metadata=metadata()))
    assert (error.reason, error.field) == (Reason.NOT_FOUND, "document_ids")


async def test_grpc_requires_the_permission_too(gateway: Gateway) -> None:
    before = refused_by_the_retriever()
    for call in (
        stub(gateway).ListDocuments(gateway_pb2.ListDocumentsRequest(), metadata=metadata("sk-acme-user")),
        stub(gateway).GetDocument(gateway_pb2.GetDocumentRequest(document_id="x"), metadata=metadata("sk-acme-user")),
        stub(gateway).DeleteDocuments(
            gateway_pb2.DeleteDocumentsRequest(document_ids=["x"]), metadata=metadata("sk-acme-user")
        ),
    ):
        assert (await failure(call)).reason is Reason.PERMISSION_DENIED
    assert not gateway.retriever.requests
    assert refused_by_the_retriever() == before


async def test_a_retriever_that_is_away_is_a_503(gateway: Gateway) -> None:
    gateway.retriever.error = Unavailable("It restarts.", retry_after_seconds=1)
    response = await gateway.get("/v1/documents", key=EDITOR)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"


async def test_the_retriever_gets_the_knowledge_base_that_was_checked(gateway: Gateway) -> None:
    """The knowledge base that the gateway checked is the one that the retriever uses."""
    gateway_stub, name = stub(gateway), NAMES[0]
    await gateway_stub.ListDocuments(gateway_pb2.ListDocumentsRequest(prefix="other/"), metadata=metadata())
    await gateway_stub.GetDocument(gateway_pb2.GetDocumentRequest(document_id=name), metadata=metadata())
    await gateway_stub.DeleteDocuments(gateway_pb2.DeleteDocumentsRequest(document_ids=[name]), metadata=metadata())
    assert [each.knowledge_base for each in gateway.retriever.requests] == ["documents"] * 3
    assert gateway.retriever.requests[0].prefix == "other/"
