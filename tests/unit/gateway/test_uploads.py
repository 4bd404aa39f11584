"""Uploads of documents: streamed to the retriever, within bounds, and cancelled with the client."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterable
from urllib.parse import quote

import grpc.aio
import httpx
import pytest

from genaifactory.gateway.v1 import gateway_pb2 as pb
from genaifactory.gateway.v1 import gateway_pb2_grpc
from genaifactory_common import errors
from genaifactory_common.errors import FactoryError, Reason
from genaifactory_gateway.settings import Http, Transfers
from tests.unit.gateway.conftest import Gateway, Start, at_rest, eventually

EDITOR, ADMIN = "sk-acme-editor", "sk-acme-admin"
OPEN = pb.IngestRequest(open=pb.IngestOpen())
MIB = 1 << 20


def document(name: str, *data: bytes, size: int | None = None) -> list[pb.IngestRequest]:
    """A document's messages."""
    total = sum(map(len, data)) if size is None else size
    header = pb.DocumentHeader(document_id=name, uri=name, size_bytes=total, metadata={"year": "2026"})
    return [pb.IngestRequest(document=header), *(pb.IngestRequest(data=each) for each in data)]


def begun(
    gateway: Gateway, requests: Iterable[pb.IngestRequest] | AsyncIterator[pb.IngestRequest]
) -> grpc.aio.StreamStreamCall[pb.IngestRequest, pb.IngestResponse]:
    """An upload."""
    stub = gateway_pb2_grpc.GatewayServiceStub(gateway.channel)
    given = requests if isinstance(requests, AsyncIterator) else iter(requests)
    return stub.Ingest(given, metadata=(("authorization", f"Bearer {EDITOR}"),), timeout=20)


async def uploaded(
    gateway: Gateway, requests: Iterable[pb.IngestRequest] | AsyncIterator[pb.IngestRequest]
) -> list[pb.IngestResponse]:
    """The results of the documents. Raises FactoryError."""
    try:
        return [response async for response in begun(gateway, requests)]
    except grpc.aio.AioRpcError as error:
        raise errors.from_rpc(error) from None


async def then_silence(*requests: pb.IngestRequest) -> AsyncIterator[pb.IngestRequest]:
    """The messages of a client that then sends nothing more, and stays connected."""
    for request in requests:
        yield request
    await asyncio.Event().wait()


async def test_documents_are_forwarded_and_their_results_returned(gateway: Gateway) -> None:
    results = await uploaded(gateway, [OPEN, *document("a.md", b"one", b"two"), *document("bad.md", b"x")])
    assert [(each.document_id, each.outcome) for each in results] == [
        ("a.md", pb.INGEST_OUTCOME_ADDED),
        ("bad.md", pb.INGEST_OUTCOME_REJECTED),
    ]
    assert gateway.retriever.uploaded == {"a.md": b"onetwo", "bad.md": b"x"}
    opened, header, _ = gateway.retriever.requests
    assert opened.knowledge_base == "documents"
    assert (header.uri, dict(header.metadata)) == ("a.md", {"year": "2026"})
    (caller,) = gateway.retriever.callers
    assert (caller.tenant, caller.key_id, caller.groups) == ("acme", "editor", ("staff",))


async def test_a_client_is_notified_of_its_admission_before_it_sends_documents(gateway: Gateway) -> None:
    call = begun(gateway, then_silence(OPEN))
    async with asyncio.timeout(10):
        await call.initial_metadata()
    assert not call.done()
    call.cancel()


@pytest.mark.parametrize(
    "first", [[], document("a.md", b"x"), [pb.IngestRequest()], [pb.IngestRequest(data=b"x")]], ids=len
)
async def test_an_upload_without_an_opening_message_is_refused(gateway: Gateway, first: list[pb.IngestRequest]) -> None:
    with pytest.raises(FactoryError) as refused:
        await uploaded(gateway, first)
    assert (refused.value.reason, refused.value.field) == (Reason.INVALID_ARGUMENT, "open")
    assert not gateway.retriever.callers


async def test_a_huge_upload_waits_for_the_retriever_and_is_not_buffered(gateway: Gateway) -> None:
    """A client can send ahead only as much as gRPC's windows hold, however large the document is."""
    gateway.retriever.uploads_read = asyncio.Event()
    taken = itertools.count()
    sent = 0

    async def pieces() -> AsyncIterator[pb.IngestRequest]:
        nonlocal sent
        yield OPEN
        yield document("huge.bin", size=512 * MIB)[0]
        for _ in range(512):
            yield pb.IngestRequest(data=bytes(MIB))
            sent = next(taken)

    call = begun(gateway, pieces())
    assert await at_rest(lambda: sent) < 32
    gateway.retriever.uploads_read.set()
    await eventually(lambda: sent > 64)
    call.cancel()
    async with asyncio.timeout(10):
        await gateway.retriever.upload_ended.wait()


async def test_an_upload_is_cancelled_with_its_client(gateway: Gateway) -> None:
    call = begun(gateway, then_silence(OPEN, *document("a.md", b"half", size=100)))
    async with asyncio.timeout(10):
        await eventually(lambda: bool(gateway.retriever.uploaded.get("a.md")))
        call.cancel()
        await gateway.retriever.upload_ended.wait()
    assert gateway.retriever.uploaded == {"a.md": b"half"}


@pytest.mark.parametrize(
    "sent", [[], [OPEN], [OPEN, *document("a.md", b"half", size=100)]], ids=["nothing", "open", "half a document"]
)
async def test_an_idle_upload_is_ended_with_an_error(start: Start, sent: list[pb.IngestRequest]) -> None:
    transfers = Transfers(idle_seconds=0.3, max_concurrent=1, max_concurrent_per_tenant=1)
    async with start(transfers=transfers) as gateway:
        async with asyncio.timeout(10):
            with pytest.raises(FactoryError, match=r"No data arrived for 0\.3 s") as ended:
                await uploaded(gateway, then_silence(*sent))
        assert ended.value.reason is Reason.REQUEST_TIMEOUT
        assert await uploaded(gateway, [OPEN, *document("b.md", b"x")])


async def test_a_client_that_waits_for_results_is_not_idle(start: Start) -> None:
    async with start(transfers=Transfers(idle_seconds=1.0)) as gateway:

        async def slowly() -> AsyncIterator[pb.IngestRequest]:
            yield OPEN
            for number in range(4):
                for request in document(f"{number}.md", b"x"):
                    yield request
                await asyncio.sleep(0.5)

        assert len(await uploaded(gateway, slowly())) == 4


async def test_an_invalid_message_within_an_upload_ends_it_with_the_reason(gateway: Gateway) -> None:
    method: grpc.aio.StreamStreamMultiCallable[bytes, bytes]
    method = gateway.channel.stream_stream("/genaifactory.gateway.v1.GatewayService/Ingest")
    good = [each.SerializeToString() for each in (OPEN, *document("a.md", b"half", size=100))]
    call = method(iter([*good, b"\xff"]), metadata=(("authorization", f"Bearer {EDITOR}"),), timeout=10)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call.read()
    error = errors.from_rpc(failed.value)
    assert (error.reason, "no protobuf message" in error.message) == (Reason.INVALID_ARGUMENT, True)


async def test_the_retrievers_reason_reaches_a_client_that_is_still_sending(gateway: Gateway) -> None:
    gateway.retriever.error = errors.OutOfSpace("The disk is full.", retry_after_seconds=3.0)

    # gRPC's client loses the reason if it still sends when the call ends, so the gateway reads on for half a second.
    sent = (pb.IngestRequest(data=bytes(MIB)) for _ in range(4))
    with pytest.raises(FactoryError) as refused:
        await uploaded(gateway, then_silence(OPEN, document("huge.bin", size=512 * MIB)[0], *sent))
    assert (refused.value.reason, refused.value.message) == (Reason.OUT_OF_SPACE, "The disk is full.")


async def put(
    gateway: Gateway, path: str, content: bytes | AsyncIterator[bytes], *, key: str | None = EDITOR, **headers: str
) -> httpx.Response:
    """A document over HTTP."""
    own = {} if key is None else {"authorization": f"Bearer {key}"}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await gateway.http.put(path, content=content, headers=own | named)


async def test_a_document_is_stored_under_its_id_by_put(gateway: Gateway) -> None:
    name = "handbook/Nghỉ phép? #1 50%.md"
    query = "?title=Leave&language=vi&source=web&allowed_groups=staff,hr&metadata=" + quote(
        json.dumps({"year": "2026"})
    )
    response = await put(
        gateway, f"/v1/documents/{quote(name)}{query}", "# Nghỉ".encode(), content_type="text/markdown; charset=utf-8"
    )
    assert response.status_code == 201
    assert response.json() == {
        "object": "document.stored",
        "id": name,
        "knowledge_base": "documents",
        "outcome": "added",
        "passages": 1,
        "index_version": "v1",
    }
    _, header = gateway.retriever.requests
    assert header == type(header)(
        document_id=name,
        uri="handbook/Nghỉ phép%3F %231 50%25.md",
        media_type="text/markdown",
        title="Leave",
        language="vi",
        source="web",
        metadata={"year": "2026"},
        allowed_groups=["staff", "hr"],
        size_bytes=8,
    )
    assert gateway.retriever.uploaded == {name: "# Nghỉ".encode()}


async def test_the_type_comes_from_the_ending_for_generic_content_types(gateway: Gateway) -> None:
    for kind in ("application/octet-stream", "application/x-www-form-urlencoded"):
        await put(gateway, "/v1/documents/a.md", b"x", content_type=kind)
        assert not gateway.retriever.requests[-1].media_type


async def test_a_rejected_document_is_an_error(gateway: Gateway) -> None:
    response = await put(gateway, "/v1/documents/bad.md", b"x")
    assert (response.status_code, response.json()["error"]["message"]) == (400, "It cannot be read.")


async def chunks() -> AsyncIterator[bytes]:
    yield b"x"


@pytest.mark.parametrize(
    ("path", "content", "headers", "status", "words"),
    [
        ("/v1/documents/a.md", b"", {}, 400, "Content-Length"),
        ("/v1/documents/a.md", chunks, {}, 400, "Content-Length"),
        ("/v1/documents/a.md", b"x" * 1001, {}, 413, "at most 1000"),
        ("/v1/documents/a.md", b"x", {"content_encoding": "gzip"}, 400, "must not be compressed"),
        ("/v1/documents/a.md?metadata=[]", b"x", {}, 400, "JSON object of texts"),
        ('/v1/documents/a.md?metadata={"a":1}', b"x", {}, 400, "JSON object of texts"),
        ("/v1/documents/a.md?metadata={", b"x", {}, 400, "JSON object of texts"),
        ("/v1/documents/a.md?tenant=beta", b"x", {}, 400, "Unknown parameter 'tenant'"),
        ("/v1/documents/a.md?knowledge_base=beta-only", b"x", {}, 404, "no knowledge base 'beta-only'"),
        ("/v1/documents", b"x", {}, 405, "GET only"),
    ],
)
async def test_the_error_for_a_wrong_put_names_the_right_values(
    start: Start,
    path: str,
    content: bytes | Callable[[], AsyncIterator[bytes]],
    headers: dict[str, str],
    status: int,
    words: str,
) -> None:
    async with start(http=Http(max_document_bytes=1000)) as gateway:
        response = await put(gateway, path, content() if callable(content) else content, **headers)
        assert (response.status_code, words in response.json()["error"]["message"]) == (status, True), response.text
        assert not gateway.retriever.uploaded


@pytest.mark.parametrize(("key", "status"), [(None, 401), ("sk-wrong", 401), ("sk-acme-user", 403)])
async def test_a_put_needs_the_permission(gateway: Gateway, key: str | None, status: int) -> None:
    assert (await put(gateway, "/v1/documents/a.md", b"x", key=key)).status_code == status
    assert not gateway.retriever.callers


async def _request(gateway: Gateway, size: int, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = gateway.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        "PUT /v1/documents/a.md HTTP/1.1\r\nhost: x\r\n"
        f"authorization: Bearer {EDITOR}\r\ncontent-length: {size}\r\n\r\n"
    )
    writer.write(head.encode() + data)
    return reader, writer


async def test_an_interrupted_put_is_cancelled_and_stores_nothing(gateway: Gateway) -> None:
    _, writer = await _request(gateway, 100, b"half")
    async with asyncio.timeout(10):
        await eventually(lambda: bool(gateway.retriever.uploaded.get("a.md")))
        writer.transport.abort()
        await gateway.retriever.upload_ended.wait()
    assert gateway.retriever.uploaded == {"a.md": b"half"}


async def test_a_stalled_put_is_a_408(start: Start) -> None:
    async with start(transfers=Transfers(idle_seconds=0.3)) as gateway:
        reader, writer = await _request(gateway, 100, b"half")
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.1 408")
        writer.close()
