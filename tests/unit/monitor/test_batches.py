"""Files and batches: whose they are, their bounds, one result for each line, and their end; on both databases."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import sqlalchemy as sa

from genaifactory.monitor.v1 import batches_pb2, batches_pb2_grpc, monitor_pb2, monitor_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import batch_lines, channels, testing
from genaifactory_common.errors import Conflict, InvalidArgument, NotFound, RateLimited, TooLarge
from genaifactory_common.telemetry import Telemetry
from genaifactory_monitor.app import create_app
from genaifactory_monitor.batches import files, tables, upkeep
from genaifactory_monitor.batches import store as batch_store
from genaifactory_monitor.settings import Batches as Bounds
from genaifactory_monitor.settings import Settings
from tests.unit.monitor.conftest import make_interaction, opened

LEASE_MS = 60_000
COLLEAGUE = replace(testing.CALLER, principal="bob", key_id="bob")
RIVAL = replace(testing.CALLER, tenant="rival")


@dataclass(frozen=True)
class Store:
    """A running monitor, and calls to its BatchService."""

    stub: batches_pb2_grpc.BatchServiceAsyncStub
    record: monitor_pb2_grpc.MonitorServiceAsyncStub

    async def __call__(self, method: str, **fields: Any) -> Any:
        request = getattr(batches_pb2, f"{method}Request")(**fields)
        return await channels.unary(getattr(self.stub, method), request, timeout_seconds=20)

    async def upload(self, *parts: bytes, lifetime_seconds: int = 0) -> str:
        """A finished file of these pieces; returns its id."""
        file_id: str = (await self("CreateFile", filename="in.jsonl")).file.file_id
        offset = 0
        for data in parts:
            await self("AppendFile", file_id=file_id, offset=offset, data=data)
            offset += len(data)
        await self("FinishFile", file_id=file_id, lifetime_seconds=lifetime_seconds)
        return file_id

    async def read(self, file_id: str) -> bytes:
        request = batches_pb2.ReadFileRequest(file_id=file_id)
        pieces = channels.stream(self.stub.ReadFile, request, timeout_seconds=20)
        return b"".join([piece.data async for piece in pieces])

    async def results(self, file_id: str) -> dict[str, Any]:
        """The lines of a file of results, by custom_id."""
        found = [json.loads(line) for line in (await self.read(file_id)).splitlines()]
        assert len(found) == len({line["custom_id"] for line in found})
        return {line["custom_id"]: line for line in found}

    async def begin(self, count: int = 4, *, body: bytes = b"{}", **fields: Any) -> str:
        """A batch whose lines can be answered; returns its id."""
        file_id = await self.upload(b"requests\n")
        batch = (await self("CreateBatch", input_file_id=file_id, endpoint=batch_lines.CHAT, **fields)).batch
        claimed = (await self("ClaimBatch", worker="checker", lease_ms=LEASE_MS)).batch
        assert claimed.batch_id == batch.batch_id
        new = [batches_pb2.Line(number=number, custom_id=f"c{number}", body=body) for number in range(1, count + 1)]
        for lines in ([each] for each in new) if len(body) > 1000 else (new,):
            added = await self("AddLines", worker="checker", batch_id=batch.batch_id, lines=lines, lease_ms=LEASE_MS)
            assert added.leased
        await self("FinishCheck", worker="checker", batch_id=batch.batch_id, model="chat")
        return str(batch.batch_id)

    async def claim(self, worker: str = "w", lines: int = 100, lease_ms: int = LEASE_MS, **fields: Any) -> list[int]:
        """The numbers of the lines that the worker gets."""
        claimed = await self("ClaimLines", worker=worker, lines=lines, lease_ms=lease_ms, **fields)
        return [line.number for line in claimed.lines]

    async def answer(self, batch_id: str, number: int, *, text: str = "yes", **fields: Any) -> bool:
        line = batch_lines.result(batch_id, number, f"c{number}", response=json.dumps({"text": text}).encode())
        stored = await self("StoreResult", batch_id=batch_id, number=number, result=line, **fields)
        return bool(stored.stored)

    async def batch(self, batch_id: str) -> batches_pb2.Batch:
        found: batches_pb2.Batch = (await self("GetBatch", batch_id=batch_id)).batch
        return found

    async def ended(self, batch_id: str) -> batches_pb2.Batch:
        """The batch once it has ended."""
        async with asyncio.timeout(20):
            while True:
                batch = await self.batch(batch_id)
                if batch.HasField("end_time"):
                    return batch
                await asyncio.sleep(0.02)


@asynccontextmanager
async def serving(settings: Settings, **bounds: Any) -> AsyncIterator[Store]:
    own = settings.model_copy(update={"batches": Bounds(**{"upkeep_seconds": 0.05, **bounds})})
    async with testing.served(create_app(own, Telemetry("monitor"))) as channel:
        testing.act_as()
        yield Store(batches_pb2_grpc.BatchServiceStub(channel), monitor_pb2_grpc.MonitorServiceStub(channel))


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    """A running monitor, once over each database, that keeps its batches up continually."""
    async with serving(settings) as running:
        testing.act_as()
        yield running


async def test_a_file_is_read_as_it_was_sent_and_a_piece_that_comes_twice_is_stored_once(store: Store) -> None:
    testing.act_as()
    file_id = (await store("CreateFile", filename="câu hỏi.jsonl")).file.file_id
    pieces = [b"a" * batch_lines.PIECE_BYTES, b"b" * 10]
    for offset, data in ((0, pieces[0]), (0, pieces[0]), (len(pieces[0]), pieces[1])):
        await store("AppendFile", file_id=file_id, offset=offset, data=data)
    with pytest.raises(InvalidArgument, match="'offset' must be 1048586"):
        await store("AppendFile", file_id=file_id, offset=7, data=b"x")
    with pytest.raises(NotFound):
        await store("GetFile", file_id=file_id)  # not finished
    file = (await store("FinishFile", file_id=file_id)).file
    assert (file.filename, file.purpose, file.size_bytes) == ("câu hỏi.jsonl", "batch", 1048586)
    assert file.expire_time.seconds - file.create_time.seconds == 30 * 86_400
    assert await store.read(file_id) == b"".join(pieces)
    with pytest.raises(Conflict, match="is finished"):
        await store("AppendFile", file_id=file_id, offset=1048586, data=b"x")
    await store("DeleteFile", file_id=file_id)
    with pytest.raises(NotFound):
        await store.read(file_id)


async def test_another_key_of_the_tenant_and_another_tenant_find_no_file_and_no_batch(store: Store) -> None:
    testing.act_as()
    file_id = await store.upload(b"{}\n")
    batch_id = await store.begin(1)
    await store.claim()
    await store.answer(batch_id, 1)
    output = (await store.batch(batch_id)).output_file_id
    assert output
    for stranger in (COLLEAGUE, RIVAL):
        testing.act_as(stranger)
        attempts: list[tuple[str, dict[str, Any]]] = [
            ("AppendFile", {"file_id": file_id, "offset": 3, "data": b"x"}),
            ("FinishFile", {"file_id": file_id}),
            *((name, {"file_id": each}) for each in (file_id, output) for name in ("GetFile", "DeleteFile")),
            ("ListFiles", {"after": file_id}),
            ("CreateBatch", {"input_file_id": file_id, "endpoint": batch_lines.CHAT}),
            ("GetBatch", {"batch_id": batch_id}),
            ("CancelBatch", {"batch_id": batch_id}),
            ("ListBatches", {"after": batch_id}),
        ]
        for method, fields in attempts:
            with pytest.raises(NotFound, match=r"There is no (file|batch) '(file-|batch_)\w+' of this key"):
                await store(method, **fields)
        for each in (file_id, output):
            with pytest.raises(NotFound):
                await store.read(each)
        assert list((await store("ListFiles")).files) == []
        assert list((await store("ListBatches")).batches) == []
    testing.act_as()
    assert await store.read(file_id) == b"{}\n"


async def test_the_character_that_postgresql_refuses_is_in_no_id_and_no_purpose(store: Store) -> None:
    testing.act_as()
    for method, fields in (
        ("GetFile", {"file_id": "file-\0"}),
        ("ListFiles", {"after": "\0"}),
        ("CreateBatch", {"input_file_id": "\0", "endpoint": batch_lines.CHAT}),
        ("GetBatch", {"batch_id": "\0"}),
        ("ListBatches", {"after": "\0"}),
    ):
        with pytest.raises(NotFound):
            await store(method, **fields)
    with pytest.raises(InvalidArgument, match=r"U\+0000") as refused:
        await store("ListFiles", purpose="\0")
    assert refused.value.field == "purpose"


async def test_lists_are_paged_in_order(store: Store) -> None:
    testing.act_as()
    ids = [await store.upload(b"%d" % i) for i in range(5)]
    await store("CreateFile", filename="unfinished")
    first = await store("ListFiles", page_size=2)
    assert [file.file_id for file in first.files] == ids[:2:-1]
    assert first.has_more
    rest = await store("ListFiles", page_size=4, after=ids[3])
    assert [file.file_id for file in rest.files] == ids[2::-1]
    assert not rest.has_more
    oldest = await store("ListFiles", oldest_first=True, after=ids[0], page_size=2, purpose="batch")
    assert [file.file_id for file in oldest.files] == ids[1:3]
    assert list((await store("ListFiles", purpose="batch_output")).files) == []


async def test_bounds_of_files_and_batches_are_enforced(settings: Settings) -> None:
    small = {"max_file_bytes": 10, "max_tenant_bytes": 16, "max_tenant_files": 3}
    async with serving(settings, **small) as store:
        testing.act_as()
        with pytest.raises(TooLarge, match="at most 10 bytes"):
            await store.upload(b"x" * 11)
        file_id = await store.upload(b"x" * 10)
        with pytest.raises(RateLimited, match="3 files of 16 bytes in all") as refused:
            await store.upload(b"x" * 7)
        assert refused.value.retry_after_seconds is None  # waiting does not help
        with pytest.raises(RateLimited):
            await store("CreateFile", filename="fourth")
        testing.act_as(RIVAL)
        await store.upload(b"x" * 7)  # the bounds are a tenant's own
        testing.act_as()
        with pytest.raises(RateLimited, match="has 3 of 10"):
            await store("CreateBatch", input_file_id=file_id, endpoint=batch_lines.CHAT)
    async with serving(settings, max_tenant_batches=1) as store:
        testing.act_as()
        fields = {"input_file_id": file_id, "endpoint": batch_lines.CHAT}
        await store("CreateBatch", **fields)
        with pytest.raises(RateLimited, match="has 1 batches that have not ended"):
            await store("CreateBatch", **fields)
        with pytest.raises(Conflict, match="A batch that has not ended uses the file"):
            await store("DeleteFile", file_id=file_id)


async def test_an_open_batch_counts_as_the_files_of_its_results(settings: Settings) -> None:
    async with serving(settings, max_tenant_bytes=25, max_tenant_files=6) as store:
        testing.act_as()
        fields = {"input_file_id": await store.upload(b"x" * 10), "endpoint": batch_lines.CHAT}
        batch_id = (await store("CreateBatch", **fields)).batch.batch_id
        with pytest.raises(RateLimited, match="has 3 of 20"):
            await store("CreateBatch", **fields)
        with pytest.raises(RateLimited, match="has 4 of 20"):
            await store.upload(b"x" * 6)
        testing.act_as(RIVAL)
        await store.upload(b"x" * 25)
        testing.act_as()
        await store("CancelBatch", batch_id=batch_id)
        await store.ended(batch_id)
        await store("CreateBatch", **fields)
    async with serving(settings, max_tenant_files=5) as store:
        testing.act_as()
        with pytest.raises(RateLimited, match="has 4 of 20"):
            await store("CreateBatch", **fields)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"endpoint": "/v1/completions"}, "endpoint"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
    ({"metadata": {"a": "x" * 513}}, "metadata"),
    ({"max_cost_micros": 0}, "max_cost"),
    ({"output_lifetime_seconds": 59}, "output_lifetime_seconds"),
    ({"output_lifetime_seconds": 31 * 86_400}, "output_lifetime_seconds"),
]


@pytest.mark.parametrize(("fields", "field"), WRONG)
async def test_a_wrong_batch_is_refused_with_its_field(
    sqlite_settings: Settings, fields: dict[str, Any], field: str
) -> None:
    async with serving(sqlite_settings) as store:
        testing.act_as()
        file_id = await store.upload(b"{}\n")
        with pytest.raises(InvalidArgument) as refused:
            await store("CreateBatch", **{"input_file_id": file_id, "endpoint": batch_lines.CHAT} | fields)
        assert refused.value.field == field


async def test_a_batch_ends_with_its_last_line_and_has_a_file_of_answers_and_one_of_errors(store: Store) -> None:
    testing.act_as()
    batch_id = await store.begin(3, metadata={"for": "tests"})
    assert await store.claim() == [1, 2, 3]
    tokens = types_pb2.TokenUsage(prompt_tokens=5, completion_tokens=2)
    for number, failed in ((3, False), (1, False), (2, True)):
        assert (await store.batch(batch_id)).status == "in_progress"
        assert await store.answer(batch_id, number, failed=failed, usage=tokens, cost_micros=7, currency="USD")
    batch = await store.batch(batch_id)
    assert (batch.status, batch.total, batch.completed, batch.failed) == ("completed", 3, 2, 1)
    assert (batch.cost_micros, batch.currency, batch.usage.prompt_tokens) == (21, "USD", 15)
    assert (dict(batch.metadata), batch.model) == ({"for": "tests"}, "chat")
    assert list(await store.results(batch.output_file_id)) == ["c1", "c3"]
    assert list(await store.results(batch.error_file_id)) == ["c2"]
    output = (await store("GetFile", file_id=batch.output_file_id)).file
    assert output.purpose == "batch_output"
    assert output.size_bytes == len(await store.read(batch.output_file_id))
    await store("DeleteFile", file_id=batch.output_file_id)
    assert (await store.batch(batch_id)).output_file_id == ""
    assert list(await store.results(batch.error_file_id)) == ["c2"]


async def test_many_large_results_are_read_in_order(store: Store) -> None:
    testing.act_as()
    batch_id = await store.begin(7)
    await store.claim()
    for number in range(1, 8):
        await store.answer(batch_id, number, text="x" * 400_000)
    found = await store.results((await store.batch(batch_id)).output_file_id)
    assert list(found) == [f"c{number}" for number in range(1, 8)]


async def test_a_file_that_is_erased_while_it_is_read_ends_with_an_error(settings: Settings) -> None:
    async with serving(settings) as store:
        testing.act_as()
        uploaded = await store.upload(*[b"x" * batch_lines.PIECE_BYTES] * 2)
        batch_id = await store.begin(3)
        await store.claim()
        for number in (1, 2, 3):
            await store.answer(batch_id, number, text="x" * (1 << 20))
        output = (await store.batch(batch_id)).output_file_id
    owner = files.Owner(testing.CALLER.tenant, testing.CALLER.principal)
    async with opened(settings) as database:
        for file_id in (uploaded, output):
            content = files.read(database, owner, file_id)
            assert await anext(content)
            await files.delete(database, owner, file_id)
            with pytest.raises(NotFound, match=file_id):
                await anext(content)


async def test_a_line_that_two_workers_answer_has_one_result(store: Store) -> None:
    testing.act_as()
    batch_id = await store.begin(2)
    assert await store.claim("first", lease_ms=1) == [1, 2]
    await asyncio.sleep(0.05)
    assert await store.claim("second") == [1, 2]  # the first one's leases ended
    assert await store.answer(batch_id, 1, text="second")
    assert not await store.answer(batch_id, 1, text="first")
    assert await store.answer(batch_id, 2, text="first")
    batch = await store.batch(batch_id)
    assert (batch.completed, batch.status) == (2, "completed")
    assert (await store.results(batch.output_file_id))["c1"]["response"] == {"text": "second"}


async def test_a_worker_that_lives_keeps_its_lines_and_one_that_died_loses_them(store: Store) -> None:
    testing.act_as()
    await store.begin(2)
    assert await store.claim("alive", lines=1, lease_ms=600) == [1]
    assert await store.claim("dead", lease_ms=600) == [2]
    async with asyncio.timeout(10):
        while not (found := await store.claim("heir")):
            assert await store.claim("alive", lines=0, lease_ms=600) == []  # renews
            await asyncio.sleep(0.05)
    assert found == [2]
    await store("ClaimLines", worker="alive", lease_ms=1)


async def test_the_longest_lines_are_leased_in_as_many_claims_as_their_bytes_need(store: Store) -> None:
    testing.act_as()
    await store.begin(4, body=b"x" * batch_lines.MAX_BODY_BYTES)
    assert [await store.claim(lines=4) for _ in range(3)] == [[1, 2], [3, 4], []]


async def test_workers_share_batches_in_turn_and_tenants_that_must_wait_are_passed_over(store: Store) -> None:
    testing.act_as()
    first = await store.begin(4)
    testing.act_as(RIVAL)
    second = await store.begin(4)
    seen = [(await store("ClaimLines", worker="w", lines=1, lease_ms=LEASE_MS)).batch.batch_id for _ in range(4)]
    assert seen == [first, second, first, second]
    passed = await store("ClaimLines", worker="w", lines=1, lease_ms=LEASE_MS, except_tenants=["acme"])
    assert passed.batch.batch_id == second
    assert await store.claim(except_tenants=["acme", "rival"]) == []


async def test_a_released_line_waits_and_counts_its_attempts(store: Store) -> None:
    testing.act_as()
    batch_id = await store.begin(1)
    assert await store.claim() == [1]
    await store("ReleaseLine", worker="another", batch_id=batch_id, number=1, attempts=9)
    assert await store.claim() == []  # not that one's line
    await store("ReleaseLine", worker="w", batch_id=batch_id, number=1, attempts=1, delay_ms=200)
    assert await store.claim() == []
    await asyncio.sleep(0.25)
    claimed = await store("ClaimLines", worker="w", lines=1, lease_ms=LEASE_MS)
    assert [line.attempts for line in claimed.lines] == [1]


async def test_a_line_whose_interrupted_request_is_on_record_is_answered_by_another_request(store: Store) -> None:
    testing.act_as()
    batch_id = await store.begin(3)
    assert await store.claim("died", lease_ms=1) == [1, 2, 3]
    outcomes = (monitor_pb2.OUTCOME_CANCELLED, monitor_pb2.OUTCOME_ANSWERED)
    recorded = [
        make_interaction(batch_lines.request_id(batch_id, number, 0), outcome=outcome)
        for number, outcome in enumerate(outcomes, start=1)
    ]
    request = monitor_pb2.RecordInteractionsRequest(interactions=recorded)
    await channels.unary(store.record.RecordInteractions, request, timeout_seconds=20)
    await asyncio.sleep(0.01)
    for worker in ("heir", "its heir"):
        claimed = await store("ClaimLines", worker=worker, lines=10, lease_ms=1)
        # The answered one is asked again as the same request, which the record has once.
        assert {line.number: line.attempts for line in claimed.lines} == {1: 1, 2: 0, 3: 0}
        await asyncio.sleep(0.01)


async def test_a_cancelled_batch_keeps_its_answers_and_gives_up_what_nobody_answers(store: Store) -> None:
    testing.act_as()
    batch_id = await store.begin(300)
    await store.claim(lines=2)
    await store.answer(batch_id, 1)
    assert (await store("CancelBatch", batch_id=batch_id)).batch.status == "cancelling"
    assert await store.claim("another") == []
    async with asyncio.timeout(20):
        while (await store.batch(batch_id)).failed < 298:  # noqa: ASYNC110  # polled, as by clients
            await asyncio.sleep(0.02)
    assert (await store("CancelBatch", batch_id=batch_id)).batch.status == "cancelling"
    assert await store.answer(batch_id, 2)  # was being answered
    batch = await store.ended(batch_id)
    assert (batch.status, batch.completed, batch.failed) == ("cancelled", 2, 298)
    assert list(await store.results(batch.output_file_id)) == ["c1", "c2"]
    errors = await store.results(batch.error_file_id)
    assert len(errors) == 298
    assert errors["c3"]["response"] is None
    assert errors["c3"]["error"]["code"] == "batch_cancelled"
    with pytest.raises(Conflict, match="The batch is cancelled"):
        await store("CancelBatch", batch_id=batch_id)


async def test_a_batch_is_cancelled_before_its_file_was_checked(store: Store) -> None:
    testing.act_as()
    file_id = await store.upload(b"{}\n")
    batch = (await store("CreateBatch", input_file_id=file_id, endpoint=batch_lines.CHAT)).batch
    assert (await store("ClaimBatch", worker="checker", lease_ms=LEASE_MS)).batch.batch_id == batch.batch_id
    await store("CancelBatch", batch_id=batch.batch_id)
    assert (await store.ended(batch.batch_id)).status == "cancelled"
    line = batches_pb2.Line(number=1, custom_id="a", body=b"{}")
    added = await store("AddLines", worker="checker", batch_id=batch.batch_id, lines=[line], lease_ms=LEASE_MS)
    assert not added.leased
    await store("FinishCheck", worker="checker", batch_id=batch.batch_id, model="chat")
    assert (await store.batch(batch.batch_id)).status == "cancelled"


async def test_a_batch_whose_time_ends_expires_with_its_answers(settings: Settings) -> None:
    async with serving(settings, window_seconds=1.0) as store:
        testing.act_as()
        batch_id = await store.begin(3)
        await store.claim(lines=1)
        await store.answer(batch_id, 1)
        batch = await store.ended(batch_id)
        assert (batch.status, batch.completed, batch.failed) == ("expired", 1, 2)
        codes = {name: line["error"]["code"] for name, line in (await store.results(batch.error_file_id)).items()}
        assert codes == {"c2": "batch_expired", "c3": "batch_expired"}


async def test_a_batch_begins_no_line_that_would_exceed_its_cost(store: Store) -> None:
    testing.act_as()
    batch_id = await store.begin(10, max_cost_micros=100)
    assert await store.claim() == [1]  # one, until it is known what a line costs
    assert await store.claim() == []
    await store.answer(batch_id, 1, cost_micros=30)
    assert await store.claim() == [2, 3]
    for number in (2, 3):
        await store.answer(batch_id, number, cost_micros=30)
    assert await store.claim() == []
    batch = await store.ended(batch_id)
    assert (batch.status, batch.completed, batch.failed, batch.cost_micros) == ("completed", 3, 7, 90)
    assert {line["error"]["code"] for line in (await store.results(batch.error_file_id)).values()} == {
        "budget_exceeded"
    }


async def test_lines_begin_one_by_one_until_one_has_cost_something(store: Store) -> None:
    testing.act_as()
    batch_id = await store.begin(10, max_cost_micros=100)
    for number, failed in ((1, True), (2, False), (3, True)):
        assert await store.claim() == [number]
        assert await store.claim() == []
        await store.answer(batch_id, number, failed=failed)


async def test_a_batch_that_has_ended_is_not_closed_and_ended_again(settings: Settings) -> None:
    async with serving(settings) as store:
        testing.act_as()
        batch_id = await store.begin(1)
        await store.claim()
        await store.answer(batch_id, 1)
        before = await store.batch(batch_id)
        assert before.status == "completed"
        async with opened(settings) as database:
            async with database.writing() as connection:
                await batch_store.close(connection, batch_id, batch_store.EXPIRED, 1)
            await upkeep.end_all(database, 2)
        assert await store.batch(batch_id) == before
        cancelled = await store.begin(1)
        await store.claim()
        await store("CancelBatch", batch_id=cancelled)
        async with opened(settings) as database, database.writing() as connection:
            await batch_store.close(connection, cancelled, batch_store.EXPIRED, 1)
        await store.answer(cancelled, 1)
        assert (await store.ended(cancelled)).status == "cancelled"


@asynccontextmanager
async def locked(settings: Settings, batch_id: str) -> AsyncIterator[None]:
    """Another replica of monitor changes the batch inside the block."""
    of_batch = sa.select(tables.batches).where(tables.batches.c.batch_id == batch_id).with_for_update()
    async with opened(settings) as database, database.writing() as connection:
        await connection.execute(of_batch)
        yield


async def test_a_batch_that_another_replica_changes_is_passed_over(postgres_settings: Settings) -> None:
    async with serving(postgres_settings, upkeep_seconds=3600) as store:
        testing.act_as()
        batch_id = await store.begin(2, max_cost_micros=10)
        async with asyncio.timeout(10), locked(postgres_settings, batch_id):
            assert await store.claim() == []
        assert await store.claim() == [1]


async def test_a_batch_that_is_cancelled_while_it_is_checked_has_no_errors_for_its_lines(
    postgres_settings: Settings,
) -> None:
    async with serving(postgres_settings, upkeep_seconds=3600) as store, opened(postgres_settings) as database:
        testing.act_as()
        file_id = await store.upload(b"{}\n")
        batch_id = (await store("CreateBatch", input_file_id=file_id, endpoint=batch_lines.CHAT)).batch.batch_id
        await store("ClaimBatch", worker="checker", lease_ms=LEASE_MS)
        line = batches_pb2.Line(number=1, custom_id="a", body=b"{}")
        await store("AddLines", worker="checker", batch_id=batch_id, lines=[line], lease_ms=LEASE_MS)
        async with database.writing() as connection:  # as CancelBatch does, without a turn of upkeep
            values = {"status": "cancelling", "closing": batch_store.CANCELLED}
            await connection.execute(sa.update(tables.batches).values(values))
        async with asyncio.timeout(10), locked(postgres_settings, batch_id):
            await upkeep.end_all(database, 1)
        assert (await store.batch(batch_id)).status == "cancelling"
        await upkeep.end_all(database, 2)
        batch = await store.batch(batch_id)
        assert (batch.status, batch.failed, batch.error_file_id) == ("cancelled", 0, "")


async def test_a_failing_check_ends_the_batch_with_its_errors_and_keeps_no_line(store: Store) -> None:
    testing.act_as()
    file_id = await store.upload(b"{}\n")
    batch_id = (await store("CreateBatch", input_file_id=file_id, endpoint=batch_lines.CHAT)).batch.batch_id
    await store("ClaimBatch", worker="w", lease_ms=LEASE_MS)
    error = batches_pb2.BatchError(code="invalid_json_line", message="Not JSON.", line=1)
    await store("FinishCheck", worker="another", batch_id=batch_id, errors=[error])
    assert (await store.batch(batch_id)).status == "validating"  # it is not leased to that one
    await store("FinishCheck", worker="w", batch_id=batch_id, errors=[error])
    batch = await store.batch(batch_id)
    assert (batch.status, list(batch.errors), batch.HasField("end_time")) == ("failed", [error], True)
    await store("DeleteFile", file_id=file_id)


async def test_a_batch_that_cannot_go_on_fails_with_its_reason_and_keeps_its_answers(store: Store) -> None:
    testing.act_as()
    batch_id = await store.begin(2)
    await store.claim(lines=1)
    await store.answer(batch_id, 1)
    await store("FailBatch", batch_id=batch_id, error={"code": "key_removed", "message": "Its key is gone."})
    batch = await store.ended(batch_id)
    assert (batch.status, batch.errors[0].code, batch.completed, batch.failed) == ("failed", "key_removed", 1, 1)
    assert list(await store.results(batch.output_file_id)) == ["c1"]


async def test_what_is_older_than_its_time_is_deleted_with_its_content(settings: Settings) -> None:
    async with serving(settings) as store:
        testing.act_as()
        await store.upload(b"1\n", lifetime_seconds=3600)
        await store("CreateFile", filename="abandoned")
        batch_id = await store.begin(1, output_lifetime_seconds=40 * 60 * 60)
        await store.claim()
        await store.answer(batch_id, 1)
    async with opened(settings) as database:
        rows = sa.select(tables.batches.c.create_time_us)
        async with database.reading() as connection:
            now_us = await connection.scalar(rows)
        assert now_us is not None

        async def left() -> list[int]:
            counted = (tables.files, tables.pieces, tables.batches, tables.lines)
            async with database.reading() as connection:
                return [await connection.scalar(sa.select(sa.func.count()).select_from(each)) or 0 for each in counted]

        hour_us = 3600 * 10**6
        assert await left() == [4, 2, 1, 1]
        await upkeep.sweep(database, Bounds(), now_us + 2 * hour_us)
        assert await left() == [2, 1, 1, 1]
        await upkeep.sweep(database, Bounds(), now_us + 41 * hour_us)
        assert await left() == [1, 1, 1, 0]
        await upkeep.sweep(database, Bounds(), now_us + 31 * 24 * hour_us)
        assert await left() == [0, 0, 0, 0]


PEERS: list[tuple[str, dict[str, Any]]] = [
    ("ClaimBatch", {"lease_ms": 1}),
    ("ClaimLines", {"worker": "w" * 65, "lease_ms": 1}),
    ("ClaimLines", {"worker": "w"}),
    ("ClaimLines", {"worker": "w", "lease_ms": 1, "lines": 101}),
    ("AddLines", {"worker": "w", "lease_ms": 1, "lines": [batches_pb2.Line(number=50_001)]}),
    ("StoreResult", {"batch_id": "b", "number": 1, "result": b"two\nlines"}),
]


@pytest.mark.parametrize(("method", "fields"), PEERS)
async def test_a_workers_wrong_request_is_refused(
    sqlite_settings: Settings, method: str, fields: dict[str, Any]
) -> None:
    async with serving(sqlite_settings) as store:
        with pytest.raises(InvalidArgument):
            await store(method, **fields)
