"""MiniLM as embedding model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genaifactory_common import minilm
from genaifactory_common.errors import Unavailable
from genaifactory_common.minilm import MiniLM


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
