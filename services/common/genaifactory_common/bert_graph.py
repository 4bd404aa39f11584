"""The ONNX graph of a BERT encoder with mean pooling, its matrices in 8-bit integers: token ids to a unit vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genaifactory_common import onnx_file

# Sums of two products of unsigned 8-bit activations and weights up to 64 fit 16 bits, so a processor with AVX2 alone
# does not saturate and computes the same vectors as one with VNNI.
_LARGEST_WEIGHT = 64


@dataclass(frozen=True)
class Shape:
    """The size of a model."""

    layers: int
    heads: int
    max_tokens: int


@dataclass(frozen=True)
class Words:
    """The vectors of the vocabulary in 8-bit integers, each row with its scale."""

    quantised: NDArray[np.int8]
    """(vocabulary, dimensions)"""
    scales: NDArray[np.float32]
    """(vocabulary, 1)"""


def build(name: str, w: Mapping[str, NDArray[np.float32]], words: NDArray[np.float32] | Words, shape: Shape) -> bytes:
    """The graph: "ids" (1, n) -> "embedding" (1, dimensions).

    w: arrays by their names in a BertModel of transformers; words: the vectors of the vocabulary.
    """
    graph = _Graph()
    positions = w["embeddings.position_embeddings.weight"][: shape.max_tokens]
    positions = positions + w["embeddings.token_type_embeddings.weight"][0]
    read = graph.words(words)
    length = graph.op("Shape", "ids", start=1, end=2)
    zero = graph.constant(np.array([0]))
    places = graph.op("Slice", graph.constant(positions), zero, length, zero)
    x = graph.op(
        "LayerNormalization",
        graph.op("Add", read, places),
        graph.constant(w["embeddings.LayerNorm.weight"]),
        graph.constant(w["embeddings.LayerNorm.bias"]),
        epsilon=1e-12,
    )
    for i in range(shape.layers):
        x = _layer(
            graph, x, {k.partition(f"layer.{i}.")[2]: v for k, v in w.items() if f"layer.{i}." in k}, shape.heads
        )
    mean = graph.op("ReduceMean", x, graph.constant(np.array([1])), keepdims=0)
    graph.op("LpNormalization", mean, outputs=["embedding"], axis=-1, p=2)
    return onnx_file.model(
        name,
        nodes=graph.nodes,
        constants=graph.constants,
        inputs=[onnx_file.variable("ids", onnx_file.INT64, [1, "tokens"])],
        outputs=[onnx_file.variable("embedding", onnx_file.FLOAT, [1, positions.shape[1]])],
        opsets={"": 20, "com.microsoft": 1},
        ir_version=10,
    )


def _layer(graph: _Graph, x: str, w: Mapping[str, NDArray[np.float32]], heads: int) -> str:
    parts = [f"attention.self.{part}" for part in ("query", "key", "value")]
    joined = graph.linear(
        x,
        np.concatenate([w[f"{part}.weight"] for part in parts]),
        np.concatenate([w[f"{part}.bias"] for part in parts]),
    )
    query, key, value = graph.names(3)
    graph.op("Split", joined, outputs=[query, key, value], axis=-1, num_outputs=3)
    y = graph.op("MultiHeadAttention", query, key, value, domain="com.microsoft", num_heads=heads)
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

    def words(self, words: NDArray[np.float32] | Words) -> str:
        """The vectors of the ids."""
        if not isinstance(words, Words):
            return self.op("Gather", self.constant(words), "ids")
        rows = self.op("Cast", self.op("Gather", self.constant(words.quantised), "ids"), to=onnx_file.FLOAT)
        return self.op("Mul", rows, self.op("Gather", self.constant(words.scales), "ids"))

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
