"""The service through its RPCs: ingestion, search, tenancy, access lists, index versions, and wrong requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from genaifactory.retriever.v1 import retriever_pb2 as pb
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, specs
from genaifactory_common.errors import Conflict, FactoryError, PermissionDenied, Reason
from genaifactory_common.telemetry import Telemetry
from genaifactory_common.testing import CALLER, act_as
from genaifactory_retriever.app import create_app
from genaifactory_retriever.encoding import Encoded
from genaifactory_retriever.settings import Settings
from genaifactory_retriever.stored import StoredDocument
from genaifactory_retriever.vectors.protocol import Point
from tests.unit.retriever import files
from tests.unit.retriever.conftest import FACTORY, Client, Doc, operating, outcomes, retriever

BOOT = Doc("boot", "# Khởi động\n\nCắm thanh bộ nhớ USB rồi khởi động máy tính từ nó.")
RAID = Doc("raid", "# RAID\n\nA RAID array joins several disks, so that a broken disk loses no data.")


@pytest.fixture(autouse=True)
def caller() -> None:
    act_as()


def ids(response: pb.SearchResponse) -> list[str]:
    return [passage.document_id for passage in response.passages]


# Ingestion


async def test_documents_of_every_type_are_found(client: Client) -> None:
    documents = [
        BOOT,
        Doc("page", "<title>Network</title><p>The network is configured by DHCP.</p>", uri="a.html"),
        Doc("note", "The keyboard layout is chosen first.", uri="a.txt"),
        Doc("manual", files.pdf("Firmware files come on removable media."), uri="a.pdf"),
        Doc("sotay", await asyncio.to_thread(files.docx_file), uri="a.docx"),
    ]
    assert outcomes(await client.ingest(documents)) == ["added"] * 5
    for query, document in [
        ("khởi động từ USB", "boot"),
        ("network configured by DHCP", "page"),
        ("keyboard layout", "note"),
        ("firmware on removable media", "manual"),
        ("bộ nhớ 780 MB", "sotay"),
    ]:
        assert ids(await client.search(query))[0] == document


async def test_a_passage_carries_its_place_and_its_document(client: Client) -> None:
    await client.ingest([replace(BOOT, uri="guide/boot.md", title="Sổ tay", metadata={"team": "it"})])
    (passage,) = (await client.search("khởi động")).passages
    assert (passage.title, passage.uri, list(passage.headings)) == ("Sổ tay", "guide/boot.md", ["Khởi động"])
    assert (passage.start_offset, passage.end_offset) == (0, len(passage.text))
    assert passage.language == "vi"
    assert dict(passage.metadata) == {"team": "it"}


async def test_ingesting_again_changes_only_what_changed(client: Client) -> None:
    first = await client.ingest([BOOT, RAID])
    assert outcomes(first) == ["added", "added"]
    assert outcomes(await client.ingest([BOOT, replace(RAID, text="# RAID\n\nNow about volumes.")])) == [
        "unchanged",
        "replaced",
    ]
    assert ids(await client.search("broken disk loses data", mode=pb.SEARCH_MODE_LEXICAL)) == []
    assert ids(await client.search("volumes", mode=pb.SEARCH_MODE_LEXICAL)) == ["raid"]
    (index,) = await client.indexes()
    assert (index.documents, index.passages) == (2, 2)


async def test_changed_metadata_alone_replaces_a_document(client: Client) -> None:
    await client.ingest([BOOT])
    assert outcomes(await client.ingest([replace(BOOT, metadata={"a": "b"})])) == ["replaced"]
    assert ids(await client.search("USB", filter={"a": "b"})) == ["boot"]


async def test_the_same_content_under_another_id_is_stored_once(client: Client) -> None:
    copy = replace(BOOT, id="copy", uri="other.md")
    assert outcomes(await client.ingest([BOOT, copy])) == ["added", "duplicate"]
    assert outcomes(await client.ingest([copy])) == ["duplicate"]
    assert ids(await client.search("khởi động")) == ["boot"]


async def test_the_same_content_for_other_groups_is_no_duplicate(client: Client) -> None:
    assert outcomes(await client.ingest([BOOT, replace(BOOT, id="copy", groups=("hr",))])) == ["added", "added"]


@pytest.mark.parametrize("how", ["deleted", "replaced"])
async def test_a_duplicate_gets_the_passages_when_its_original_is_removed_or_changed(client: Client, how: str) -> None:
    await client.ingest([BOOT, replace(BOOT, id="renamed", uri="new.md")])
    if how == "deleted":
        assert await client.delete("boot") == 1
    else:
        assert outcomes(await client.ingest([replace(RAID, id="boot")])) == ["replaced"]
    (passage,) = (await client.search("khởi động", mode=pb.SEARCH_MODE_LEXICAL)).passages
    assert (passage.document_id, passage.uri) == ("renamed", "new.md")


async def test_one_upload_may_replace_and_duplicate_at_once(client: Client) -> None:
    await client.ingest([BOOT])
    moved = [replace(RAID, id="boot"), replace(BOOT, id="moved")]
    assert outcomes(await client.ingest(moved)) == ["replaced", "added"]
    assert ids(await client.search("khởi động", mode=pb.SEARCH_MODE_LEXICAL)) == ["moved"]


async def test_the_last_of_several_versions_in_one_upload_stays(client: Client) -> None:
    versions = [replace(RAID, text=f"# RAID\n\nEdition number{i}") for i in range(5)]
    assert outcomes(await client.ingest([*versions, versions[0]])) == ["added", *["replaced"] * 5]
    assert [p.text for p in (await client.search("edition")).passages] == ["Edition number0"]


async def test_a_bad_document_does_not_stop_the_others(client: Client) -> None:
    bad = [Doc("broken", b"not a pdf", uri="x.pdf"), Doc("odd", "x", uri="x.exe"), Doc("empty", "")]
    responses = await client.ingest([BOOT, *bad, RAID])
    assert outcomes(responses) == ["added", "rejected", "rejected", "rejected", "added"]
    assert [r.document_id for r in responses] == ["boot", "broken", "odd", "empty", "raid"]
    assert "cannot be read as PDF" in responses[1].error_message
    assert "media_type" in responses[2].error_message
    assert responses[3].error_reason == Reason.INVALID_ARGUMENT


async def test_a_document_that_is_too_large_is_skipped(tmp_path: Path, model_dir: Path) -> None:
    async with retriever(tmp_path / "d", model_dir, documents={"max_bytes": 2000}) as client:
        responses = await client.ingest([Doc("big", "x" * 2001), BOOT])
    assert outcomes(responses) == ["rejected", "added"]
    assert responses[0].error_reason == Reason.TOO_LARGE
    assert "at most 2000" in responses[0].error_message


BAD_HEADERS: list[tuple[dict[str, Any], str]] = [
    ({"id": ""}, "document_id must name"),
    ({"id": "x" * 513}, "document_id has 513 characters; at most 512"),
    ({"id": "a\nb"}, "document_id must not hold control characters"),
    ({"uri": "x" * 2049 + ".md"}, "uri has 2052 characters"),
    ({"uri": "javascript:alert(1)//a.md"}, "uri must be an http or https URL, or a path without a scheme"),
    ({"uri": " JavaScript:alert(1)//a.md"}, "uri must be"),
    ({"uri": "file:///etc/passwd.md"}, "uri must be"),
    ({"uri": "data:text/html,a.md"}, "uri must be"),
    ({"uri": "https:a.md"}, "uri must be"),
    ({"uri": "http:///a.md"}, "uri must be"),
    ({"uri": "//evil.example/a.md"}, "uri must be"),
    ({"uri": "/\\evil.example/a.md"}, "uri must be"),
    ({"uri": "Q1: plan.md"}, "write './a:b.md' for a path with a colon"),
    ({"title": "x" * 1001}, "title has 1001 characters"),
    ({"language": "Vietnamese!"}, "language must be a BCP 47 tag"),
    ({"media_type": "image/png"}, "media_type 'image/png' is not supported"),
    ({"metadata": {str(i): "x" for i in range(33)}}, "metadata has at most 32 entries"),
    ({"metadata": {"": "x"}}, "A key of metadata must not be empty"),
    ({"metadata": {"k": "x" * 257}}, "metadata[k] has 257 characters"),
    ({"metadata": {"k\x1f": "x"}}, "must not hold control characters"),
    ({"groups": ("",)}, "A group must have a name"),
    ({"groups": tuple(map(str, range(65)))}, "at most 64 allowed_groups"),
]


@pytest.mark.parametrize(("fields", "expected"), BAD_HEADERS)
async def test_a_wrong_header_is_rejected_with_a_message_that_names_the_problem(
    client: Client, fields: dict[str, Any], expected: str
) -> None:
    responses = await client.ingest([replace(BOOT, **fields), RAID])
    assert outcomes(responses) == ["rejected", "added"]
    assert expected in responses[0].error_message


@pytest.mark.parametrize(
    "uri",
    [
        "https://docs.example/a.md?page=1#top",
        "HTTP://127.0.0.1:8080/a.md",
        "a.md",
        "sổ tay/nghỉ phép.md",
        "/guide/a.md",
        "../a.md",
        "./Q1: plan.md",
        "notes/10:30.md",
    ],
)
async def test_a_web_address_or_a_path_is_returned_unchanged(client: Client, uri: str) -> None:
    assert outcomes(await client.ingest([replace(RAID, uri=uri)])) == ["added"]
    assert (await client.search("RAID")).passages[0].uri == uri


def opened(knowledge_base: str = "docs") -> pb.IngestRequest:
    return pb.IngestRequest(open=pb.IngestOpen(knowledge_base=knowledge_base))


def header(size: int) -> pb.IngestRequest:
    return pb.IngestRequest(document=pb.DocumentHeader(document_id="a", uri="a.md", size_bytes=size))


def data(content: bytes) -> pb.IngestRequest:
    return pb.IngestRequest(data=content)


@pytest.mark.parametrize(
    ("messages", "reason", "expected"),
    [
        ([], Reason.INVALID_ARGUMENT, "first message must be `open`"),
        ([data(b"x")], Reason.INVALID_ARGUMENT, "first message must be `open`"),
        ([pb.IngestRequest()], Reason.INVALID_ARGUMENT, "first message must be `open`"),
        ([opened("nope")], Reason.NOT_FOUND, "no knowledge base 'nope'"),
        ([opened("")], Reason.INVALID_ARGUMENT, "knowledge_base must name"),
        ([opened("private")], Reason.NOT_FOUND, "no knowledge base 'private'"),
        ([opened(), opened()], Reason.INVALID_ARGUMENT, "Expected `document`, got `open`"),
        ([opened(), data(b"x")], Reason.INVALID_ARGUMENT, "Expected `document`, got `data`"),
        ([opened(), header(2), header(2)], Reason.INVALID_ARGUMENT, "shorter than its size_bytes"),
        ([opened(), header(2), data(b"x")], Reason.INVALID_ARGUMENT, "shorter than its size_bytes"),
        ([opened(), header(2), data(b"xxx")], Reason.INVALID_ARGUMENT, "longer than its size_bytes"),
        ([opened(), header(2), data(b"")], Reason.INVALID_ARGUMENT, "at least one byte"),
        ([opened(), header(1 << 21), data(b"x" * ((1 << 20) + 1))], Reason.TOO_LARGE, "at most 1048576 bytes"),
    ],
)
async def test_an_upload_out_of_order_is_refused(
    client: Client, messages: list[pb.IngestRequest], reason: Reason, expected: str
) -> None:
    with pytest.raises(FactoryError, match=expected) as caught:
        await client.send(messages)
    assert caught.value.reason == reason


async def test_an_upload_without_data_is_ended_after_a_timeout(tmp_path: Path, model_dir: Path) -> None:
    async with (
        retriever(tmp_path / "d", model_dir, ingestion={"data_timeout_seconds": 0.05}) as client,
        channels.Duplex(client.stub.Ingest, timeout_seconds=10) as call,
    ):
        await call.send(opened())
        await call.send(header(10))
        with pytest.raises(FactoryError, match="No data for the document 'a'") as caught:
            _ = [response async for response in call]
    assert caught.value.reason == Reason.DEADLINE_EXCEEDED


async def test_an_upload_that_is_cancelled_leaves_the_service_working(client: Client) -> None:
    async with channels.Duplex(client.stub.Ingest, timeout_seconds=10) as call:
        await call.send(opened())
        await call.send(header(10))
    assert outcomes(await client.ingest([BOOT])) == ["added"]


async def test_uploads_beyond_the_shared_memory_budget_wait(tmp_path: Path, model_dir: Path) -> None:
    small: dict[str, Any] = {"documents": {"max_bytes": 3000}, "ingestion": {"bytes_in_flight": 1}}
    async with retriever(tmp_path / "d", model_dir, **small) as client:
        uploads = [[Doc(f"{u}-{i}", f"Upload {u} document {i}. " * 100) for i in range(6)] for u in range(3)]
        responses = await asyncio.gather(*(client.ingest(upload) for upload in uploads))
        assert [outcomes(r) for r in responses] == [["added"] * 6] * 3
        async with channels.Duplex(client.stub.Ingest, timeout_seconds=10) as call:
            await call.send(opened())
            await call.accepted()
            await call.send(header(3000))
            await call.send(data(b"half"))
        assert outcomes(await client.ingest(uploads[0])) == ["unchanged"] * 6


# Search


async def test_every_mode_finds_in_both_languages(client: Client) -> None:
    await client.ingest([BOOT, RAID])
    for mode in (pb.SEARCH_MODE_HYBRID, pb.SEARCH_MODE_LEXICAL, pb.SEARCH_MODE_DENSE):
        assert ids(await client.search("broken disk in an array", mode=mode))[0] == "raid"
        assert ids(await client.search("khởi động máy tính từ USB", mode=mode))[0] == "boot"
    assert ids(await client.search("khoi dong may tinh"))[0] == "boot"


async def test_coverage_is_high_for_answerable_questions_only(client: Client) -> None:
    await client.ingest([BOOT, RAID])
    assert (await client.search("What does a RAID array do with a broken disk?")).term_coverage > 0.9
    assert (await client.search("Làm sao khởi động từ USB?")).term_coverage > 0.9
    assert (await client.search("Who won the football cup?")).term_coverage == 0
    assert (await client.search("Giá vàng hôm nay?")).term_coverage < 0.3


async def test_language_metadata_and_limit_narrow_a_search(client: Client) -> None:
    await client.ingest([replace(BOOT, metadata={"team": "a"}), replace(RAID, language="en-US")])
    assert ids(await client.search("disk", language="en")) == ["raid"]
    assert ids(await client.search("disk", language="vi-VN")) == ["boot"]
    assert ids(await client.search("disk", filter={"team": "a"})) == ["boot"]
    assert ids(await client.search("disk", filter={"team": "b"})) == []
    for team, found in (("a", ["boot"]), ("b", [])):
        options = types_pb2.SearchOptions(filter={"team": team})
        assert ids(await client.search("disk", options=options)) == found
        assert ids(await client.search("disk", options=options, filter={"team": "c"})) == found
    assert len((await client.search("disk", limit=1)).passages) == 1


async def test_the_same_query_gets_the_same_answer(client: Client) -> None:
    await client.ingest([replace(RAID, id=f"d{i}", metadata={"n": str(i)}) for i in range(8)])
    first = await client.search("broken disk")
    for _ in range(5):
        assert await client.search("broken disk") == first


async def test_an_empty_knowledge_base_has_no_passages(client: Client) -> None:
    response = await client.search("anything")
    assert (list(response.passages), response.index_version, response.term_coverage) == ([], "v1", 0.0)


@pytest.mark.parametrize(
    ("fields", "field", "expected"),
    [
        ({"query": ""}, "query", "must hold text"),
        ({"query": " \u200b\n"}, "query", "must hold text"),
        ({"query": "x" * 8193}, "query", "8193 characters; at most 8192"),
        ({"limit": 101}, "limit", "limit must be 1 to 100"),
        ({"mode": 9}, "mode", "mode 9 is unknown"),
        ({"language": "!"}, "language", "BCP 47"),
        ({"filter": {"": "x"}}, "filter", "must not be empty"),
        ({"knowledge_base": ""}, "knowledge_base", "must name"),
        ({"knowledge_base": "nope"}, "knowledge_base", "no knowledge base 'nope'"),
        ({"knowledge_base": "private"}, "knowledge_base", "no knowledge base 'private'"),
        ({"index_version": "v9"}, "index_version", "no index version 'v9'; it has v1"),
    ],
)
async def test_a_wrong_query_names_the_field(client: Client, fields: dict[str, Any], field: str, expected: str) -> None:
    with pytest.raises(FactoryError, match=expected) as caught:
        await client.search(**{"query": "x", **fields})
    assert caught.value.field == field


# Permissions


async def test_a_search_finds_no_documents_of_another_tenant(client: Client) -> None:
    await client.ingest([BOOT])
    act_as(replace(CALLER, tenant="globex"))
    for mode in (pb.SEARCH_MODE_HYBRID, pb.SEARCH_MODE_LEXICAL, pb.SEARCH_MODE_DENSE):
        response = await client.search("khởi động máy tính", mode=mode)
        assert (list(response.passages), response.term_coverage) == ([], 0.0)
    assert [(index.documents, index.passages) for index in await client.indexes()] == [(0, 0)]
    assert await client.delete("boot") == 0
    assert outcomes(await client.ingest([BOOT])) == ["added"]
    act_as()
    assert outcomes(await client.ingest([BOOT])) == ["unchanged"]


async def test_a_tenants_scores_do_not_depend_on_anothers_documents(client: Client) -> None:
    await client.ingest([BOOT, RAID])
    before = await client.search("broken disk")
    act_as(replace(CALLER, tenant="globex"))
    await client.ingest([replace(RAID, id=f"d{i}", metadata={"n": str(i)}) for i in range(20)])
    act_as()
    assert await client.search("broken disk") == before


async def test_a_document_with_an_access_list_is_found_by_its_groups_only(client: Client) -> None:
    await client.ingest([replace(BOOT, groups=("board", "staff")), replace(RAID, groups=("board",))])
    assert ids(await client.search("disk khởi động")) == ["boot"]
    act_as(replace(CALLER, groups=("board",)))
    assert sorted(ids(await client.search("disk khởi động"))) == ["boot", "raid"]
    act_as(replace(CALLER, groups=()))
    assert ids(await client.search("disk khởi động")) == []


async def test_a_narrowed_access_list_applies_at_once_in_every_version(client: Client) -> None:
    await client.ingest([BOOT])
    version = (await client.build())[-1].index_version
    await client.ingest([replace(BOOT, groups=("board",))])
    for name in ("v1", version):
        assert ids(await client.search("khởi động", index_version=name)) == []


BUILD = pb.BuildIndexRequest(knowledge_base="docs")
DROP = pb.DropIndexRequest(knowledge_base="docs", index_version="v2")
SWAP = pb.SwapIndexRequest(knowledge_base="docs", index_version="v1")


async def collected(messages: AsyncIterator[Any]) -> list[Any]:
    return [message async for message in messages]


@pytest.mark.parametrize(
    ("permissions", "allowed"),
    [
        (("chat",), {"search", "indexes"}),
        (("ingest",), {"indexes", "ingest", "delete"}),
        (("operate",), {"build", "swap", "drop"}),
        ((), set()),
    ],
)
async def test_each_call_needs_its_permission(client: Client, permissions: tuple[str, ...], allowed: set[str]) -> None:
    act_as(replace(CALLER, permissions=permissions))
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "search": lambda: client.search("x"),
        "indexes": lambda: client.indexes(),
        "ingest": lambda: client.ingest([BOOT]),
        "build": lambda: collected(channels.stream(client.stub.BuildIndex, BUILD, timeout_seconds=60)),
        "swap": lambda: channels.unary(client.stub.SwapIndex, SWAP, timeout_seconds=10),
        "drop": lambda: channels.unary(client.stub.DropIndex, DROP, timeout_seconds=10),
        "delete": lambda: client.delete("x"),
    }
    for name, call in calls.items():
        if name in allowed:
            await call()
        else:
            with pytest.raises(PermissionDenied):
                await call()


# Index versions


async def test_a_build_serves_only_after_its_swap_which_can_be_undone(client: Client) -> None:
    await client.ingest([BOOT, RAID])
    steps = await client.build("nightly")
    assert (steps[0].state, steps[-1].state) == (pb.INDEX_STATE_BUILDING, pb.INDEX_STATE_READY)
    assert (steps[-1].index_version, steps[-1].passages_done) == ("v2", 2)
    assert (await client.search("disk")).index_version == "v1"
    assert await client.swap("v2") == pb.SwapIndexResponse(active_version="v2", previous_version="v1")
    assert (await client.search("disk")).index_version == "v2"
    assert await client.swap("v2") == pb.SwapIndexResponse(active_version="v2", previous_version="v1")
    assert await client.swap("v1") == pb.SwapIndexResponse(active_version="v1", previous_version="v2")
    assert ids(await client.search("broken disk"))[0] == "raid"


async def test_the_same_key_builds_once(client: Client) -> None:
    await client.ingest([BOOT])
    await client.build("k")
    (again,) = await client.build("k")
    assert (again.index_version, again.state) == ("v2", pb.INDEX_STATE_READY)
    assert len(await client.indexes()) == 2


async def test_only_the_version_before_the_active_one_is_kept(client: Client) -> None:
    await client.ingest([BOOT])
    for expected in ("v2", "v3"):
        assert (await client.build())[-1].index_version == expected
        await client.swap(expected)
    states = {index.version: pb.IndexState.Name(index.state) for index in await client.indexes()}
    assert states == {"v3": "INDEX_STATE_ACTIVE", "v2": "INDEX_STATE_PREVIOUS"}
    with pytest.raises(FactoryError, match="no index version 'v1'"):
        await client.search("x", index_version="v1")


async def test_a_new_version_has_the_new_chunking_and_the_old_one_keeps_its_own(client: Client) -> None:
    text = "# A\n\n" + " ".join(f"Sentence number {i} speaks of disks." for i in range(40))
    await client.ingest([Doc("long", text)])
    client.source.replace(specs.parse(FACTORY.replace("chunk_tokens: 64", "chunk_tokens: 200")))
    await client.build()
    await client.ingest([Doc("long2", text + " End.")])
    passages = {index.version: index.passages for index in await client.indexes()}
    assert passages["v2"] < passages["v1"]
    assert passages["v2"] % 2 == 0


async def test_documents_changed_during_a_build_are_updated_in_both_versions(client: Client) -> None:
    await client.ingest([Doc(f"d{i}", f"# T\n\nDocument number{i} about topic{i}") for i in range(40)])
    request = pb.BuildIndexRequest(knowledge_base="docs")
    with operating():
        build = channels.stream(client.stub.BuildIndex, request, timeout_seconds=60)
        steps = [await anext(build)]
    assert steps[0].state == pb.INDEX_STATE_BUILDING
    await client.ingest(
        [Doc("new", "A brandnew text"), Doc("d0", "Changed to other words"), Doc("d39", "Also changed")]
    )
    await client.delete("d1", "d38")
    steps += [step async for step in build]
    assert steps[-1].state == pb.INDEX_STATE_READY
    for version in ("v1", "v2"):
        for query, expected in [
            ("brandnew", ["new"]),
            ("topic0", []),
            ("topic39", []),
            ("topic1", []),
            ("topic38", []),
            ("topic20", ["d20"]),
        ]:
            found = await client.search(query, mode=pb.SEARCH_MODE_LEXICAL, index_version=version)
            assert ids(found) == expected, (version, query)
    totals = {(index.documents, index.passages) for index in await client.indexes()}
    assert totals == {(39, 39)}


async def test_a_build_is_cancelled_with_its_caller_and_can_be_started_again(client: Client) -> None:
    await client.ingest([Doc(f"d{i}", f"Document number{i}") for i in range(40)])
    request = pb.BuildIndexRequest(knowledge_base="docs", idempotency_key="k")
    with operating():
        build = channels.stream(client.stub.BuildIndex, request, timeout_seconds=60)
        await anext(build)
    with pytest.raises(FactoryError, match="Another build") as caught:
        await client.build("other")
    assert isinstance(caught.value, Conflict)
    await build.aclose()
    state = pb.INDEX_STATE_BUILDING
    while state != pb.INDEX_STATE_READY:  # until the server has noticed that its caller left
        with contextlib.suppress(Conflict):
            state = (await client.build("k"))[-1].state
    assert pb.INDEX_STATE_FAILED in [index.state for index in await client.indexes()]


@pytest.mark.parametrize(
    ("planted", "problem"),
    [
        (lambda points: [replace(p, passage=replace(p.passage, allowed_groups=())) for p in points], "access list"),
        (lambda points: [replace(p, passage=replace(p.passage, tenant="beta")) for p in points], "access list"),
        (lambda points: [], "no passage of document 'boot'"),
    ],
    ids=["groups lost", "another tenant", "a document lost"],
)
async def test_a_build_with_other_access_lists_or_documents_than_stored_fails_and_never_serves(
    client: Client,
    planted: Callable[[list[Point]], list[Point]],
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await client.ingest([replace(BOOT, groups=("it",)), RAID])
    real = Encoded.points

    def wrong(self: Encoded, revision: int, document: StoredDocument) -> list[Point]:
        points = list(real(self, revision, document))
        return planted(points) if document.document_id == BOOT.id else points

    monkeypatch.setattr(Encoded, "points", wrong)
    last = (await client.build())[-1]
    assert last.state == pb.INDEX_STATE_FAILED
    assert problem in last.problem
    with pytest.raises(FactoryError, match="no index version 'v2'"):
        await client.swap("v2")


async def test_a_version_that_does_not_serve_is_dropped_for_good(client: Client) -> None:
    await client.ingest([BOOT])
    await client.build("k")
    with operating():
        await channels.unary(client.stub.DropIndex, DROP, timeout_seconds=10)
        for version, problem in (("v2", "no index version 'v2'"), ("v1", "'v1' serves"), ("", "must name the version")):
            request = pb.DropIndexRequest(knowledge_base="docs", index_version=version)
            with pytest.raises(FactoryError, match=problem):
                await channels.unary(client.stub.DropIndex, request, timeout_seconds=10)
    (listed,) = await client.indexes()
    assert (listed.version, listed.chunk_tokens, listed.chunk_overlap_tokens) == ("v1", 64, 8)
    with pytest.raises(FactoryError, match="dropped since"):
        await client.build("k")


@pytest.mark.parametrize(
    ("version", "expected"), [("", "must name the version"), ("v9", "has no index version 'v9'; it has v1")]
)
async def test_the_error_for_a_wrong_swap_names_the_versions(client: Client, version: str, expected: str) -> None:
    with pytest.raises(FactoryError, match=expected) as caught:
        await client.swap(version)
    assert caught.value.field == "index_version"


@pytest.mark.parametrize(
    ("ids_", "field"),
    [((), "document_ids"), (tuple(map(str, range(1001))), "document_ids"), (("a", ""), "document_ids[1]")],
)
async def test_a_wrong_delete_names_the_field(client: Client, ids_: tuple[str, ...], field: str) -> None:
    with pytest.raises(FactoryError) as caught:
        await client.delete(*ids_)
    assert caught.value.field == field


async def test_each_search_during_swaps_reads_one_version(client: Client) -> None:
    """Each version cuts the document differently, so a mixture of two versions would show."""
    text = "# A\n\n" + " ".join(f"Sentence number {i} speaks of disks." for i in range(30))
    await client.ingest([Doc("long", text)])
    client.source.replace(specs.parse(FACTORY.replace("chunk_tokens: 64", "chunk_tokens: 100")))
    await client.build()
    expected = {}
    for version in ("v1", "v2"):
        found = await client.search("sentence disks", limit=50, index_version=version)
        expected[version] = [passage.text for passage in found.passages]
    assert expected["v1"] != expected["v2"]
    seen: list[str] = []
    done = asyncio.Event()

    async def ask() -> None:
        while not done.is_set():
            found = await client.search("sentence disks", limit=50)
            assert [passage.text for passage in found.passages] == expected[found.index_version]
            seen.append(found.index_version)

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(ask())
        for i in range(10):
            await client.swap("v2" if i % 2 == 0 else "v1")
            before = len(seen)
            while len(seen) < before + 8:
                await client.indexes()
        done.set()
    assert {"v1", "v2"} == set(seen)


async def test_searches_during_replacements_find_each_document_whole_either_old_or_new(client: Client) -> None:
    def edition(number: int) -> Doc:
        return Doc("manual", "".join(f"# Part {i}\n\nCommon words of edition{number}.\n\n" for i in range(6)))

    await client.ingest([edition(0)])
    editions: set[str] = set()
    done = asyncio.Event()

    async def ask() -> None:
        while not done.is_set():
            found = [passage.text for passage in (await client.search("common words", limit=50)).passages]
            assert len(found) == 6
            assert len(set(found)) == 1
            editions.update(found)

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(ask())
        for number in range(1, 12):
            assert outcomes(await client.ingest([edition(number)])) == ["replaced"]
        done.set()
    assert len(editions) > 3


# The process


async def test_what_was_stored_is_there_after_a_restart(tmp_path: Path, model_dir: Path) -> None:
    async with retriever(tmp_path / "d", model_dir) as client:
        await client.ingest([BOOT, replace(BOOT, id="copy"), RAID])
        await client.build()
        await client.swap("v2")
        before = await client.search("khởi động")
    async with retriever(tmp_path / "d", model_dir) as client:
        assert await client.search("khởi động") == before
        assert outcomes(await client.ingest([BOOT, replace(BOOT, id="copy")])) == ["unchanged", "duplicate"]


async def test_a_second_process_on_the_same_folder_is_refused(tmp_path: Path, model_dir: Path) -> None:
    async with retriever(tmp_path / "d", model_dir):
        with pytest.raises(Conflict, match="Another process uses"):
            async with retriever(tmp_path / "d", model_dir):
                pass


def test_the_retriever_does_not_start_without_the_gateways_key(tmp_path: Path) -> None:
    with pytest.raises(FactoryError, match="GENAIFACTORY_CONTEXT_PUBLIC_KEY"):
        create_app(Settings(data_dir=tmp_path), specs.Source(specs.parse(FACTORY)), Telemetry("retriever"))


async def test_a_knowledge_base_added_while_running_can_be_used(client: Client) -> None:
    client.source.replace(specs.parse(FACTORY.replace("{name: private", "{name: added}\n  - {name: private")))
    assert outcomes(await client.ingest([BOOT], knowledge_base="added")) == ["added"]
    assert ids(await client.search("USB", knowledge_base="added")) == ["boot"]
    assert ids(await client.search("USB")) == []


async def test_documents_are_counted_by_tenant_and_knowledge_base_also_those_no_longer_in_factory_yaml(
    client: Client,
) -> None:
    await client.ingest([BOOT, replace(BOOT, id="copy"), RAID])
    act_as(replace(CALLER, tenant="globex"))
    await client.ingest([BOOT])
    await client.ingest([RAID], knowledge_base="private")
    client.source.replace(
        specs.parse(FACTORY.replace("name: docs", "name: manuals").replace("name: acme", "name: new"))
    )
    request = pb.CountDocumentsRequest()
    with pytest.raises(PermissionDenied, match="operate"):
        await channels.unary(client.stub.CountDocuments, request, timeout_seconds=10)
    act_as(replace(CALLER, tenant="new", permissions=("operate",)))
    counts = (await channels.unary(client.stub.CountDocuments, request, timeout_seconds=10)).counts
    assert [(each.tenant, each.knowledge_base, each.documents) for each in counts] == [
        ("acme", "docs", 3),
        ("globex", "docs", 1),
        ("globex", "private", 1),
    ]


async def test_a_configuration_that_hides_stored_documents_is_logged_as_a_warning(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    await client.ingest([BOOT, RAID])
    client.source.replace(specs.parse(FACTORY.replace("name: acme", "name: new")))
    async with asyncio.timeout(10):
        while "nobody reaches 2 documents of tenant 'acme' in knowledge base 'docs'" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
