"""Writes an ONNX model: the part of onnx.proto that the platform's graphs need, in protobuf's wire format.

The package onnx would do the same with 30 MB. Numbers of fields and types: onnx/onnx.proto of ONNX 1.18
(https://github.com/onnx/onnx); wire format: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOAT = 1
INT64 = 7
_DATA_TYPES = {"float32": FLOAT, "uint8": 2, "int8": 3, "int64": INT64}
_ATTRIBUTE_FLOAT = 1
_ATTRIBUTE_INT = 2


def tensor(name: str, value: NDArray[Any]) -> bytes:
    """A constant (TensorProto). Raises KeyError for a dtype other than float32, uint8, int8 and int64."""
    value = np.ascontiguousarray(value)
    little = value.astype(value.dtype.newbyteorder("<"), copy=False)
    dims = b"".join(_int(1, size) for size in value.shape)
    return dims + _int(2, _DATA_TYPES[value.dtype.name]) + _text(8, name) + _bytes(9, little.tobytes())


def node(
    kind: str,
    inputs: Iterable[str],
    outputs: Iterable[str],
    *,
    domain: str = "",
    attributes: Mapping[str, float | int] | None = None,
) -> bytes:
    """An operation (NodeProto); a float attribute becomes a FLOAT, an int an INT."""
    return b"".join(
        (
            *(_text(1, name) for name in inputs),
            *(_text(2, name) for name in outputs),
            _text(4, kind),
            *(_bytes(5, _attribute(name, value)) for name, value in sorted((attributes or {}).items())),
            _text(7, domain),
        )
    )


def variable(name: str, data_type: int, shape: Sequence[int | str]) -> bytes:
    """An input or output of a graph (ValueInfoProto); a dimension of any size has a name."""
    dims = (_text(2, size) if isinstance(size, str) else _int(1, size) for size in shape)
    tensor_type = _int(1, data_type) + _bytes(2, b"".join(_bytes(1, dim) for dim in dims))
    return _text(1, name) + _bytes(2, _bytes(1, tensor_type))


def model(
    name: str,
    *,
    nodes: Iterable[bytes],
    constants: Iterable[bytes],
    inputs: Iterable[bytes],
    outputs: Iterable[bytes],
    opsets: Mapping[str, int],
    ir_version: int,
) -> bytes:
    """The file (ModelProto). opsets: domain -> version; "" is ONNX's own."""
    graph = [
        *(_bytes(1, each) for each in nodes),
        _text(2, name),
        *(part for each in constants for part in (_head(5, len(each)), each)),
        *(_bytes(11, each) for each in inputs),
        *(_bytes(12, each) for each in outputs),
    ]
    imports = (_bytes(8, _text(1, domain) + _int(2, version)) for domain, version in opsets.items())
    # Joined once: the constants are most of the file.
    return b"".join((_int(1, ir_version), _head(7, sum(map(len, graph))), *graph, *imports))


def _attribute(name: str, value: float) -> bytes:
    if isinstance(value, int):
        return _text(1, name) + _int(3, value) + _int(20, _ATTRIBUTE_INT)
    return _text(1, name) + _varint(2 << 3 | 5) + struct.pack("<f", value) + _int(20, _ATTRIBUTE_FLOAT)


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value % (1 << 64))  # a negative one as its 64-bit complement


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _bytes(field: int, value: bytes) -> bytes:
    return _head(field, len(value)) + value


def _head(field: int, size: int) -> bytes:
    """The tag and length before a value of so many bytes."""
    return _varint(field << 3 | 2) + _varint(size)


def _varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*groups, value))
