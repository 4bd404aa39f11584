"""The header of a safetensors file, read strictly and without the weights, and a look for values that are no numbers.

The format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from genaifactory_modelserver.threads import Stop

_MAX_HEADER_BYTES = 100_000_000  # as the safetensors library has it
_PIECE_BYTES = 4 << 20
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
# Width in bytes, and the exponent's bits: all of them set, it is an infinity or not a number (IEEE 754).
_EXPONENTS = {"F32": (4, 0x7F80_0000), "F16": (2, 0x7C00), "BF16": (2, 0x7F80)}
FLOATS = tuple(_EXPONENTS)
"""The number formats that `find_not_finite` reads."""


class Corrupt(Exception):
    """The file is no whole safetensors file; the message names the fault."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor is in its file, and its shape."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, in the order of their bytes; blocks. Raises Corrupt, OSError."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        start = file.read(8)
        if len(start) < 8:
            raise Corrupt(f"it has {size} bytes, too few for a safetensors file")
        (length,) = struct.unpack("<Q", start)
        if start + file.read(32) == b"version https://git-lfs.github.com/spec/"[:40]:
            raise Corrupt("it is a pointer of Git LFS; fetch the file itself with 'git lfs pull'")
        if length > _MAX_HEADER_BYTES or 8 + length > size:
            raise Corrupt(
                f"its header would have {length} bytes, and the file has {size}: it is cut off or of another kind"
            )
        file.seek(8)
        header = file.read(length)
    try:
        parsed = json.loads(header, object_pairs_hook=_without_doubles)
        tensors = sorted(_tensors(parsed, 8 + length), key=lambda item: (item[1].begin, item[1].end))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Corrupt(f"its header cannot be read ({type(error).__name__}: {error})") from None
    position = 8 + length
    for name, tensor in tensors:
        if tensor.begin != position:
            raise Corrupt(f"its header leaves a gap or an overlap before '{name}'")
        position = tensor.end
    if position != size:
        raise Corrupt(f"its header describes {position} bytes, and the file has {size}: it is cut off or damaged")
    return dict(tensors)


def find_not_finite(path: Path, tensors: Mapping[str, Tensor], stop: Stop) -> str | None:
    """The first tensor that holds an infinity or a NaN; None: there is none. Blocks. For dtypes in FLOATS."""
    with path.open("rb") as file:
        for name, tensor in tensors.items():
            width, exponent = _EXPONENTS[tensor.dtype]
            file.seek(tensor.begin)
            left = tensor.end - tensor.begin
            while left:
                stop.check()
                piece = np.frombuffer(file.read(min(left, _PIECE_BYTES)), dtype=f"<u{width}")
                if np.any((piece & exponent) == exponent):
                    return name
                left -= piece.nbytes
    return None


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found


def _tensors(header: Any, offset: int) -> list[tuple[str, Tensor]]:
    found = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if dtype not in _BITS or any(type(number) is not int or number < 0 for number in (begin, end, *shape)):
            raise ValueError(f"'{name}' has a type, shape or place that is none")
        if prod(shape) * _BITS[dtype] != (end - begin) * 8:
            raise ValueError(f"'{name}' has not as many bytes as its shape and type need")
        found.append((name, Tensor(dtype, tuple(shape), offset + begin, offset + end)))
    return found
