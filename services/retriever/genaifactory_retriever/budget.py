"""A number of bytes that all uploads share: an upload that needs more than is left waits for its turn."""

from __future__ import annotations

import asyncio
from collections import deque


class ByteBudget:
    """Memory for documents in flight. For one event loop; first come, first served."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def acquire(self, size: int) -> None:
        """Waits for `size` bytes, at most the whole budget."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(size)
            raise
        finally:
            self._serve()

    def release(self, size: int) -> None:
        """Returns `size` bytes to the budget."""
        self._free += size
        self._serve()

    def _serve(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.done():
                if size > self._free:
                    return
                self._free -= size
                turn.set_result(None)
            self._waiting.popleft()
