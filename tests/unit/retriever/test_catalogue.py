"""Which documents a caller may list, read and remove."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from genaifactory.retriever.v1 import retriever_pb2 as pb
from genaifactory_common import bounds, channels
from genaifactory_common.errors import InvalidArgument, NotFound, PermissionDenied
from genaifactory_common.minilm import MiniLM
from genaifactory_common.testing import CALLER, act_as
from tests.unit.retriever.conftest import Client, Doc, retriever

OPERATOR = replace(CALLER, permissions=("ingest", "operate"), groups=())
BOOT = Doc("guide/boot", "# Boot\n\nPlug in the stick.\n\n## BIOS\n\nPress F2.\n", "guide/boot.md")
PAY = Doc("hr/pay", "# Pay\n\nOn the 25th.", "hr/pay.md", groups=("hr",))
STAFF = Doc("staff", "# Canteen\n\nOpens at noon.", "staff.md", groups=("staff", "hr"))


@pytest.fixture(autouse=True)
def caller() -> None:
    act_as()


async def listed(client: Client, **fields: Any) -> pb.ListDocumentsResponse:
    request = pb.ListDocumentsRequest(**({"knowledge_base": "docs"} | fields))
    return await channels.unary(client.stub.ListDocuments, request, timeout_seconds=10)


async def shown(client: Client, document_id: str, **fields: Any) -> pb.GetDocumentResponse:
    request = pb.GetDocumentRequest(document_id=document_id, **({"knowledge_base": "docs"} | fields))
    return await channels.unary(client.stub.GetDocument, request, timeout_seconds=10)


async def removed(client: Client, *ids: str) -> pb.DeleteDocumentsResponse:
    request = pb.DeleteDocumentsRequest(knowledge_base="docs", document_ids=ids)
    return await channels.unary(client.stub.DeleteDocuments, request, timeout_seconds=10)


def ids(page: pb.ListDocumentsResponse) -> list[str]:
    return [document.document_id for document in page.documents]


async def test_a_listed_document_has_its_origin_and_time(client: Client) -> None:
    before = time.time()
    await client.ingest([replace(BOOT, metadata={"year": "2026"}, language="en", source="/home/an/guide")])
    (document,) = (await listed(client)).documents
    assert (document.document_id, document.uri, document.title) == ("guide/boot", "guide/boot.md", "Boot")
    assert (document.media_type, document.size_bytes) == ("text/markdown", len(BOOT.text))
    assert (document.language, dict(document.metadata)) == ("en", {"year": "2026"})
    assert document.source == "/home/an/guide"
    assert document.passages == 2
    assert before - 1 < document.store_time.ToNanoseconds() / 1e9 < time.time() + 1


async def test_a_document_without_a_title_is_named_by_its_decoded_path(client: Client) -> None:
    await client.ingest([Doc("a#b?", "Some text.", "docs/a%23b%3F 100%25.txt")])
    assert (await shown(client, "a#b?")).document.title == "a#b? 100%"


async def test_pages_have_no_gap_and_no_repetition(client: Client) -> None:
    names = [f"{folder}/Đ{number}" for folder in ("a", "b") for number in range(5)]
    await client.ingest([Doc(name, f"Text of {name}.") for name in names])
    found: list[str] = []
    token = ""
    while True:
        page = await listed(client, page_size=3, page_token=token)
        assert page.total == 10
        found += ids(page)
        token = page.next_page_token
        if not token:
            break
    assert found == sorted(names)
    assert ids(await listed(client, prefix="b/Đ", page_size=bounds.MAX_DOCUMENTS)) == names[5:]
    assert ids(await listed(client, prefix="b/_")) == []
    assert (await listed(client, prefix="b/", page_size=2)).total == 5


async def test_documents_are_found_by_their_source(client: Client) -> None:
    await client.ingest([replace(BOOT, source="/a"), replace(STAFF, source="/b")])
    assert ids(await listed(client, source="/a")) == ["guide/boot"]
    assert ids(await listed(client, source="/")) == []


async def test_a_caller_lists_documents_without_groups_and_of_its_own_groups_only(client: Client) -> None:
    await client.ingest([BOOT, PAY, STAFF])
    assert ids(await listed(client)) == ["guide/boot", "staff"]
    assert (await listed(client)).total == 2
    with pytest.raises(NotFound, match="no document 'hr/pay'"):
        await shown(client, "hr/pay")
    response = await removed(client, "hr/pay", "guide/boot", "guide/boot")
    assert (response.deleted, list(response.missing_ids)) == (1, ["hr/pay"])
    act_as(OPERATOR)
    assert ids(await listed(client)) == ["hr/pay", "staff"]
    assert list((await shown(client, "hr/pay")).document.allowed_groups) == ["hr"]
    assert (await removed(client, "hr/pay")).deleted == 1


async def test_a_caller_does_not_replace_a_document_that_it_may_not_see(client: Client) -> None:
    await client.ingest([PAY, BOOT])
    everyone = replace(PAY, text="# Pay\n\nWhenever I like.", groups=())
    changed = replace(BOOT, text="# Boot\n\nPress F12.\n")
    stolen, other = await client.ingest([everyone, changed])
    assert (stolen.outcome, stolen.error_reason) == (pb.INGEST_OUTCOME_REJECTED, "PERMISSION_DENIED")
    assert "may not see" in stolen.error_message
    assert "hr" not in stolen.error_message.replace("hr/pay", "")
    assert other.outcome == pb.INGEST_OUTCOME_REPLACED
    act_as(replace(CALLER, groups=("hr",)))
    assert (await shown(client, "hr/pay")).sections[0].text == "On the 25th."
    (found,) = await client.ingest([everyone])
    assert found.outcome == pb.INGEST_OUTCOME_REPLACED
    act_as(OPERATOR)
    (found,) = await client.ingest([PAY])
    assert found.outcome == pb.INGEST_OUTCOME_REPLACED


async def test_no_tenant_lists_documents_of_another(client: Client) -> None:
    await client.ingest([BOOT])
    act_as(replace(OPERATOR, tenant="globex"))
    assert ids(await listed(client)) == []
    with pytest.raises(NotFound):
        await shown(client, "guide/boot")
    assert (await removed(client, "guide/boot")).deleted == 0
    act_as()
    assert ids(await listed(client)) == ["guide/boot"]


@pytest.mark.parametrize("permission", ["chat", "operate", "export"])
async def test_listing_documents_needs_the_permission_ingest(client: Client, permission: str) -> None:
    act_as(replace(CALLER, permissions=(permission,)))
    for call in (listed(client), shown(client, "guide/boot"), removed(client, "guide/boot")):
        with pytest.raises(PermissionDenied, match="no permission 'ingest'"):
            await call


async def test_a_tenant_that_is_not_in_factory_yaml_is_refused(client: Client) -> None:
    """Even with a valid token: no caller could read its documents."""
    act_as(replace(OPERATOR, tenant="nope", permissions=("chat", "ingest", "operate")))
    for call in (client.ingest([BOOT]), client.search("boot"), listed(client), client.indexes()):
        with pytest.raises(PermissionDenied, match=r"factory\.yaml has no tenant 'nope'") as caught:
            await call
        assert "globex" not in caught.value.message


async def test_the_error_for_an_unknown_knowledge_base_names_those_of_the_tenant(client: Client) -> None:
    for call in (listed(client, knowledge_base="nope"), client.ingest([BOOT], knowledge_base="private")):
        with pytest.raises(NotFound, match="there are: docs") as caught:
            await call
        assert caught.value.field == "knowledge_base"


async def test_pieces_of_a_documents_sections_add_up_to_its_text(client: Client) -> None:
    await client.ingest([BOOT])
    whole = await shown(client, "guide/boot")
    assert [(list(each.headings), each.text) for each in whole.sections] == [
        (["Boot"], "Plug in the stick."),
        (["Boot", "BIOS"], "Press F2."),
    ]
    assert whole.next_offset == 0
    pieces: list[tuple[int, str]] = []
    start = 0
    while True:
        piece = await shown(client, "guide/boot", start_offset=start, max_characters=7)
        pieces += [(each.start_offset, each.text) for each in piece.sections]
        start = piece.next_offset
        if not start:
            break
    for each in whole.sections:
        inside = "".join(text for at, text in pieces if each.start_offset <= at < each.end_offset)
        assert inside == each.text
    assert not (await shown(client, "guide/boot", start_offset=4_000_000_000)).sections


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"page_size": bounds.MAX_DOCUMENTS + 1}, "page_size"),
        ({"prefix": "a\nb"}, "prefix"),
        ({"source": "x" * 1025}, "source"),
        ({"page_token": "\0"}, "page_token"),
        ({"knowledge_base": ""}, "knowledge_base"),
    ],
)
async def test_a_wrong_list_request_is_refused_with_its_field(
    client: Client, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await listed(client, **fields)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("document_id", "fields", "field"),
    [
        ("", {}, "document_id"),
        ("x" * 513, {}, "document_id"),
        ("x", {"max_characters": bounds.MAX_TEXT_CHARACTERS + 1}, "max_characters"),
    ],
)
async def test_a_wrong_get_request_is_refused_with_its_field(
    client: Client, document_id: str, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await shown(client, document_id, **fields)
    assert caught.value.field == field


@pytest.mark.allow_blocking  # writes to the closed library as another version does
async def test_a_library_of_the_previous_version_is_upgraded_and_still_works_after_a_rollback(
    tmp_path: Path, model_dir: Path, model: MiniLM
) -> None:
    async with retriever(tmp_path, model_dir) as client:
        await client.ingest([BOOT])
    with sqlite3.connect(tmp_path / "library.sqlite") as connection:  # the file of the previous version
        connection.execute("DROP TABLE origins")
    connection.close()
    async with retriever(tmp_path, model_dir) as client:
        (document,) = (await listed(client)).documents
        assert (document.document_id, document.media_type, document.size_bytes) == ("guide/boot", "", 0)
        assert not document.HasField("store_time")
        again = await client.ingest([BOOT])
        assert again[0].outcome == pb.INGEST_OUTCOME_UNCHANGED
        # The previous version has no origins: its writes leave one without a document, which the next start deletes.
        await client.ingest([replace(BOOT, text="# Boot\n\nAnother text.")])
    with sqlite3.connect(tmp_path / "library.sqlite") as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        assert version == 1
        connection.execute("INSERT INTO origins VALUES (99999, 'text/plain', 1, 1.0, '')")
    connection.close()
    async with retriever(tmp_path, model_dir) as client:
        assert (await listed(client)).documents[0].media_type == "text/markdown"
    with sqlite3.connect(tmp_path / "library.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM origins").fetchone() == (1,)
    connection.close()


async def test_a_source_with_a_line_break_is_refused_with_its_document_only(client: Client) -> None:
    bad, good = await client.ingest([replace(BOOT, source="a\nb"), STAFF])
    assert (bad.outcome, good.outcome) == (pb.INGEST_OUTCOME_REJECTED, pb.INGEST_OUTCOME_ADDED)
    assert "source must not hold control characters" in bad.error_message
