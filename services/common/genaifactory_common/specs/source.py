"""The document in force, while its file changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from genaifactory_common import changes, files, in_force
from genaifactory_common.errors import InvalidArgument
from genaifactory_common.specs.documents import digest, parse, read
from genaifactory_common.specs.factory import Factory

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """The replacement of one document by another."""

    before: Factory
    after: Factory
    digest: str
    """Of the text that is in force now; empty when it is not from a file."""
    lines: tuple[str, ...]
    """The changes, as `changes.between` describes them; empty when the configuration is the same."""


class Derived(Generic[T]):
    """A value that a consumer derives from the document in force: `current`, replaced together with the document."""

    def __init__(self, make: Callable[[Factory], T], factory: Factory) -> None:
        self.make = make
        self.current = make(factory)


class Source:
    """The document in force: `current`, replaced by `watch` when the file changes and is valid.

    A service reads `current`, caches what is costly to derive from it with `derive`, and acts on changes with `follow`.
    """

    def __init__(self, current: Factory, path: Path | None = None, *, digest: str = "") -> None:
        """digest: of the text that `current` came from."""
        self.current = current
        self.path = path
        self.digest = digest
        # Set now, so that a change between the start and `watch` is seen.
        self._seen = files.fingerprint(path) if path is not None else None
        self._derived: list[Derived[Any]] = []
        self._followers: list[Callable[[Change], None]] = []
        self._reviewers: list[Callable[[Factory, Factory], Awaitable[None]]] = []

    @classmethod
    def from_file(cls, path: Path) -> Source:
        """Reads the file. Raises InvalidConfiguration."""
        text = read(path)
        return cls(parse(text, source=str(path)), path, digest=digest(text))

    def derive(self, make: Callable[[Factory], T]) -> Derived[T]:
        """The value of `make` for the document in force, computed again for each new document.

        make: without side effects. For a new document every consumer's is called before any result is in force; if one
        raises InvalidArgument, the document is refused for all. Raises the errors of `make` for the document in force.
        """
        derived = Derived(make, self.current)
        self._derived.append(derived)
        return derived

    def follow(self, follower: Callable[[Change], None]) -> None:
        """Calls `follower` with each change, once it is in force. It must not raise."""
        self._followers.append(follower)

    def review(self, reviewer: Callable[[Factory, Factory], Awaitable[None]]) -> None:
        """Awaits `reviewer` with the document in force and a changed file's, which it may refuse by InvalidArgument."""
        self._reviewers.append(reviewer)

    def completed(self, factory: Factory) -> Factory:
        """The document with the additions of a subclass. Raises InvalidArgument when it cannot be in force."""
        return factory

    def replace(self, factory: Factory) -> None:
        """Puts a document in force; logs that it is refused when it cannot be."""
        try:
            self._put(self.completed(factory), "")
        except InvalidArgument as error:
            _refuse(error)

    async def watch(self, *, interval_seconds: float = 2.0) -> None:
        """Reloads the file when it changes, forever. Logs an invalid document, and keeps the last valid one."""
        if self.path is None:
            return
        in_force.report(self.digest)
        logger.info("factory.yaml is in force", extra={"genai_configuration": self.digest})
        while True:
            await asyncio.sleep(interval_seconds)
            now = await asyncio.to_thread(files.fingerprint, self.path)
            if now == self._seen:
                continue
            self._seen = now
            try:
                await self._reload(self.path)
            except InvalidArgument as error:
                _refuse(error)
            except Exception:  # a consumer's fault, or a full disk; the next document may work
                in_force.refused()
                logger.exception("factory.yaml cannot be followed")

    async def _reload(self, path: Path) -> None:
        text = await asyncio.to_thread(read, path)
        factory = self.completed(await asyncio.to_thread(parse, text, source=str(path)))
        for reviewer in self._reviewers:
            await reviewer(self.current, factory)
        self._put(factory, digest(text))

    def _put(self, factory: Factory, digest: str) -> None:
        change = Change(self.current, factory, digest, tuple(changes.between(self.current, factory)))
        made = [each.make(factory) for each in self._derived]
        self.current, self.digest = factory, digest
        for each, value in zip(self._derived, made, strict=True):
            each.current = value
        in_force.report(digest)
        logger.info(
            "factory.yaml is reloaded and in force: %s",
            "; ".join(change.lines) or "nothing that is configured changed",
            extra={"genai_configuration": digest, "genai_changes": change.lines},
        )
        for follower in self._followers:
            follower(change)


def _refuse(error: InvalidArgument) -> None:
    in_force.refused()
    logger.error("factory.yaml is refused, the last good one stays in force: %s", error.message)
