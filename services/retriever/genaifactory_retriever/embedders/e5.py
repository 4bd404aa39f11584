"""multilingual-e5-small as embedding model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from genaifactory_common import e5, specs
from genaifactory_common.e5 import E5
from genaifactory_common.errors import Unavailable


def load(spec: specs.E5Embedder, cache_dir: Path) -> E5Embedder:
    """Blocks for two seconds, or several on first use. Raises Unavailable."""
    with _translated():
        return E5Embedder(E5(cache_dir))


def digest(spec: specs.E5Embedder, cache_dir: Path) -> str:
    """See Embedder; without loading the model. Raises as `load`."""
    with _translated():
        return e5.digest(cache_dir)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise Unavailable(
            f"The embedding model e5 cannot be loaded: its file of weights has no {error}; install it again.",
            field="embedder.type",
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise Unavailable(f"The embedding model e5 cannot be loaded: {error}", field="embedder.type") from error


class E5Embedder:
    """The model, which distinguishes questions and passages by a prefix."""

    dimensions = e5.DIMENSIONS
    texts_at_once = 2  # twice as many layers as MiniLM
    max_tokens = None  # longer passages are accepted, and their ends ignored
    is_remote = False

    def __init__(self, model: E5) -> None:
        self._model = model
        self.digest = model.digest
        self.token_offsets = model.token_offsets

    def embed_passages(self, texts: Sequence[str]) -> list[list[float]]:
        """See Embedder; a text is truncated to 512 tokens."""
        return self._embed(e5.PASSAGE_PREFIX, texts)

    def embed_query(self, text: str) -> list[float]:
        """See Embedder."""
        return self._embed(e5.QUERY_PREFIX, [text])[0]

    def _embed(self, prefix: str, texts: Sequence[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._model.embed([prefix + text for text in texts]).tolist()
        return vectors
