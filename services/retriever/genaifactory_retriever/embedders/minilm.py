"""MiniLM as embedding model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genaifactory_common import minilm, specs
from genaifactory_common.errors import Unavailable
from genaifactory_common.minilm import MiniLM


def load(spec: specs.MiniLMEmbedder, cache_dir: Path) -> MiniLMEmbedder:
    """Blocks for a second, or a few on first use. Raises Unavailable."""
    try:
        return MiniLMEmbedder(minilm.load(cache_dir))
    except (OSError, RuntimeError) as error:
        raise Unavailable(f"The embedding model MiniLM cannot be loaded: {error}") from error


def digest(spec: specs.MiniLMEmbedder, cache_dir: Path) -> str:
    """See Embedder. Raises as `load`, of which the process keeps the model."""
    return load(spec, cache_dir).digest


class MiniLMEmbedder:
    """MiniLM, which embeds questions and passages alike."""

    dimensions = minilm.DIMENSIONS
    texts_at_once = 4  # about 0.2 s on a processor without VNNI
    max_tokens = None  # longer passages are accepted, and their ends ignored
    is_remote = False

    def __init__(self, model: MiniLM) -> None:
        self._model = model
        self.digest = model.digest
        self.token_offsets = model.token_offsets

    def embed_passages(self, texts: Sequence[str]) -> list[list[float]]:
        """See Embedder; a text is truncated to minilm.MAX_TOKENS tokens."""
        vectors: list[list[float]] = self._model.embed(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """See Embedder."""
        return self.embed_passages([text])[0]
