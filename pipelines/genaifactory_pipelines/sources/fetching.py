"""Fetches one web page: from allowed addresses, redirects included, within bounds of size and time."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import httpx2

from genaifactory_common import formats
from genaifactory_common.backoff import Backoff
from genaifactory_pipelines.sources import guard
from genaifactory_pipelines.sources.guard import Refused, Resolve
from genaifactory_pipelines.sources.printable import printable
from genaifactory_pipelines.sources.selection import EMPTY, LARGE

_PAGE_SECONDS = 60.0
_TIMEOUT = httpx2.Timeout(connect=10.0, read=30.0, write=10.0, pool=None)
_MOST_REDIRECTS = 5
_ATTEMPTS = 3
_LAST_PORT = 65535
_BACKOFF = Backoff(first_seconds=1.0, longest_seconds=5.0)
_LONGEST_PAUSE_SECONDS = 30.0
_GONE = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
_PASSING = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
_MEDIA_TYPES = {each: each for each in formats.MEDIA_TYPES} | {"application/xhtml+xml": "text/html"}

for _name in ("httpx2", "httpcore2"):  # they would log every request, with its URL
    logging.getLogger(_name).setLevel(logging.WARNING)


@dataclass(frozen=True)
class Fetched:
    """A page's media type, one of formats.MEDIA_TYPES, and its size; the body is in the file."""

    media_type: str
    size_bytes: int


@dataclass(frozen=True)
class Failed:
    """Why there is no page."""

    why: str
    """Continues "the page ..."."""
    gone: bool = False
    """Its server says that there is none."""


@dataclass(frozen=True)
class Fetcher:
    """Fetches pages."""

    private: bool
    """Addresses of private networks and of this machine are allowed."""
    tls: ssl.SSLContext
    resolver: Resolve = guard.resolve

    async def fetch(self, url: str, file: Path) -> Fetched | Failed:
        """One page, into a file. What may pass is tried again."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with asyncio.timeout(_PAGE_SECONDS):
                    return await self._followed(httpx2.URL(url), file)
            except Refused as refused:
                return Failed(str(refused))
            except (httpx2.InvalidURL, UnicodeError):
                return Failed("has no valid URL, or leads on to an invalid one")
            except _Passing as passing:
                why, pause = str(passing), passing.pause_seconds
            except TimeoutError:
                why, pause = f"was not there within {_PAGE_SECONDS:.0f} s", 0.0
            except (OSError, httpx2.TransportError) as error:
                why, pause = f"cannot be reached ({type(error).__name__})", 0.0
            if attempt < _ATTEMPTS:
                await asyncio.sleep(max(pause, _BACKOFF.seconds(attempt)))
        return Failed(why)

    async def _followed(self, url: httpx2.URL, file: Path) -> Fetched | Failed:
        for _ in range(_MOST_REDIRECTS + 1):
            found = await self._asked(url, file)
            if not isinstance(found, httpx2.URL):
                return found
            if url.scheme == "https" and found.scheme != "https":
                raise Refused("leads on to an address without https://")
            url = found
        return Failed(f"leads on more than {_MOST_REDIRECTS} times")

    async def _asked(self, url: httpx2.URL, file: Path) -> Fetched | Failed | httpx2.URL:
        """The page, or where its server leads on to. Raises Refused, _Passing, OSError, TransportError."""
        host = url.raw_host.decode("ascii")
        if url.scheme not in ("http", "https") or url.userinfo or not host:
            raise Refused("leads on to an address that is not http(s)://HOST/...")
        port = url.port or (443 if url.scheme == "https" else 80)
        if port > _LAST_PORT:  # sockets raise OverflowError
            raise Refused(f"has the port {port}, or leads on to it; the last one is {_LAST_PORT}")
        places = await guard.addresses(host, port, self.resolver, private=self.private)
        async with httpx2.AsyncClient(verify=self.tls, timeout=_TIMEOUT, trust_env=False) as client:
            response = await self._connected(client, url, places)
            try:
                return await _received(response, url, file)
            finally:
                await response.aclose()

    async def _connected(self, client: httpx2.AsyncClient, url: httpx2.URL, places: Sequence[str]) -> httpx2.Response:
        """The first of the addresses that can be connected to answers. Certificates are checked against the name."""
        refused: httpx2.TransportError | None = None
        for place in places:
            request = client.build_request(
                "GET",
                url.copy_with(host=place),
                headers={
                    "host": url.netloc.decode("ascii"),
                    "accept-encoding": "identity",
                    "user-agent": "genaifactory-sources",
                },
                extensions={"sni_hostname": url.raw_host.decode("ascii")},
            )
            try:
                return await client.send(request, stream=True, follow_redirects=False)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                refused = error
        raise refused or OSError("no address")


class _Passing(Exception):
    """It may work later."""

    def __init__(self, why: str, pause_seconds: float) -> None:
        super().__init__(why)
        self.pause_seconds = pause_seconds


async def _received(response: httpx2.Response, url: httpx2.URL, file: Path) -> Fetched | Failed | httpx2.URL:
    status = response.status_code
    if response.is_redirect:
        return url.join(response.headers.get("location", ""))
    if status in _PASSING:
        after = response.headers.get("retry-after", "")
        # Not "²", which is a digit and no number. A date is not waited for.
        pause = float(after) if after.isascii() and after.isdecimal() else 0.0
        raise _Passing(f"was answered with {status}", min(pause, _LONGEST_PAUSE_SECONDS))
    if status != HTTPStatus.OK:
        return Failed(f"was answered with {status}", gone=status in _GONE)
    declared = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    media_type = _MEDIA_TYPES.get(declared)
    if media_type is None:
        return Failed(f"is of the type '{printable(declared[:100])}', which is not read")
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        return Failed("is compressed although that was not asked for")
    size = 0
    with await asyncio.to_thread(file.open, "wb") as output:
        async for piece in response.aiter_raw():
            size += len(piece)
            if size > formats.MAX_DOCUMENT_BYTES:
                return Failed(LARGE)
            await asyncio.to_thread(output.write, piece)
    return Fetched(media_type, size) if size else Failed(EMPTY)
