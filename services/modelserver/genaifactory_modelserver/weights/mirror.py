"""Downloads from a mirror, a folder behind https:// with a SHA256SUMS file: resumes, retries, verifies."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import httpx2

from genaifactory_common.backoff import Backoff
from genaifactory_common.errors import InvalidArgument, NotFound, TooLarge, Unavailable
from genaifactory_common.redaction import without_secrets
from genaifactory_modelserver import threads
from genaifactory_modelserver.threads import Stop
from genaifactory_modelserver.weights import addresses, checksums

logger = logging.getLogger(__name__)

RETRIES = 6
"""After the first try; a try that brings bytes starts them anew."""
BACKOFF = Backoff(first_seconds=1.0, longest_seconds=32.0)
"""Between tries: half a minute in all, on average."""

_PARALLEL = 4  # files at once

_PIECE_BYTES = 1 << 20
# To connect, and between two pieces of a file; a download as a whole may take hours.
_TIMEOUT = httpx2.Timeout(connect=10.0, read=30.0, write=30.0, pool=None)
_MAX_REDIRECTS = 5

Added = Callable[[int], None]


class _Passing(Exception):
    """It may work the next time; the message names the fault."""


@asynccontextmanager
async def connect(address: str, *, field: str, backoff: Backoff = BACKOFF) -> AsyncIterator[Mirror]:
    """Opens connections to the mirror as they are needed. field: what errors name. Raises InvalidArgument."""
    base = addresses.mirror(address, field=field)
    for name in ("httpx2", "httpcore2"):  # they would log every request, with its URL
        logging.getLogger(name).setLevel(logging.WARNING)
    http = await asyncio.to_thread(_client, field)
    async with http:
        yield Mirror(http, base, field, backoff)


def _client(field: str) -> httpx2.AsyncClient:
    async def check(request: httpx2.Request) -> None:
        if request.url.scheme != "https" and not addresses.loopback(request.url.host):
            raise InvalidArgument("The mirror leads on to an address without https://.", field=field)

    return httpx2.AsyncClient(
        verify=httpx2.create_ssl_context(),
        timeout=_TIMEOUT,
        limits=httpx2.Limits(max_connections=2 * _PARALLEL),
        follow_redirects=True,
        max_redirects=_MAX_REDIRECTS,
        headers={"accept-encoding": "identity"},
        event_hooks={"request": [check]},
    )


class Mirror:
    """One mirror. Errors: NotFound for a file that it has not, InvalidArgument for what only a person can put right,
    Unavailable for what may pass; none shows a password."""

    def __init__(self, http: httpx2.AsyncClient, base: str, field: str, backoff: Backoff) -> None:
        self._http = http
        self._base = base
        self._field = field
        self._backoff = backoff

    async def sums(self) -> bytes:
        """Its SHA256SUMS file."""
        failures = 0
        while True:
            try:
                async with self._opened("GET", checksums.FILE, {}) as response:
                    data = b""
                    async for piece in response.aiter_bytes(_PIECE_BYTES):
                        data += piece
                        if len(data) > checksums.MAX_BYTES:
                            message = f"Its {checksums.FILE} file is larger than {checksums.MAX_BYTES} bytes."
                            raise InvalidArgument(message, field=self._field)
                    return data
            except _Passing as error:
                failures += 1
                await self._wait(failures, checksums.FILE, error)

    async def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Bytes of each file, as far as the mirror reports them."""
        sizes: dict[str, int] = {}

        async def ask(name: str) -> None:
            try:
                async with self._opened("HEAD", name, {}) as response:
                    length = response.headers.get("content-length", "")
                    if length.isdecimal():
                        sizes[name] = int(length)
            except (_Passing, InvalidArgument):  # some mirrors support GET alone
                return

        await together(ask(name) for name in names)
        return sizes

    async def fetch(
        self, name: str, sha256: str, part: Path, target: Path, added: Added, *, max_bytes: int | None = None
    ) -> None:
        """Downloads a file to `target`, which appears when it is whole and verified; goes on with what `part` holds."""
        growing = _Part(part)
        try:
            await threads.run(growing.open)
            begun_before = growing.size > 0
            added(growing.size)
            while True:
                await self._receive_whole(name, growing, added, max_bytes)
                digest = growing.digest()
                if digest == sha256:
                    break
                added(-growing.size)
                await threads.run(growing.restart)
                if not begun_before:
                    raise InvalidArgument(
                        f"'{name}' of {self._shown} has the SHA-256 {digest}, and its {checksums.FILE} says {sha256}.",
                        field=self._field,
                    )
                begun_before = False  # what an earlier process had left may have been of another version
            await threads.run(lambda _: growing.finish(target))
        finally:
            await threads.run(growing.close)

    async def _receive_whole(self, name: str, part: _Part, added: Added, max_bytes: int | None) -> None:
        failures = 0
        while True:
            before = part.size
            try:
                return await self._receive(name, part, added, max_bytes)
            except _Passing as error:
                failures = 1 if part.size > before else failures + 1
                await self._wait(failures, name, error)

    async def _receive(self, name: str, part: _Part, added: Added, max_bytes: int | None) -> None:
        headers = {"range": f"bytes={part.size}-"} if part.size else {}
        async with self._opened("GET", name, headers) as response:
            if response.status_code == 416:  # there is nothing after what we have; the checksum shows whether it is all
                return
            start = response.headers.get("content-range", "").removeprefix("bytes ").partition("-")[0]
            if part.size and (response.status_code != 206 or start != str(part.size)):
                if response.status_code == 206:
                    raise _Passing("it answered with another range than it was asked for")
                added(-part.size)
                await threads.run(part.restart)
            waiting = bytearray()
            try:
                async for piece in response.aiter_raw():
                    waiting += piece
                    if max_bytes is not None and part.size + len(waiting) > max_bytes:
                        raise TooLarge(f"'{name}' is larger than {max_bytes} bytes, the most taken.", field=self._field)
                    if len(waiting) >= _PIECE_BYTES:
                        await _append(part, waiting, added)
            finally:  # also what a broken connection has brought
                await _append(part, waiting, added)

    @asynccontextmanager
    async def _opened(self, method: str, name: str, headers: dict[str, str]) -> AsyncIterator[httpx2.Response]:
        try:
            async with self._http.stream(method, self._base + quote(name), headers=headers) as response:
                self._check(response, name)
                yield response
        except (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError, httpx2.InvalidURL, httpx2.TooManyRedirects):
            raise InvalidArgument(f"{self._shown} cannot be asked for '{name}'.", field=self._field) from None
        except httpx2.ConnectError as error:
            if isinstance(error.__cause__, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY" in str(error):
                message = f"The certificate of {self._shown} is not trusted here: {without_secrets(str(error))}"
                raise InvalidArgument(message, field=self._field) from None
            raise _Passing("it cannot be reached") from None
        except httpx2.TransportError as error:
            raise _Passing(f"the connection failed ({type(error).__name__})") from None

    def _check(self, response: httpx2.Response, name: str) -> None:
        status = response.status_code
        if status in (200, 206, 416):
            return
        if status in (408, 425, 429) or status >= 500:
            raise _Passing(f"it answered {status}")
        if status in (404, 410):
            raise NotFound(f"{self._shown} has no file '{name}'.", field=self._field)
        why = "it wants credentials, or other ones" if status in (401, 403) else "a mirror answers 200"
        raise InvalidArgument(f"{self._shown} answered {status} for '{name}': {why}.", field=self._field)

    async def _wait(self, failures: int, name: str, error: _Passing) -> None:
        if failures > RETRIES:
            raise Unavailable(f"'{name}' cannot be had from {self._shown}: {error}; tried {failures} times.") from None
        logger.warning("'%s' from %s: %s; it is tried again", name, self._shown, error)
        await asyncio.sleep(self._backoff.seconds(failures))

    @property
    def _shown(self) -> str:
        return without_secrets(self._base)


async def together(jobs: Iterable[Coroutine[None, None, None]]) -> None:
    """Runs some of the jobs at once; the first that fails ends the others, and its error is raised as it is."""
    places = asyncio.Semaphore(_PARALLEL)

    async def in_turn(job: Coroutine[None, None, None]) -> None:
        async with places:
            await job

    try:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(in_turn(job))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _append(part: _Part, waiting: bytearray, added: Added) -> None:
    piece = bytes(waiting)
    waiting.clear()
    await threads.run(lambda _: part.append(piece))
    added(len(piece))


class _Part:
    """A file that grows, with its digest so far. Its methods block."""

    def __init__(self, path: Path) -> None:
        self.size = 0
        self._path = path
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()

    def open(self, stop: Stop) -> None:
        """Reads what is there already."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+b")
        self._file.seek(0)
        while piece := self._file.read(_PIECE_BYTES):
            stop.check()
            self._hash.update(piece)
            self.size += len(piece)

    def append(self, piece: bytes) -> None:
        """Adds bytes."""
        assert self._file is not None
        self._file.write(piece)
        self._hash.update(piece)
        self.size += len(piece)

    def restart(self, _: Stop) -> None:
        """Forgets everything."""
        assert self._file is not None
        self._file.truncate(0)
        self._hash = hashlib.sha256()
        self.size = 0

    def digest(self) -> str:
        """SHA-256 of what is there, hex."""
        return self._hash.hexdigest()

    def finish(self, target: Path) -> None:
        """Makes it the target, safe against a loss of power."""
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self._path, target)

    def close(self, _: Stop) -> None:
        """Lets go of the file."""
        if self._file is not None:
            self._file.close()
