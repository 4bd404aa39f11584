"""Finds stored items that a document hides: they stay stored, but no caller can reach them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from prometheus_client import Gauge

from genaifactory_common import background, specs
from genaifactory_common.errors import FactoryError

logger = logging.getLogger(__name__)

Kind = Literal["documents", "conversations", "requests on record"]

HIDDEN = Gauge(
    "genaifactory_configuration_hidden",
    "Stored items that nobody reaches, since factory.yaml does not name their tenant or knowledge base. Alert on it.",
    ["kind"],
)

_ONE: dict[Kind, str] = {
    "documents": "document",
    "conversations": "conversation",
    "requests on record": "request on record",
}
_RETRY_SECONDS = 10.0


@dataclass(frozen=True, order=True)
class Stored:
    """The number of items that a service stores under one pair of names."""

    tenant: str
    kind: Kind
    count: int
    knowledge_base: str = ""
    """For documents."""


@dataclass(frozen=True)
class Hidden:
    """Stored items that nobody reaches while a document is in force."""

    path: str
    """The path of the entry that is missing or excludes them: "tenants[dev]"."""
    what: tuple[Stored, ...]
    problem: str
    remedy: str
    renamed: bool
    """Whether a name is gone, perhaps changed by mistake, and not a permission."""

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}, so nobody reaches {_enumerated(self.what)}. {self.remedy}"


def hidden(factory: specs.Factory, stored: Iterable[Stored]) -> tuple[Hidden, ...]:
    """The items that the document hides, sorted by path, without those of names that it lists in `retired`."""
    found: dict[str, Hidden] = {}
    for (tenant, base), group in groupby(sorted(stored, key=_names), key=_names):
        entry = _obstacle(factory, tenant, base, tuple(each for each in group if each.count))
        if entry is not None and entry.what:
            before = found.get(entry.path)
            what = (*before.what, *entry.what) if before is not None else entry.what
            found[entry.path] = Hidden(entry.path, what, entry.problem, entry.remedy, entry.renamed)
    return tuple(found[path] for path in sorted(found))


def newly_hidden(before: specs.Factory, after: specs.Factory, stored: Sequence[Stored]) -> tuple[Hidden, ...]:
    """The items that the later document hides and the earlier one does not."""
    known = {each.path for each in hidden(before, stored)}
    return tuple(each for each in hidden(after, stored) if each.path not in known)


@asynccontextmanager
async def reported(
    source: specs.Source, kind: Kind, look: Callable[[], Awaitable[Sequence[Stored]]]
) -> AsyncIterator[None]:
    """Logs, inside the block, what the document in force hides of a service's store: now and after each change.

    look: returns the content of the store.
    """
    changed = asyncio.Event()
    source.follow(lambda _: changed.set())

    async def report() -> None:
        known: tuple[str, ...] = ()
        while True:
            changed.clear()
            try:
                found = hidden(source.current, await look())
            except FactoryError as error:
                logger.info("the stored %s that factory.yaml hides cannot be counted yet: %s", kind, error.message)
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            except Exception:  # a broken store, which its other users report too
                logger.exception("the stored %s that factory.yaml hides cannot be counted", kind)
                await changed.wait()
                continue
            HIDDEN.labels(kind).set(sum(each.count for entry in found for each in entry.what))
            lines = tuple(map(str, found))
            for line in lines:
                if line not in known:
                    logger.warning("factory.yaml: %s", line)
            known = lines
            await changed.wait()

    async with background.running(report(), name=f"hidden-{kind}"):
        yield


def _obstacle(factory: specs.Factory, tenant: str, base: str, what: tuple[Stored, ...]) -> Hidden | None:
    """The first reason for which nobody reaches the items of these names; None: a caller may."""
    if tenant in factory.retired.tenants or base in factory.retired.knowledge_bases:
        return None
    spec = next((each for each in factory.tenants if each.name == tenant), None)
    if spec is None:
        return _gone("tenants", tenant, "tenant", [each.name for each in factory.tenants], what)
    if not spec.keys:
        return Hidden(f"tenants[{tenant}].keys", what, "the tenant has no key", "Give it one.", renamed=False)
    if not base:
        return None
    names = [each.name for each in factory.knowledge_bases]
    if base not in names:
        return _gone("knowledge_bases", base, "knowledge base", names, what)
    path = f"knowledge_bases[{base}]"
    if factory.knowledge_base(base, tenant) is None:
        remedy = f"Add '{tenant}' there."
        return Hidden(f"{path}.tenants", what, "its tenants do not include theirs", remedy, renamed=False)
    if all(route.knowledge_base != base for route in factory.routes):
        return Hidden(path, what, "no route searches it", "Name it in a route's knowledge_base.", renamed=False)
    return None


def _gone(path: str, name: str, called: str, known: Sequence[str], what: tuple[Stored, ...]) -> Hidden:
    return Hidden(
        f"{path}[{name}]",
        what,
        f"there is no {called} '{name}' (there is: {', '.join(known) or 'none'})",
        f"Name it '{name}' again; or, to accept that, write it into retired.{path}.",
        renamed=True,
    )


def _names(stored: Stored) -> tuple[str, str]:
    return stored.tenant, stored.knowledge_base


def _enumerated(what: Sequence[Stored]) -> str:
    parts = list(_described(what))
    return " and ".join((", ".join(parts[:-1]), parts[-1])) if len(parts) > 1 else parts[0]


def _described(what: Sequence[Stored]) -> Iterator[str]:
    for each in sorted(what):
        noun = each.kind if each.count != 1 else _ONE[each.kind]
        where = f" in knowledge base '{each.knowledge_base}'" if each.knowledge_base else ""
        yield f"{each.count} {noun} of tenant '{each.tenant}'{where}"
