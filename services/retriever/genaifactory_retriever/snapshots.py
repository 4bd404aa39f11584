"""Snapshots for searches: a search reads one snapshot from its beginning to its end; a write publishes a new one.

Points of a snapshot may be deleted only when no search holds it any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from genaifactory_common.errors import Conflict, NotFound
from genaifactory_retriever.stored import Index


@dataclass(frozen=True)
class Snapshot:
    """One consistent view of a knowledge base."""

    active: Index
    indexes: tuple[Index, ...]
    """All open versions, newest first, the active one among them."""
    hidden: frozenset[int]
    """Revisions whose points a search must ignore."""

    def index(self, version: str) -> Index | None:
        """The open version of this name."""
        return next((index for index in self.indexes if index.version == version), None)

    def serving(self, version: str) -> Index:
        """The version of this name, for searches; empty: the active one. Raises NotFound, Conflict."""
        index = self.index(version) if version else self.active
        if index is None:
            raise NotFound(
                f"The knowledge base '{self.active.knowledge_base}' has no index version '{version[:100]}'; it has "
                f"{', '.join(index.version for index in self.indexes)}.",
                field="index_version",
            )
        if index.state == "building":
            raise Conflict(f"The index version '{version}' is still being built.", field="index_version")
        return index


class Snapshots:
    """The current snapshot and the searches that hold older ones. For one event loop."""

    def __init__(self, first: Snapshot) -> None:
        self._current = first
        self._holders: dict[Snapshot, int] = {first: 0}
        self._released = asyncio.Event()

    @property
    def current(self) -> Snapshot:
        """The snapshot of a search that begins now."""
        return self._current

    @contextmanager
    def hold(self) -> Iterator[Snapshot]:
        """The current snapshot, whose points are not deleted inside the block."""
        snapshot = self._current
        self._holders[snapshot] += 1
        try:
            yield snapshot
        finally:
            self._holders[snapshot] -= 1
            if snapshot is not self._current and not self._holders[snapshot]:
                del self._holders[snapshot]
                self._released.set()

    async def publish(self, snapshot: Snapshot) -> None:
        """Makes `snapshot` the current one; returns when no search holds an older one."""
        if snapshot != self._current:
            previous, self._current = self._current, snapshot
            self._holders.setdefault(snapshot, 0)
            if not self._holders[previous]:
                del self._holders[previous]
        while len(self._holders) > 1:
            self._released.clear()
            await self._released.wait()
