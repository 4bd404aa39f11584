"""Brings knowledge bases to the state of sources: stores their documents, removes those gone from a source."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Any

import grpc.aio

from genaifactory_common import specs
from genaifactory_common.errors import Conflict, InvalidArgument, PermissionDenied
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.sources import sending, store
from genaifactory_pipelines.sources.protocol import Listing, Skipped
from genaifactory_pipelines.sources.sending import Summary
from genaifactory_pipelines.sources.store import Store

_PACKAGE = __name__.rpartition(".")[0]


@dataclass(frozen=True)
class Synced:
    """What reading a source has changed."""

    source: str
    summary: Summary
    skipped: Sequence[Skipped]
    complete: bool
    """Every document could be looked for, read and stored."""


@dataclass(frozen=True)
class _Plan:
    """What is to be sent and removed."""

    source: specs.AnySource
    store: Store
    listing: Listing
    gone: list[str]


def chosen(factory: specs.Factory, names: Sequence[str], *, field: str) -> list[specs.AnySource]:
    """The sources of these names, each once; all without names. Raises InvalidArgument for an unknown one."""
    known: Mapping[str, specs.AnySource] = {source.name: source for source in factory.sources}
    for name in names:
        if name not in known:
            raise InvalidArgument(
                f"There is no source '{name}' in factory.yaml; there are: {', '.join(known) or 'none'}.", field=field
            )
    return [known[name] for name in dict.fromkeys(names)] if names else list(factory.sources)


async def synchronise(
    channel: grpc.aio.Channel,
    sources: Sequence[specs.AnySource],
    progress: Progress,
    *,
    shrinking: bool = False,
) -> list[Synced]:
    """Reads sources. channel: to the gateway, with the key of the tenant that the documents are for.

    All sources are listed before anything is sent; of each, documents are removed after the others were sent.
    shrinking: whatever share of the documents is gone. Raises FactoryError; Conflict, before anything is changed, when
    more is gone from one than its bound or its ids are another's; PermissionDenied, before anything of the source is
    removed, when the key may not see its documents.
    """
    async with AsyncExitStack() as stack:
        plans = []
        for source in sources:
            progress.line(f"{source.name}: listing")
            listing = await stack.enter_async_context(_reading(source))
            plans.append(await _plan(Store(channel, source.knowledge_base), source, listing, shrinking))
        return [await _carry_out(plan, progress) for plan in plans]


def _reading(source: specs.AnySource) -> AbstractAsyncContextManager[Listing]:
    """The module that is named like the source's type lists it; its documents can be read inside the block."""
    kind: Any = importlib.import_module(f"{_PACKAGE}.{source.type}")
    listing: AbstractAsyncContextManager[Listing] = kind.reading(source)
    return listing


async def _plan(stored: Store, source: specs.AnySource, listing: Listing, shrinking: bool) -> _Plan:
    await _require_own_ids(stored, source.name)
    here = {document.document_id for document in listing.documents}
    gone = await store.gone(stored, source.name, here, listing.unknown)
    if not shrinking:
        await _require_enough_left(stored, source, len(gone))
    return _Plan(source, stored, listing, gone)


async def _carry_out(plan: _Plan, progress: Progress) -> Synced:
    documents = plan.listing.documents
    with progress.counting(f"{plan.source.name}: documents", len(documents)) as report:
        summary = await sending.ingest(
            plan.store.channel,
            plan.store.knowledge_base,
            documents,
            groups=plan.source.groups,
            on_progress=lambda so_far: report(so_far.done),
        )
    await _require_seen(plan, {failure.document_id for failure in summary.failures})
    summary.removed = len(plan.gone) - len(await plan.store.remove(plan.gone))
    complete = not summary.failures and not plan.listing.unknown
    return Synced(plan.source.name, summary, plan.listing.skipped, complete)


async def _require_seen(plan: _Plan, failed: set[str]) -> None:
    """Documents that the key may not see are never found to be gone."""
    groups = plan.source.groups
    if not groups:
        return
    seen = {each.document_id async for each in store.stored(plan.store, source=plan.source.name)}
    if not {each.document_id for each in plan.listing.documents} <= seen | failed:
        name = plan.source.name
        raise PermissionDenied(
            f"The documents of the source '{name}' were stored for the groups {', '.join(groups)}, and the API key has "
            "none of them: it cannot be found out what is gone from the source, so nothing was removed. Use a key with "
            "one of these groups, or with the permission 'operate'.",
            field=f"sources[{name}].groups",
        )


async def _require_own_ids(stored: Store, name: str) -> None:
    """Another source's documents of the same ids would be overwritten, and each of the two would remove the other's."""
    async for document in store.stored(stored, prefix=f"{name}/"):
        if document.source != name:
            other = f"'{document.source}'" if document.source else "a client"
            raise Conflict(
                f"The document '{document.document_id}' is from {other}, and the ids of the source '{name}' begin with "
                f"'{name}/' too. Rename the source in factory.yaml, or remove those documents first "
                "(`genaifactory documents remove`).",
                field="sources",
            )


async def _require_enough_left(stored: Store, source: specs.AnySource, gone: int) -> None:
    before = (await stored.page(source=source.name, size=1)).total
    if before and (before - gone) / before < source.least_share:
        raise Conflict(
            f"{gone:,} of the {before:,} stored documents of the source '{source.name}' are gone from it, and its "
            f"least_share is {source.least_share:g}: nothing was changed. Check the place; when it is as it should be, "
            "allow it with --shrinking.",
            field=f"sources[{source.name}].least_share",
        )
