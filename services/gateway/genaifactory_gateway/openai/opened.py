"""Facts about an answer that are sent before its first token: what was masked in its input, and the use of the cache.

They are sent twice: as headers, and as fields of a completion or of a stream's first chunk. They are not in
`annotations`, where strict clients accept only OpenAI's url_citation.
"""

from __future__ import annotations

from typing import Any

from genaifactory.orchestrator.v1 import orchestrator_pb2
from genaifactory.types.v1 import types_pb2

_CACHE = {
    types_pb2.CACHE_USE_HIT: "hit",
    types_pb2.CACHE_USE_MISS: "miss",
    types_pb2.CACHE_USE_BYPASS: "bypass",
}


def headers(opened: orchestrator_pb2.AnswerOpened) -> list[tuple[bytes, bytes]]:
    """x-genaifactory-cache: hit, miss or bypass; x-genaifactory-masked: EMAIL_ADDRESS=1, VN_CCCD=2."""
    found: list[tuple[bytes, bytes]] = []
    if cache := _CACHE.get(opened.cache):
        found.append((b"x-genaifactory-cache", cache.encode()))
    if opened.masked:
        masked = ", ".join(f"{entity.entity_type}={entity.count}" for entity in opened.masked)
        found.append((b"x-genaifactory-masked", masked.encode("ascii", "replace")))
    return found


def fields(opened: orchestrator_pb2.AnswerOpened) -> dict[str, Any]:
    """{"cache": "miss", "masked": [{"entity_type": "EMAIL_ADDRESS", "count": 1}]}; unknown facts are left out."""
    known: dict[str, Any] = {}
    if cache := _CACHE.get(opened.cache):
        known["cache"] = cache
    if opened.masked:
        known["masked"] = [{"entity_type": entity.entity_type, "count": entity.count} for entity in opened.masked]
    return known


def bypasses_cache(cache_control: bytes) -> bool:
    """Whether a request's Cache-Control asks for a fresh answer: no-cache (RFC 9111, 5.2.1.4)."""
    return b"no-cache" in (directive.strip() for directive in cache_control.lower().split(b","))
