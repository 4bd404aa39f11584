"""Models that turn texts into vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from genaifactory_common import minilm
from genaifactory_common.errors import Unavailable
from genaifactory_common.minilm import MiniLM


class Embedder(Protocol):
    """An embedding model. Its calls block; threads of documents and of queries call it at the same time."""

    @property
    def dimensions(self) -> int:
        """Components of a vector."""
        ...

    def embed_passages(self, texts: Sequence[str]) -> list[list[float]]:
        """Vectors of unit length in the order of the texts, which are few per call. Raises Unavailable."""
        ...

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query: its dot product with a passage's vector is the score. Raises Unavailable."""
        ...

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        """Start and end of each token in code points of the text, in order; the unit of a passage's length."""
        ...


class MiniLMEmbedder:
    """MiniLM, which embeds questions and passages alike."""

    dimensions = minilm.DIMENSIONS

    def __init__(self, model: MiniLM) -> None:
        self._model = model
        self.token_offsets = model.token_offsets

    @classmethod
    def load(cls, cache_dir: Path) -> MiniLMEmbedder:
        """Blocks for a second, or a few on first use. Raises Unavailable and OSError."""
        try:
            return cls(minilm.load(cache_dir))
        except RuntimeError as error:
            raise Unavailable(f"The embedding model cannot be loaded: {error}") from error

    def embed_passages(self, texts: Sequence[str]) -> list[list[float]]:
        """See Embedder; a text is truncated to minilm.MAX_TOKENS tokens."""
        vectors: list[list[float]] = self._model.embed(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """See Embedder."""
        return self.embed_passages([text])[0]
