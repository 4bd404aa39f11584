"""Files and batches over HTTP, over a real monitor: whose they are, what is refused, how lines are answered."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import SecretStr

from genaifactory.monitor.v1 import batches_pb2
from genaifactory.orchestrator.v1 import orchestrator_pb2
from genaifactory_common import batch_lines, specs, testing
from genaifactory_common import settings as common_settings
from genaifactory_common.backoff import Backoff
from genaifactory_common.errors import (
    ContentBlocked,
    DeadlineExceeded,
    Overloaded,
    TooLarge,
    Unavailable,
    UpstreamFailed,
)
from genaifactory_common.telemetry import Telemetry
from genaifactory_common.testing import orchestrator as script
from genaifactory_common.testing.orchestrator import FakeOrchestrator
from genaifactory_gateway.app import Channels, create_app
from genaifactory_gateway.batches import requests
from genaifactory_gateway.batches.store import BatchStore
from genaifactory_gateway.batches.worker import RELEASED
from genaifactory_gateway.settings import BatchWorker, Http, Settings, Transfers
from genaifactory_monitor.app import create_app as create_monitor
from genaifactory_monitor.settings import Batches as Bounds
from genaifactory_monitor.settings import Settings as MonitorSettings
from tests.unit.gateway.conftest import BETA, CHATTER, COLLEAGUE, EDITOR, FACTORY, USER, VIEWER, eventually

ENDED = ("completed", "failed", "expired", "cancelled")
WORKER = BatchWorker(poll_seconds=0.05, lease_seconds=0.5)


@dataclass
class Place:
    """A running gateway over a real monitor and a scripted orchestrator."""

    http: httpx.AsyncClient
    orchestrator: FakeOrchestrator
    source: specs.Source

    async def request(self, method: str, path: str, key: str = USER, **more: Any) -> httpx.Response:
        return await self.http.request(method, path, headers={"authorization": f"Bearer {key}"}, **more)

    async def upload(self, content: bytes, key: str = USER, **fields: str) -> str:
        files = {"file": ("in.jsonl", content, "application/jsonl")}
        response = await self.request("POST", "/v1/files", key, data={"purpose": "batch"} | fields, files=files)
        assert response.status_code == 200, response.text
        return str(response.json()["id"])

    async def begin(self, lines: Sequence[object], key: str = USER, **fields: Any) -> dict[str, Any]:
        """A batch over a file of these lines."""
        content = b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)
        body = {"endpoint": batch_lines.CHAT, "completion_window": "24h", **fields}
        body["input_file_id"] = await self.upload(content, key)
        response = await self.request("POST", "/v1/batches", key, json=body)
        assert response.status_code == 200, response.text
        begun: dict[str, Any] = response.json()
        return begun

    async def batch(self, batch_id: str, key: str = USER) -> dict[str, Any]:
        found: dict[str, Any] = (await self.request("GET", f"/v1/batches/{batch_id}", key)).json()
        return found

    async def ended(self, batch_id: str, key: str = USER) -> dict[str, Any]:
        async with asyncio.timeout(30):
            while True:
                found = await self.batch(batch_id, key)
                if found["status"] in ENDED:
                    return found
                await asyncio.sleep(0.02)

    async def results(self, file_id: str | None, key: str = USER) -> dict[str, Any]:
        """The lines of a file by custom_id."""
        assert file_id is not None
        response = await self.request("GET", f"/v1/files/{file_id}/content", key)
        found = [json.loads(line) for line in response.text.splitlines()]
        assert len(found) == len({line["custom_id"] for line in found})
        return {line["custom_id"]: line for line in found}


@asynccontextmanager
async def running(
    folder: Path,
    worker: BatchWorker = WORKER,
    transfers: Transfers | None = None,
    telemetry: Telemetry | None = None,
    **bounds: Any,
) -> AsyncIterator[Place]:
    of_monitor = MonitorSettings(
        data_dir=folder / "monitor",
        context_public_key=testing.SIGNER.public_key,
        batches=Bounds(**{"upkeep_seconds": 0.05, **bounds}),
    )
    settings = Settings(
        context_private_key=SecretStr(base64.b64encode(testing.SIGNER.private_key).decode()),
        http=Http(address="127.0.0.1:0"),
        server=common_settings.Server(drain_seconds=1.0),
        batch_worker=worker,
        transfers=transfers or Transfers(),
    )
    orchestrator, source = FakeOrchestrator(), specs.Source(specs.parse(FACTORY))
    async with (
        testing.served(orchestrator.app(testing.VERIFIER)) as to_orchestrator,
        testing.served(create_monitor(of_monitor, Telemetry("monitor"))) as to_monitor,
    ):
        to = Channels(orchestrator=to_orchestrator, monitor=to_monitor, retriever=to_monitor, safety=to_monitor)
        app = create_app(settings, source, to, telemetry or Telemetry("gateway"))
        async with (
            testing.served(app),
            httpx.AsyncClient(base_url=f"http://{app.http_address()}", verify=False, timeout=20) as client,
        ):
            yield Place(client, orchestrator, source)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with running(tmp_path) as found:
        yield found


def line(custom_id: str, text: str = "Xin chào?", **fields: Any) -> dict[str, Any]:
    """A line with a question."""
    body = {"model": "chat", "messages": [{"role": "user", "content": text}], **fields}
    return {"custom_id": custom_id, "method": "POST", "url": batch_lines.CHAT, "body": body}


def changed(before: str, after: str) -> specs.Factory:
    """The document of these tests with another text."""
    assert before in FACTORY
    return specs.parse(FACTORY.replace(before, after))


async def test_a_file_is_stored_listed_read_and_erased(place: Place) -> None:
    content = "".join(f'{{"câu": {i}}}\n' for i in range(100_000)).encode()
    file_id = await place.upload(content, **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "7200"})
    found = (await place.request("GET", f"/v1/files/{file_id}")).json()
    assert (found["bytes"], found["filename"], found["purpose"]) == (len(content), "in.jsonl", "batch")
    assert found["expires_at"] - found["created_at"] == 7200
    listed = (await place.request("GET", "/v1/files?purpose=batch&limit=10000&order=asc")).json()
    assert [file["id"] for file in listed["data"]] == [file_id]
    assert (await place.request("GET", f"/v1/files/{file_id}/content")).content == content
    assert (await place.request("DELETE", f"/v1/files/{file_id}")).json()["deleted"] is True
    assert (await place.request("GET", f"/v1/files/{file_id}")).status_code == 404


async def test_a_client_may_send_the_file_before_the_fields(place: Place) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{}\n\r\n'
    body += b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x--\r\n'
    headers = {"authorization": f"Bearer {USER}", "content-type": 'multipart/form-data; boundary="x"'}
    created = await place.http.post("/v1/files", content=body, headers=headers)
    assert created.json()["bytes"] == 3


PART = b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
FILE = PART % (b"file", b'; filename="a"', b"{}")
PURPOSE = PART % (b"purpose", b"", b"batch")
FORMS: list[tuple[bytes, str]] = [
    (b"no form", "no multipart form"),
    (FILE + PURPOSE, "ends before its last boundary"),
    (PURPOSE + b"--x--\r\n", "'file' is missing"),
    (FILE + b"--x--\r\n", "'purpose' must be 'batch'"),
    (FILE + PART % (b"purpose", b"", b"vision") + b"--x--\r\n", "'purpose' must be 'batch'"),
    (FILE + FILE + PURPOSE + b"--x--\r\n", "must have one 'file'"),
    (PURPOSE + PART % (b"other", b"", b"1") + FILE + b"--x--\r\n", "Unknown field 'other'"),
    (PART % (b"purpose", b'; filename="p"', b"batch") + FILE + b"--x--\r\n", "Unknown field 'purpose'"),
    (PART % (b"purpose", b"", b"b" * 2000) + FILE + b"--x--\r\n", "longer than 1024 bytes"),
    (PURPOSE * 20 + FILE + b"--x--\r\n", "more than 16 parts"),
    (b"--x\r\nContent-Type: text/plain\r\n\r\nx\r\n--x--\r\n", "no name in its header"),
    (PURPOSE + PART % (b"file", b'; filename="a"', b"") + b"--x--\r\n", "The file is empty"),
    (PURPOSE + PART % (b"expires_after[seconds]", b"", b"9") + FILE + b"--x--\r\n", "must be 3600 to 2592000"),
    (PURPOSE + PART % (b"expires_after[seconds]", b"", b"soon") + FILE + b"--x--\r\n", "must be a whole number"),
]


async def test_a_wrong_form_is_refused_with_what_is_wrong_and_leaves_no_file(place: Place) -> None:
    for body, message in FORMS:
        headers = {"authorization": f"Bearer {USER}", "content-type": "multipart/form-data; boundary=x"}
        refused = await place.http.post("/v1/files", content=body, headers=headers)
        assert refused.status_code == 400, message
        assert message in refused.json()["error"]["message"]
    for content_type in ("application/json", "multipart/form-data", f"multipart/form-data; boundary={'x' * 300}"):
        headers = {"authorization": f"Bearer {USER}", "content-type": content_type}
        assert (await place.http.post("/v1/files", content=FILE, headers=headers)).status_code == 400
    assert (await place.request("GET", "/v1/files")).json()["data"] == []


async def test_a_file_beyond_the_bound_is_refused_while_it_arrives(tmp_path: Path) -> None:
    async with running(tmp_path, max_file_bytes=3 << 20) as place:
        sent = 0

        async def body() -> AsyncIterator[bytes]:
            nonlocal sent
            yield PURPOSE + b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            while sent < 40 << 20:
                yield b"x" * (1 << 20)
                sent += 1 << 20
                await asyncio.sleep(0)

        headers = {"authorization": f"Bearer {USER}", "content-type": "multipart/form-data; boundary=x"}
        refused = await place.http.post("/v1/files", content=body(), headers=headers)
        assert refused.status_code == 413
        assert "at most 3145728 bytes" in refused.json()["error"]["message"]


async def test_a_form_that_goes_on_after_its_end_is_refused(place: Place) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield PURPOSE + FILE + b"--x--\r\n"
        for _ in range(1000):
            yield b"x" * 1000
            await asyncio.sleep(0)

    headers = {"authorization": f"Bearer {USER}", "content-type": "multipart/form-data; boundary=x"}
    refused = await place.http.post("/v1/files", content=body(), headers=headers)
    assert refused.status_code == 400
    assert "more was sent" in refused.json()["error"]["message"]


async def test_an_upload_that_stops_is_ended(tmp_path: Path) -> None:
    async with running(tmp_path, transfers=Transfers(idle_seconds=0.2)) as place:

        async def body() -> AsyncIterator[bytes]:
            yield PURPOSE
            await asyncio.sleep(5)
            yield b""

        headers = {"authorization": f"Bearer {USER}", "content-type": "multipart/form-data; boundary=x"}
        assert (await place.http.post("/v1/files", content=body(), headers=headers)).status_code == 408


async def test_an_upload_that_never_ends_is_ended_and_leaves_its_place_to_others(tmp_path: Path) -> None:
    transfers = Transfers(timeout_seconds=1.0, max_concurrent_per_tenant=1)
    async with running(tmp_path, transfers=transfers) as place:
        others: list[str] = []

        async def body() -> AsyncIterator[bytes]:
            yield PURPOSE + b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            for _ in range(5):
                yield b"x"
                await asyncio.sleep(0.05)
            await asyncio.sleep(1.5)
            others.append(await place.upload(b"{}\n"))
            yield b""

        headers = {"authorization": f"Bearer {USER}", "content-type": "multipart/form-data; boundary=x"}
        ended = await place.http.post("/v1/files", content=body(), headers=headers)
        assert ended.status_code == 408
        assert "within 1 s" in ended.json()["error"]["message"]
        listed = (await place.request("GET", "/v1/files")).json()["data"]
        assert [file["id"] for file in listed] == others


async def test_an_answer_that_is_too_long_for_a_line_is_an_error_that_was_paid_for(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_lines, "MAX_RESULT_BYTES", 1500)
    place.orchestrator.script = lambda request: [
        script.delta("x" * (2000 if request.messages[-1].content == "long" else 1)),
        script.done(),
    ]
    batch = await place.ended((await place.begin([line("a", "long"), line("b")]))["id"])
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    assert list(await place.results(batch["output_file_id"])) == ["b"]
    error = (await place.results(batch["error_file_id"]))["a"]["response"]
    assert (error["status_code"], error["body"]["error"]["code"]) == (413, "too_large")


async def test_a_batch_is_answered_as_http_would_answer_each_line(place: Place) -> None:
    def answer(request: orchestrator_pb2.AnswerRequest) -> script.Script:
        if request.messages[-1].content == "blocked":
            return [script.route(), ContentBlocked("The question was blocked.")]
        return [script.delta("Vâng"), script.done()]

    place.orchestrator.script = answer
    begun = await place.begin([line("a"), b"\n", line("b", "blocked"), line("c")], metadata={"night": "1"})
    assert (begun["status"], begun["object"], begun["output_file_id"]) == ("validating", "batch", None)
    batch = await place.ended(begun["id"])
    assert (batch["status"], batch["metadata"], batch["model"]) == ("completed", {"night": "1"}, "chat")
    assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert batch["usage"]["total_tokens"] > 0
    answers = await place.results(batch["output_file_id"])
    assert list(answers) == ["a", "c"]
    response = answers["a"]["response"]
    assert (answers["a"]["error"], response["status_code"]) == (None, 200)
    assert response["body"]["choices"][0]["message"]["content"] == "Vâng"
    assert response["body"]["id"] == response["request_id"].replace("req-", "chatcmpl-")
    errors = await place.results(batch["error_file_id"])
    assert errors["b"]["response"]["status_code"] == 422
    assert errors["b"]["response"]["body"]["error"]["code"] == "content_blocked"
    # As the key that made it, with its groups.
    assert {(caller.tenant, caller.key_id, caller.groups) for caller in place.orchestrator.callers} == {
        ("acme", "user", ("staff",))
    }


async def test_each_line_is_a_trace_that_names_its_request_and_looks_for_work_are_none(tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    traced = await asyncio.to_thread(Telemetry, "gateway", exporter=exporter)
    async with running(tmp_path, telemetry=traced) as place:
        batch = await place.ended((await place.begin([line("a"), line("b")]))["id"])
        answers = await place.results(batch["output_file_id"])
    await asyncio.to_thread(traced.close)
    spans = [span for span in exporter.get_finished_spans() if span.name == "batch line"]
    assert {(span.attributes or {})["genaifactory.request_id"] for span in spans} == {
        each["response"]["request_id"] for each in answers.values()
    }
    assert [span.parent for span in spans] == [None, None]
    assert len({span.context.trace_id for span in spans if span.context}) == 2


async def test_embeddings_are_answered(place: Place) -> None:
    body = {"model": "minilm", "input": ["một", "hai"]}
    lines = [{"custom_id": "a", "method": "POST", "url": batch_lines.EMBEDDINGS, "body": body}]
    batch = await place.ended((await place.begin(lines, endpoint=batch_lines.EMBEDDINGS))["id"])
    response = (await place.results(batch["output_file_id"]))["a"]["response"]
    assert len(response["body"]["data"]) == 2


async def test_another_key_and_another_tenant_find_neither_files_nor_batches(place: Place) -> None:
    batch = await place.ended((await place.begin([line("a")]))["id"])
    files = (batch["input_file_id"], batch["output_file_id"])
    place.source.replace(changed("requests_per_minute: 3,", "requests_per_minute: 300,"))
    for stranger in (COLLEAGUE, BETA):
        attempts = [
            *(("GET", f"/v1/files/{each}{end}") for each in files for end in ("", "/content")),
            *(("DELETE", f"/v1/files/{each}") for each in files),
            ("GET", f"/v1/batches/{batch['id']}"),
            ("POST", f"/v1/batches/{batch['id']}/cancel"),
        ]
        for method, path in attempts:
            assert (await place.request(method, path, stranger)).status_code == 404, path
    body = {"input_file_id": files[0], "endpoint": batch_lines.CHAT, "completion_window": "24h"}
    assert (await place.request("POST", "/v1/batches", COLLEAGUE, json=body)).status_code == 404
    for path in ("/v1/files", "/v1/batches"):
        assert (await place.request("GET", path, COLLEAGUE)).json()["data"] == []
    assert (await place.request("GET", f"/v1/files/{files[1]}")).status_code == 200


async def test_a_key_without_the_endpoints_permission_gets_no_batch(place: Place) -> None:
    for key in (VIEWER, EDITOR):
        assert (await place.request("GET", "/v1/files", key)).status_code == 403
        assert (await place.request("POST", "/v1/batches", key, json={})).status_code == 403
    place.source.replace(changed("permissions: [models]", "permissions: [embed]"))
    body = {"input_file_id": "file-0", "endpoint": batch_lines.CHAT, "completion_window": "24h"}
    refused = await place.request("POST", "/v1/batches", VIEWER, json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")


LINES: list[tuple[list[object], list[tuple[int | None, str, str | None]]]] = [
    ([b"{no json\n", line("b")], [(1, "invalid_argument", None)]),
    ([line("a"), line("a")], [(2, "duplicate_custom_id", "custom_id")]),
    ([line("a"), line("b", model="rag")], [(2, "mismatched_model", "body.model")]),
    ([line("a") | {"method": "GET"}], [(1, "invalid_argument", "method")]),
    ([line("a") | {"url": "/v1/embeddings"}], [(1, "invalid_argument", "url")]),
    ([line("a") | {"id": 1}], [(1, "unknown_field", "id")]),
    ([line("a", stream=True)], [(1, "invalid_argument", "body.stream")]),
    ([line("a", temperature=9)], [(1, "invalid_argument", "body.temperature")]),
    ([line("a", max_tokens=5, max_completion_tokens=6)], [(1, "invalid_argument", "body.max_completion_tokens")]),
    (
        [line("a"), line("b", messages=[]), line("", "x")],
        [(2, "invalid_argument", "body.messages"), (3, "invalid_argument", "custom_id")],
    ),
    ([line("a", seed=10**30)], [(1, "invalid_argument", "body.seed")]),
    ([b"\n \n"], [(None, "empty_file", "input_file_id")]),
    ([b"x" * ((4 << 20) + 1)], [(None, "too_large", "line")]),
    ([b"\n" * 100_000], [(None, "too_large", "input_file_id")]),
]


async def test_a_batch_with_wrong_lines_fails_with_each_of_them_and_answers_none(place: Place) -> None:
    for lines, expected in LINES:
        batch = await place.ended((await place.begin(lines))["id"])
        assert batch["status"] == "failed"
        assert batch["failed_at"] is not None
        found = [(error["line"], error["code"], error["param"]) for error in batch["errors"]["data"]]
        assert found == expected
    assert place.orchestrator.callers == []


async def test_a_file_with_more_requests_than_monitor_stores_fails_with_that(tmp_path: Path) -> None:
    async with running(tmp_path, max_lines=2) as place:
        batch = await place.ended((await place.begin([line("a"), line("b"), line("c")]))["id"])
        (error,) = batch["errors"]["data"]
        assert (batch["status"], error["code"]) == ("failed", "invalid_argument")
        assert error["message"] == "A batch may have at most 2 requests."
        assert (await place.ended((await place.begin([line("a"), line("b")]))["id"]))["status"] == "completed"


async def test_lines_that_are_longer_as_they_are_stored_than_as_they_were_sent_are_all_stored(place: Place) -> None:
    numbers = b",".join([b"1e15"] * 90_000)  # 0.5 MB; as JSON that is written here, 1.7 MB
    lines = [json.dumps(line(str(i), x=["here"])).encode().replace(b'"here"', numbers) + b"\n" for i in range(12)]
    batch = await place.ended((await place.begin(lines))["id"])
    assert batch["errors"] is None
    assert batch["request_counts"] == {"total": 12, "completed": 12, "failed": 0}


@pytest.mark.parametrize("end", [b"", b"\n"])
async def test_a_file_has_as_many_lines_as_the_bound_and_no_more(end: bytes) -> None:
    async def content(count: int) -> AsyncIterator[bytes]:
        yield b"\n".join([b"a"] * count) + end

    found = [number async for number, _ in requests.lines(content(batch_lines.MAX_LINES))]
    assert found[-1] == len(found) == batch_lines.MAX_LINES
    with pytest.raises(TooLarge, match="more than 50000 lines"):
        _ = [number async for number, _ in requests.lines(content(batch_lines.MAX_LINES + 1))]


def test_a_body_that_would_be_longer_than_a_line_is_refused() -> None:
    bias = b",".join(b'"%d":1e15' % i for i in range(300_000))
    body = b'{"model":"chat","messages":[{"role":"user","content":"a"}],"logit_bias":{%s}}' % bias
    text = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":%s}' % body
    assert len(text) <= batch_lines.MAX_BODY_BYTES + 200_000
    with pytest.raises(TooLarge, match="'body' has more than 4194304 bytes as JSON") as refused:
        requests.parse(text, batch_lines.CHAT)
    assert refused.value.field == "body"


async def test_a_fault_of_the_platform_in_a_check_fails_its_batch_and_not_the_worker(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("genaifactory_gateway.batches.requests.parse", lambda line, endpoint: {}[endpoint])
        batch = await place.ended((await place.begin([line("a")]))["id"])
    assert [error["code"] for error in batch["errors"]["data"]] == ["internal"]
    assert (await place.ended((await place.begin([line("a")]))["id"]))["status"] == "completed"


async def test_a_batch_names_at_most_a_hundred_wrong_lines(place: Place) -> None:
    batch = await place.ended((await place.begin([b"{\n"] * 250))["id"])
    assert len(batch["errors"]["data"]) == 100


async def test_a_wrong_batch_is_refused(place: Place) -> None:
    file_id = await place.upload(b"{}\n")
    right = {"input_file_id": file_id, "endpoint": batch_lines.CHAT, "completion_window": "24h"}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"completion_window": "1h"}, "completion_window"),
        ({"endpoint": "/v1/completions"}, "endpoint"),
        ({"max_cost": -1}, "max_cost"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 60}}, "output_expires_after.seconds"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 2**32}}, "output_expires_after.seconds"),
    ]
    for fields, param in wrong:
        refused = await place.request("POST", "/v1/batches", json=right | fields)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    for name in ("file-0", "file-\0"):
        refused = await place.request("POST", "/v1/batches", json=right | {"input_file_id": name})
        assert refused.status_code in (400, 404)
        assert refused.json()["error"]["param"] == "input_file_id"
    for path in ("/v1/files?after=%00", "/v1/files?purpose=%00", "/v1/batches?after=%00", "/v1/files/%00"):
        assert (await place.request("GET", path)).status_code in (400, 404)


async def test_a_line_is_repeated_after_failures_and_fails_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = WORKER.model_copy(update={"max_attempts": 3})
    monkeypatch.setattr("genaifactory_gateway.batches.worker._LINE_BACKOFF", Backoff(0.05, 0.05))
    async with running(tmp_path, worker) as place:
        asked: dict[str, list[str]] = {}

        def answer(request: orchestrator_pb2.AnswerRequest) -> script.Script:
            text = request.messages[-1].content
            asked.setdefault(text, []).append(request.request_id)
            if text == "never" or len(asked[text]) < 3:
                return [UpstreamFailed("No model of the route answers.")]
            return [script.delta("ok"), script.done()]

        place.orchestrator.script = answer
        batch = await place.ended((await place.begin([line("a", "third"), line("b", "never")]))["id"])
        assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
        assert {text: len(ids) for text, ids in asked.items()} == {"third": 3, "never": 3}
        ids = [each for found in asked.values() for each in found]
        assert len(set(ids)) == 6  # each attempt has a record of its own
        error = (await place.results(batch["error_file_id"]))["b"]["response"]
        assert (error["status_code"], error["request_id"]) == (503, asked["never"][-1])


@pytest.mark.parametrize("lost", [batches_pb2.ClaimLinesRequest, batches_pb2.ReleaseLineRequest])
async def test_a_line_is_answered_although_what_leased_it_or_gave_it_back_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: type[Any]
) -> None:
    call, failed = BatchStore.call, list[Any]()

    async def unlucky(self: BatchStore, request: Any) -> Any:
        if failed or not isinstance(request, lost):
            return await call(self, request)
        if isinstance(request, batches_pb2.ReleaseLineRequest):
            failed.append(request)
            raise Unavailable("Monitor is gone.")
        response = await call(self, request)
        if response.lines:  # monitor has leased them
            failed.append(request)
            raise DeadlineExceeded("The response was lost.")
        return response

    monkeypatch.setattr(BatchStore, "call", unlucky)
    async with running(tmp_path) as place:
        asked: list[str] = []

        def answer(request: orchestrator_pb2.AnswerRequest) -> script.Script:
            asked.append(request.request_id)
            if len(asked) == 1 and lost is batches_pb2.ReleaseLineRequest:
                return [Overloaded("Full.", retry_after_seconds=0.05)]
            return [script.delta("ok"), script.done()]

        place.orchestrator.script = answer
        batch = await place.ended((await place.begin([line("a")]))["id"])
        assert failed
        assert batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}


async def test_lines_wait_while_the_models_are_full_and_count_no_attempt(tmp_path: Path) -> None:
    worker = WORKER.model_copy(update={"max_attempts": 1})
    async with running(tmp_path, worker) as place:
        asked: list[str] = []

        def answer(request: orchestrator_pb2.AnswerRequest) -> script.Script:
            asked.append(request.request_id)
            if len(asked) < 4:
                return [Overloaded("Full.", retry_after_seconds=0.05)]
            return [script.delta("ok"), script.done()]

        place.orchestrator.script = answer
        batch = await place.ended((await place.begin([line("a")]))["id"])
        assert batch["request_counts"]["completed"] == 1
        assert len(set(asked)) == 1


async def test_a_batch_leaves_a_share_of_the_tenants_limits_to_other_requests(tmp_path: Path) -> None:
    async with running(tmp_path) as place:
        place.source.replace(changed("requests_per_minute: 6000", "requests_per_minute: 20"))
        begun = await place.begin([line(str(i)) for i in range(40)])
        await asyncio.sleep(1.5)
        batch = await place.batch(begun["id"])
        assert batch["status"] == "in_progress"
        assert 5 <= batch["request_counts"]["completed"] <= 16
        assert batch["request_counts"]["failed"] == 0
        body = line("x")["body"]
        assert (await place.request("POST", batch_lines.CHAT, json=body)).status_code == 200


def given_back(reason: str) -> float:
    """Lines that the worker gave back for this reason."""
    (metric,) = RELEASED.collect()
    return sum(
        each.value for each in metric.samples if each.name.endswith("_total") and each.labels["reason"] == reason
    )


async def test_a_batch_whose_key_is_removed_fails_and_says_so(place: Place) -> None:
    hold = asyncio.Event()
    place.orchestrator.script = lambda request: [script.delta("…"), hold, script.done()]
    begun = await place.begin([line(str(i)) for i in range(20)])
    await eventually(lambda: len(place.orchestrator.callers) >= WORKER.max_concurrent)
    before = given_back("key_removed")
    place.source.replace(specs.parse("\n".join(each for each in FACTORY.splitlines() if "{id: user," not in each)))
    hold.set()
    await eventually(lambda: given_back("key_removed") > before)
    place.source.replace(specs.parse(FACTORY))  # to look at it
    batch = await place.ended(begun["id"])
    assert batch["status"] == "failed"
    assert [error["code"] for error in batch["errors"]["data"]] == ["key_removed"]
    assert batch["request_counts"] == {"total": 20, "completed": 4, "failed": 16}
    errors = await place.results(batch["error_file_id"])
    assert {each["error"]["code"] for each in errors.values()} == {"batch_failed"}


async def test_a_key_that_may_no_longer_use_the_model_gets_an_error_for_each_line(place: Place) -> None:
    batch = await place.ended((await place.begin([line("a", model="rag")], CHATTER))["id"], CHATTER)
    assert batch["request_counts"]["failed"] == 1
    error = (await place.results(batch["error_file_id"], CHATTER))["a"]["response"]
    assert (error["status_code"], error["body"]["error"]["code"]) == (403, "permission_denied")


async def test_a_cancelled_batch_keeps_what_was_answered(place: Place) -> None:
    hold = asyncio.Event()
    place.orchestrator.script = lambda request: [script.delta("…"), hold, script.done()]
    begun = await place.begin([line(str(i)) for i in range(50)])
    await eventually(lambda: len(place.orchestrator.callers) >= WORKER.max_concurrent)
    cancelling = (await place.request("POST", f"/v1/batches/{begun['id']}/cancel")).json()
    assert (cancelling["status"], cancelling["cancelling_at"] is None) == ("cancelling", False)
    hold.set()
    batch = await place.ended(begun["id"])
    assert (batch["status"], batch["cancelled_at"] is None) == ("cancelled", False)
    assert batch["request_counts"] == {"total": 50, "completed": 4, "failed": 46}
    assert len(await place.results(batch["output_file_id"])) == 4
    again = await place.request("POST", f"/v1/batches/{begun['id']}/cancel")
    assert again.status_code == 409


async def test_a_gateway_that_stops_gives_its_lines_back_and_the_next_one_goes_on(tmp_path: Path) -> None:
    hold = asyncio.Event()
    async with running(tmp_path, WORKER.model_copy(update={"lease_seconds": 60.0})) as place:
        place.orchestrator.script = lambda request: [script.delta("…"), hold, script.done()]
        begun = await place.begin([line(str(i)) for i in range(8)])
        await eventually(lambda: len(place.orchestrator.callers) >= WORKER.max_concurrent)
    async with running(tmp_path) as place:
        place.orchestrator.script = lambda request: [script.delta("ok"), script.done()]
        batch = await place.ended(begun["id"])
        assert batch["request_counts"] == {"total": 8, "completed": 8, "failed": 0}


async def test_a_gateway_with_no_place_for_batches_answers_none(tmp_path: Path) -> None:
    async with running(tmp_path, WORKER.model_copy(update={"max_concurrent": 0})) as place:
        begun = await place.begin([line("a")])
        await asyncio.sleep(0.3)
        assert (await place.batch(begun["id"]))["status"] == "validating"


async def test_no_line_is_begun_while_the_gateway_is_busy(tmp_path: Path) -> None:
    async with running(tmp_path, WORKER.model_copy(update={"busy_share": 0.001})) as place:
        hold = asyncio.Event()
        place.orchestrator.script = lambda request: (
            [script.delta("…"), hold, script.done()]
            if request.messages[-1].content == "interactive"
            else [script.delta("ok"), script.done()]
        )
        interactive = asyncio.create_task(
            place.request("POST", batch_lines.CHAT, json=line("x", "interactive")["body"])
        )
        await eventually(lambda: len(place.orchestrator.callers) == 1)
        begun = await place.begin([line("a")])
        await asyncio.sleep(0.5)
        assert (await place.batch(begun["id"]))["request_counts"]["completed"] == 0
        assert len(place.orchestrator.callers) == 1
        hold.set()
        assert (await interactive).status_code == 200
        assert (await place.ended(begun["id"]))["status"] == "completed"
