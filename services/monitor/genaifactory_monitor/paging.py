"""Page tokens: opaque, bound to their filter, and checked before use.

A token holds a position and a digest of filter and position. It grants no access: the tenant is checked for every
page, and the digest only detects a token that was damaged or belongs to another filter.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

from genaifactory_common.errors import InvalidArgument
from genaifactory_monitor.records import DriftFilter, Filter, Position

_DIGEST_BYTES = 12
_TIME_BYTES = 8


def encode(position: Position, filter_: Filter | DriftFilter) -> str:
    """The token of the page after `position`."""
    body = position.time_us.to_bytes(_TIME_BYTES, "big") + position.id.encode()
    return base64.urlsafe_b64encode(_digest(body, filter_) + body).rstrip(b"=").decode()


def decode(token: str, filter_: Filter | DriftFilter) -> Position:
    """The position in a token that was made for this filter. Raises InvalidArgument."""
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if len(body) > _TIME_BYTES and digest == _digest(body, filter_):
            return Position(int.from_bytes(body[:_TIME_BYTES], "big"), body[_TIME_BYTES:].decode())
    except (binascii.Error, ValueError):
        pass
    raise InvalidArgument("page_token must be the next_page_token of a page with the same filter.", field="page_token")


def _digest(body: bytes, filter_: Filter | DriftFilter) -> bytes:
    return hashlib.sha256(body + repr(filter_).encode()).digest()[:_DIGEST_BYTES]
