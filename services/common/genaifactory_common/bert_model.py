"""A BERT encoder through onnxruntime: texts to unit vectors, and the tokens that chunking counts.

Needs the extra `minilm`. Every function blocks: call it in a bounded executor.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from genaifactory_common import onnx_graphs

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MOST_CHARACTERS = 32_768
"""A text is cut to these before the tokenizer, which reads all of it and holds the interpreter's lock meanwhile.

512 tokens of a language are shorter; a word beyond 100 letters is one token.
"""


class BertModel:
    """A graph of `bert_graph` with its tokenizer. Threads may share it.

    Each text runs alone: on a CPU that is faster than batches with padding (105 against 75 texts/s at 120 tokens),
    and a text's vector does not depend on its neighbours.
    """

    def __init__(
        self,
        graph: Path,
        tokenizer: Tokenizer,
        *,
        files: Sequence[Path],
        dimensions: int,
        max_tokens: int,
        threads: int,
    ) -> None:
        """files: all that its vectors depend on. threads: processor threads for one text."""
        # onnxruntime's SkipLayerNormalization is twenty times slower on a CPU than what it replaces.
        self._session = onnx_graphs.session(graph, threads=threads, disabled_optimizers=("SkipLayerNormFusion",))
        self._files = tuple(files)
        self._dimensions = dimensions
        self._max_tokens = max_tokens
        self._tokenizer = tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()  # done here: a second tokenizer that truncates would take 200 MB for e5's vocabulary

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its files, in hex: two models of one digest compute equal vectors. Raises OSError."""
        return onnx_graphs.digest(self._files)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of unit length, shape (len(texts), dimensions), in the order of the texts."""
        vectors = np.empty((len(texts), self._dimensions), np.float32)
        for row, text in enumerate(texts):
            vectors[row] = self._session.run(None, {"ids": np.array([self._ids(text)], np.int64)})[0]
        return vectors

    def tokens_read(self, text: str) -> int:
        """Tokens that `embed` reads of the text, those of its begin and end included."""
        return len(self._ids(text))

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        """Start and end of each token in code points of the text, in order."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).offsets)

    def _ids(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text[:MOST_CHARACTERS]).ids
        return ids if len(ids) <= self._max_tokens else [*ids[: self._max_tokens - 1], ids[-1]]
