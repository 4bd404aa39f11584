"""Which web pages of a list are documents, and their contents."""

from __future__ import annotations

import asyncio
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from genaifactory_common import formats, specs
from genaifactory_common.concurrency import task_group
from genaifactory_common.errors import InvalidArgument, TooLarge
from genaifactory_pipelines.sources.fetching import Failed, Fetched, Fetcher
from genaifactory_pipelines.sources.printable import printable
from genaifactory_pipelines.sources.protocol import Content, Listing
from genaifactory_pipelines.sources.selection import Reason, Skipped

_HOSTS_AT_ONCE = 8
_MOST_BYTES = 2 << 30
"""Of all pages of a source, which are on disk until they are stored."""


@dataclass(frozen=True)
class Page:
    """A page that was fetched, or could not be."""

    document_id: str
    source_name: str
    uri: str
    """As factory.yaml names it, also where it leads on to another one."""
    file: Path
    outcome: Fetched | Failed

    async def content(self) -> Content | str:
        """See Document."""
        if isinstance(self.outcome, Failed):
            return self.outcome.why
        return Content(await asyncio.to_thread(self.file.read_bytes), self.outcome.media_type)


@asynccontextmanager
async def reading(source: specs.PagesSource) -> AsyncIterator[Listing]:
    """Fetches the pages of a list of factory.yaml, of each host one after the other. Raises FactoryError."""
    fetcher = Fetcher(source.private_addresses, await asyncio.to_thread(httpx2.create_ssl_context))
    async with _folder() as folder:
        yield await listed(source, fetcher, folder)


async def listed(source: specs.PagesSource, fetcher: Fetcher, folder: Path) -> Listing:
    """The pages, which are in the folder. One that cannot be fetched now is a document that cannot be read.

    Raises InvalidArgument for a URL that is none, TooLarge when the pages are together more than a source may have.
    """
    named: dict[str, str] = {}
    skipped: list[Skipped] = []
    for url in dict.fromkeys(source.urls):
        name = _id(source, url)
        if name in named or len(name) > formats.MAX_ID_CHARACTERS:
            skipped.append(Skipped(name, Reason.TWIN if name in named else Reason.LONG))
        else:
            named[name] = url
    pages = await _fetched(source, fetcher, folder, named)
    gone = [each for each in pages if isinstance(each.outcome, Failed) and each.outcome.gone]
    skipped += [Skipped(each.document_id, each.outcome.why) for each in gone if isinstance(each.outcome, Failed)]
    return Listing(sorted((each for each in pages if each not in gone), key=lambda each: each.document_id), skipped)


async def _fetched(source: specs.PagesSource, fetcher: Fetcher, folder: Path, named: dict[str, str]) -> Sequence[Page]:
    hosts: defaultdict[str, list[str]] = defaultdict(list)
    for name, url in named.items():
        hosts[httpx2.URL(url).host].append(name)
    order = {name: number for number, name in enumerate(named)}
    places = asyncio.Semaphore(_HOSTS_AT_ONCE)
    pages: list[Page] = []

    async def of_host(names: list[str]) -> None:
        async with places:
            for number, name in enumerate(names):
                if number:
                    await asyncio.sleep(source.pause_seconds)
                file = folder / str(order[name])
                pages.append(Page(name, source.name, named[name], file, await fetcher.fetch(named[name], file)))
                _require_room(source, pages)

    async with task_group() as group:
        for names in hosts.values():
            group.create_task(of_host(names))
    return pages


def _require_room(source: specs.PagesSource, pages: Sequence[Page]) -> None:
    if sum(each.outcome.size_bytes for each in pages if isinstance(each.outcome, Fetched)) > _MOST_BYTES:
        raise TooLarge(
            f"The pages of the source '{source.name}' have more than {_MOST_BYTES >> 30} GiB. Make several sources.",
            field=f"sources[{source.name}].urls",
        )


def _id(source: specs.PagesSource, url: str) -> str:
    try:
        parts = httpx2.URL(url)
    except httpx2.InvalidURL:
        raise InvalidArgument(f"'{url}' is no valid URL.", field=f"sources[{source.name}].urls") from None
    place = f"{parts.host}:{parts.port}" if parts.port else parts.host
    return f"{source.name}/{printable(place + parts.raw_path.decode('ascii'))}"


@asynccontextmanager
async def _folder() -> AsyncIterator[Path]:
    folder = await asyncio.to_thread(tempfile.TemporaryDirectory, prefix="genaifactory-pages-")
    try:
        yield Path(folder.name)
    finally:
        await asyncio.to_thread(folder.cleanup)
