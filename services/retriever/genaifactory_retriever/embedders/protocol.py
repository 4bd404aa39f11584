"""What an embedding model does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Embedder(Protocol):
    """An embedding model. Its calls block; threads of documents and of queries call it at the same time."""

    @property
    def dimensions(self) -> int:
        """Components of a vector."""
        ...

    @property
    def digest(self) -> str:
        """Of all that its vectors depend on: only vectors of one digest may be compared."""
        ...

    @property
    def texts_at_once(self) -> int:
        """Passages of one call, after which other documents get a turn."""
        ...

    @property
    def max_tokens(self) -> int | None:
        """That it reads of a passage, if longer ones (`chunk_tokens`) are to be refused."""
        ...

    @property
    def is_remote(self) -> bool:
        """Whether a query waits for another machine, and so must not hold a thread that others compute on."""
        ...

    def embed_passages(self, texts: Sequence[str]) -> list[list[float]]:
        """Vectors of unit length in the order of the texts, at most texts_at_once.

        Raises Unavailable, and InvalidArgument (field `embedder`) for a failure that does not pass, as a wrong key.
        """
        ...

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query: its dot product with a passage's vector is the score. Raises Unavailable."""
        ...

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        """Start and end of each token in code points of the text, in order; the unit of a passage's length."""
        ...
