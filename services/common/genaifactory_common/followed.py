"""Values read from files that others replace while a service uses them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from genaifactory_common.errors import InvalidArgument

logger = logging.getLogger(__name__)

_INTERVAL_SECONDS = 2.0
_SHORTEST_PAUSE_SECONDS = 0.2

Value = TypeVar("Value")


class Followed(Generic[Value]):
    """The last valid value of a text that changes."""

    def __init__(self, name: str, read: Callable[[], str], parse: Callable[[str], Value]) -> None:
        """name: for the log. read: returns the present text; blocks. parse: returns the value of a text.

        Both raise InvalidArgument; so does this when the first text is invalid.
        """
        self._name = name
        self._read = read
        self._parse = parse
        self._text = read()
        self._refused: str | None = None
        self._looking = asyncio.Lock()
        self._looked_at = time.monotonic()
        self.current: Value = parse(self._text)

    async def watch(self, *, interval_seconds: float = _INTERVAL_SECONDS) -> None:
        """Reads the text again and again, forever."""
        while True:
            await asyncio.sleep(interval_seconds)
            await self.look()

    async def look(self) -> None:
        """Reads the text, unless that was done a moment ago. An invalid text is logged, once; the last valid value
        stays.
        """
        async with self._looking:
            if time.monotonic() - self._looked_at < _SHORTEST_PAUSE_SECONDS:
                return
            self._looked_at = time.monotonic()
            try:
                text = await asyncio.to_thread(self._read)
                if text == self._text:
                    return
                self.current = self._parse(text)
            except InvalidArgument as error:
                if error.message != self._refused:
                    logger.error("%s: the new one is refused, the last good one stays: %s", self._name, error.message)
                self._refused = error.message
                return
            self._text, self._refused = text, None
            logger.info("%s: follows a change", self._name)


class Fixed(Followed[Value]):
    """A value that does not change."""

    def __init__(self, value: Value) -> None:
        self.current = value

    async def watch(self, *, interval_seconds: float = _INTERVAL_SECONDS) -> None:
        """Returns at once."""

    async def look(self) -> None:
        """Returns at once."""
