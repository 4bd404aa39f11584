"""Documents of an upload are written together: each write syncs the disk, and searches wait meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from genaifactory_retriever import ingestion
from genaifactory_retriever.ingestion import Header, Upload, _Ordered, _Ready


def _ready(name: str) -> _Ready:
    return _Ready(Upload(Header(name, "", "", "", "", {}, ()), b""), 0)


async def _prepared(name: str, begin: asyncio.Event) -> _Ready:
    await begin.wait()
    return _ready(name)


def _ids(batch: list[_Ready]) -> list[str]:
    return [ready.upload.header.document_id for ready in batch]


async def test_an_encoded_document_waits_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingestion, "_BATCH_SECONDS", 60.0)
    ordered, first, others = _Ordered(8), asyncio.Event(), asyncio.Event()
    for name, begin in (("a", first), ("b", others), ("c", others)):
        await ordered.put(asyncio.create_task(_prepared(name, begin)))
    ordered.end()
    first.set()
    batch = asyncio.create_task(ordered.batch())
    await asyncio.sleep(0.02)
    assert not batch.done()
    others.set()
    async with asyncio.timeout(10):
        assert _ids(await batch) == ["a", "b", "c"]
    assert ordered.ended


async def test_a_slow_document_delays_those_before_it_only_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingestion, "_BATCH_SECONDS", 0.02)
    ordered, at_once, later = _Ordered(8), asyncio.Event(), asyncio.Event()
    at_once.set()
    for name, begin in (("a", at_once), ("slow", later), ("b", at_once)):
        await ordered.put(asyncio.create_task(_prepared(name, begin)))
    async with asyncio.timeout(10):
        assert _ids(await ordered.batch()) == ["a"]
        later.set()
        assert _ids(await ordered.batch()) == ["slow", "b"]


async def test_an_upload_with_no_other_behind_it_is_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingestion, "_BATCH_SECONDS", 60.0)
    ordered, at_once = _Ordered(8), asyncio.Event()
    at_once.set()
    await ordered.put(asyncio.create_task(_prepared("a", at_once)))
    async with asyncio.timeout(10):
        assert _ids(await ordered.batch()) == ["a"]
    assert not ordered.ended
