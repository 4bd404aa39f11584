"""Cross-origin requests: which web pages may call the HTTP API from a browser (factory.yaml: cors)."""

from __future__ import annotations

from collections.abc import Mapping

from genaifactory_common import specs
from genaifactory_common.errors import PermissionDenied
from genaifactory_gateway.http.exchange import Exchange, Headers

# Not for probes and metrics.
_API = "/v1/"
_EXPOSED = (b"access-control-expose-headers", b"*")


def headers(cors: specs.Cors, exchange: Exchange) -> Headers:
    """The CORS headers of the response; none for a page that is not allowed, and for a request without an origin.

    Credentials of the browser (cookies, client certificates) are never allowed: API keys are sent in a header.
    """
    origin = _origin(exchange)
    if origin is None or not cors.allowed_origins:
        return []
    if "*" in cors.allowed_origins:
        return [(b"access-control-allow-origin", b"*"), _EXPOSED]
    vary = (b"vary", b"origin")  # for every page, so that no cache returns the response for another
    if origin.decode("latin-1") not in cors.allowed_origins:
        return [vary]
    return [(b"access-control-allow-origin", origin), _EXPOSED, vary]


def is_preflight(exchange: Exchange) -> bool:
    """Whether it is a preflight request, with which a browser checks what the page may send. It has no API key."""
    asked = exchange.headers.get(b"access-control-request-method")
    return exchange.method == "OPTIONS" and asked is not None and _origin(exchange) is not None


async def preflight(cors: specs.Cors, exchange: Exchange, methods: Mapping[str, object]) -> None:
    """Answers a preflight request of a path with these methods. Raises PermissionDenied for a page not allowed."""
    if not any(name == b"access-control-allow-origin" for name, _ in exchange.cors):
        raise PermissionDenied(
            "Pages of this origin may not call the API; list it under cors.allowed_origins in factory.yaml."
        )
    own = [
        (b"access-control-allow-methods", ", ".join(sorted(methods)).encode()),
        # All headers: the wildcard does not include this one. Clients send a dozen of their own.
        (b"access-control-allow-headers", b"authorization, *"),
        (b"access-control-max-age", b"%d" % cors.max_age_seconds),
    ]
    await exchange.respond(b"", 204, headers=own)


def _origin(exchange: Exchange) -> bytes | None:
    return exchange.headers.get(b"origin") if exchange.path.startswith(_API) else None
