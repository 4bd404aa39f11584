"""Stored items that a document hides."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from genaifactory_common import specs, stored
from genaifactory_common.errors import Unavailable
from genaifactory_common.stored import Stored

KEYS = "keys: [{{id: {0}, sha256: {1}, role: user}}]"
FACTORY = f"""
tenants:
- {{name: acme, {KEYS.format("alice", "a" * 64)}}}
- {{name: rival, {KEYS.format("bob", "b" * 64)}}}
roles: [{{name: user, permissions: [chat]}}]
models: [{{name: small, backend: {{type: modelserver, model: small}}}}]
routes:
- {{name: docs, task: rag, models: [small], prompt: rag, knowledge_base: handbook}}
prompts: [{{name: rag, version: 1, system: Answer.}}]
knowledge_bases: [{{name: handbook}}, {{name: wiki, tenants: [acme, rival]}}]
policies: [{{name: default}}]
"""
HELD = (
    Stored("acme", "documents", 168, "handbook"),
    Stored("acme", "conversations", 1),
    Stored("acme", "requests on record", 12),
    Stored("rival", "documents", 1, "handbook"),
)


def document(*replacements: tuple[str, str]) -> specs.Factory:
    text = FACTORY
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    return specs.parse(text)


def test_a_document_with_the_names_of_all_stored_items_hides_nothing() -> None:
    assert stored.hidden(document(), HELD) == ()
    assert stored.hidden(document(), ()) == ()


def test_a_renamed_tenant_hides_all_its_items_in_one_finding() -> None:
    (found,) = stored.hidden(document(("acme", "acme2")), HELD)
    assert found.renamed
    assert str(found) == (
        "tenants[acme]: there is no tenant 'acme' (there is: acme2, rival), so nobody reaches 1 conversation of "
        "tenant 'acme', 168 documents of tenant 'acme' in knowledge base 'handbook' and 12 requests on record of "
        "tenant 'acme'. Name it 'acme' again; or, to accept that, write it into retired.tenants."
    )


def test_a_renamed_knowledge_base_hides_the_documents_of_every_tenant_in_it() -> None:
    (found,) = stored.hidden(document(("handbook", "manual")), HELD)
    assert found.renamed
    assert str(found) == (
        "knowledge_bases[handbook]: there is no knowledge base 'handbook' (there is: manual, wiki), so nobody reaches "
        "168 documents of tenant 'acme' in knowledge base 'handbook' and 1 document of tenant 'rival' in knowledge "
        "base 'handbook'. Name it 'handbook' again; or, to accept that, write it into retired.knowledge_bases."
    )


@pytest.mark.parametrize(
    ("old", "new", "path", "remedy"),
    [
        (KEYS.format("alice", "a" * 64), "keys: []", "tenants[acme].keys", "Give it one."),
        ("{name: handbook}", "{name: handbook, tenants: [rival]}", "knowledge_bases[handbook].tenants", "Add 'acme'"),
        ("base: handbook", "base: wiki", "knowledge_bases[handbook]", "Name it in a route's knowledge_base."),
    ],
)
def test_a_removed_permission_is_found_and_distinguished_from_a_removed_name(
    old: str, new: str, path: str, remedy: str
) -> None:
    (found,) = stored.hidden(document((old, new)), HELD)
    assert (found.path, found.renamed) == (path, False)
    assert Stored("acme", "documents", 168, "handbook") in found.what
    assert remedy in found.remedy


def test_items_under_a_retired_name_are_not_reported() -> None:
    changed = (("acme", "acme2"), ("handbook", "manual"))
    assert len(stored.hidden(document(*changed), HELD)) == 2
    tenant = ("policies:", "retired: {tenants: [acme]}\npolicies:")
    assert [each.path for each in stored.hidden(document(*changed, tenant), HELD)] == ["knowledge_bases[handbook]"]
    both = ("policies:", "retired: {tenants: [acme], knowledge_bases: [handbook]}\npolicies:")
    assert stored.hidden(document(*changed, both), HELD) == ()


def test_a_name_cannot_be_retired_and_in_use() -> None:
    for name, held in (("tenants", "rival"), ("knowledge_bases", "wiki")):
        with pytest.raises(specs.InvalidConfiguration, match=rf"retired\.{name}\[0\]: '{held}' is in {name}"):
            document(("policies:", f"retired: {{{name}: [{held}]}}\npolicies:"))


def test_newly_hidden_omits_what_the_earlier_document_hid() -> None:
    before, after = document(("acme", "acme2")), document(("acme", "acme3"), ("handbook", "manual"))
    assert [each.path for each in stored.newly_hidden(before, after, HELD)] == ["knowledge_bases[handbook]"]
    assert stored.newly_hidden(after, after, HELD) == ()
    assert [each.path for each in stored.newly_hidden(document(), before, HELD)] == ["tenants[acme]"]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # what is tested runs beside
            await asyncio.sleep(0.001)


async def test_a_service_logs_each_finding_once_at_its_start_and_after_changes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "_RETRY_SECONDS", 0.001)
    source = specs.Source(document(("acme", "acme2")))
    looks: list[int] = []

    async def look() -> tuple[Stored, ...]:
        looks.append(len(looks))
        if len(looks) == 1:
            raise Unavailable("The store is away.")
        return HELD

    def warnings() -> list[str]:
        return [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]

    def gauge() -> float:
        samples = next(iter(stored.HIDDEN.collect())).samples
        return next(each.value for each in samples if each.labels == {"kind": "documents"})

    async with stored.reported(source, "documents", look):
        await until(lambda: len(warnings()) == 1)
        assert "tenants[acme]: there is no tenant 'acme'" in warnings()[0]
        assert gauge() == 181
        source.replace(source.current)
        await until(lambda: len(looks) == 3)
        source.replace(document(("acme", "acme2"), ("handbook", "manual")))
        await until(lambda: len(warnings()) == 2)
        assert "knowledge_bases[handbook]" in warnings()[1]
        source.replace(document())
        await until(lambda: gauge() == 0)
    assert len(warnings()) == 2
