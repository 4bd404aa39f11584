"""Refuses headers that a proxy and the gateway may interpret differently, against request smuggling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

# Each decides about the caller, the origin, or the body, and must have one value: readers disagree on which of several
# counts. Host is required, too (RFC 9112, 3.2).
_SINGLE = {
    name.lower().encode(): name
    for name in (
        "Authorization",
        "Content-Encoding",
        "Content-Length",
        "Content-Type",
        "Host",
        "Origin",
        "Traceparent",
        "Transfer-Encoding",
    )
}


def fault(headers: Sequence[tuple[bytes, bytes]], http_version: str) -> str:
    """Why a request with these headers is refused; empty: it is not. headers: names in lower case."""
    counts = Counter(name for name, _ in headers)
    for name, shown in _SINGLE.items():
        if counts[name] > 1:
            return f"The request must not have more than one header {shown}; it has {counts[name]}."
    if not counts[b"host"] and http_version != "1.0":
        return "The request must have one header Host; it has 0."
    # The parser reports other encodings only after the headers, when the request has begun.
    encoding = next((value for name, value in headers if name == b"transfer-encoding"), b"chunked")
    if encoding.strip().lower() != b"chunked":
        return "The header Transfer-Encoding must be chunked; the body must not be encoded otherwise."
    if counts[b"transfer-encoding"] and counts[b"content-length"]:
        return "The request must not have both headers Transfer-Encoding and Content-Length."
    return ""
