"""Which objects of a bucket are documents, and their contents."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from genaifactory_common import formats, object_storage, specs
from genaifactory_common.errors import TooLarge, Unavailable, Unimplemented
from genaifactory_pipelines.sources.printable import printable
from genaifactory_pipelines.sources.protocol import Content, Listing
from genaifactory_pipelines.sources.selection import EMPTY, LARGE, Reason, Skipped, is_document, is_wanted

_PAGE = 1000
_PAGE_SECONDS = 120.0
_OBJECT_SECONDS = 120.0
_MOST = 200_000
"""Objects that are listed; their names are held in memory."""


@dataclass(frozen=True)
class Object:
    """An object to be ingested."""

    document_id: str
    source_name: str
    key: str
    """Below the prefix of the source."""
    size_bytes: int
    source: specs.BucketSource
    store: Any

    @property
    def uri(self) -> str:
        """Its id as a relative URL: browsers cannot open what is in a bucket."""
        return formats.uri(self.document_id)

    async def content(self) -> Content | str:
        """See Document. Raises FactoryError when the bucket cannot be read."""
        import obstore

        if not self.size_bytes:
            return EMPTY
        if self.size_bytes > formats.MAX_DOCUMENT_BYTES:
            return LARGE
        try:
            async with _reading(self.source, _OBJECT_SECONDS):
                got = await obstore.get_async(self.store, self.key)
                if got.meta["size"] > formats.MAX_DOCUMENT_BYTES:
                    return f"has grown to more than {formats.MAX_DOCUMENT_BYTES >> 20} MiB"
                return Content(bytes(await got.bytes_async()))
        except FileNotFoundError:
            return "vanished while it was read"


@asynccontextmanager
async def reading(source: specs.BucketSource) -> AsyncIterator[Listing]:
    """Lists a bucket of factory.yaml, below the prefix of its URL. Raises FactoryError."""
    if importlib.util.find_spec("obstore") is None:
        raise Unimplemented("Buckets need genaifactory-pipelines[storage] installed here.", field="sources")
    with object_storage.translated(source.url, field="sources"):
        store = await asyncio.to_thread(object_storage.opened, source.url)
    found: dict[str, Object] = {}
    skipped: list[Skipped] = []
    async for key, size in _keys(source, store):
        if not is_wanted(source, printable(key)):
            continue
        each = Object(f"{source.name}/{printable(key)}", source.name, key, size, source, store)
        why = _no_document(each, found)
        if why is None:
            found[each.document_id] = each
        else:
            skipped.append(Skipped(each.document_id, why))
    yield Listing([found[name] for name in sorted(found)], skipped)


async def _keys(source: specs.BucketSource, store: Any) -> AsyncIterator[tuple[str, int]]:
    """Key and size of each object. Raises FactoryError."""
    import obstore

    pages = aiter(obstore.list(store, chunk_size=_PAGE))
    count = 0
    while True:
        async with _reading(source, _PAGE_SECONDS):
            page = await anext(pages, None)
        if page is None:
            return
        count += len(page)
        if count > _MOST:
            raise TooLarge(
                f"{source.url} has more than {_MOST:,} objects. Give the URL a longer prefix, or make several sources.",
                field="sources",
            )
        for each in page:
            yield each["path"], each["size"]


@asynccontextmanager
async def _reading(source: specs.BucketSource, seconds: float) -> AsyncIterator[None]:
    try:
        with object_storage.translated(source.url, field="sources"):
            async with asyncio.timeout(seconds):
                yield
    except TimeoutError:
        raise Unavailable(f"{source.url} did not answer within {seconds:.0f} s.", field="sources") from None


def _no_document(each: Object, found: dict[str, Object]) -> str | None:
    """Why not; None: it is one."""
    if any(part.startswith(".") for part in each.key.split("/")):
        return Reason.HIDDEN
    if not is_document(each.key):
        return Reason.TYPE
    if len(each.document_id) > formats.MAX_ID_CHARACTERS:
        return Reason.LONG
    return Reason.TWIN if each.document_id in found else None
