"""Models that turn texts into vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from genaifactory_common import minilm
from genaifactory_common.errors import Unavailable
from genaifactory_common.minilm import MiniLM


class Embedder(Protocol):
    """One model. Its calls block, on the threads of documents or of queries, which share it."""

    @property
    def dimensions(self) -> int:
        """Components of a vector."""
        ...

    def embed_passages(self, texts: Sequence[str]) -> list[list[float]]:
        """Vectors of unit length in the order of the texts, a few at a time. Raises Unavailable."""
        ...

    def embed_query(self, text: str) -> list[float]:
        """A vector whose product with a passage's is the higher, the better that answers. Raises Unavailable."""
        ...

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        """Start and end of each token in code points of the text, in order: what passages are measured in."""
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
        """See Embedder; of a text of more than minilm.MAX_TOKENS tokens, the beginning."""
        vectors: list[list[float]] = self._model.embed(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """See Embedder."""
        return self.embed_passages([text])[0]
