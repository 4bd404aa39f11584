"""Small valid images: a PNG of one colour, as bytes, as a protobuf message and as a part of a client's message."""

from __future__ import annotations

import struct
import zlib
from typing import Any

from genaifactory.types.v1 import types_pb2
from genaifactory_common import images

_RED = b"\xff\x00\x00"


def png(width: int = 32, height: int = 32, colour: bytes = _RED) -> bytes:
    """A PNG file. colour: red, green and blue, a byte each."""
    rows = (b"\x00" + colour * width) * height
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + _chunk(b"IDAT", zlib.compress(rows))
        + _chunk(b"IEND", b"")
    )


def image(data: bytes | None = None, **fields: Any) -> types_pb2.Image:
    """The file as a protobuf message; None: `png()`."""
    return types_pb2.Image(**({"media_type": "image/png", "data": data or png()} | fields))


def part(data: bytes | None = None, **image_url: Any) -> dict[str, Any]:
    """The file as a part of a message in OpenAI's format. image_url: further fields, or another `url`."""
    return {"type": "image_url", "image_url": {"url": images.data_url(image(data)), **image_url}}


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
