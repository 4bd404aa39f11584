"""An embedding model behind any OpenAI-compatible API: one HTTP call for a few texts, each with a deadline."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import re
import threading
import time
import weakref
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import httpx2

from genaifactory_common import retry_after, settings, specs
from genaifactory_common.backoff import Backoff
from genaifactory_common.errors import InvalidArgument, Unavailable

_CONNECT_SECONDS = 10.0
_BYTES_OF_A_NUMBER = 32
_PASSING_STATUS = (408, 409, 425, 429)
_ANSWER_BYTES = 64 * 1024
"""Of an answer, beside its vectors."""
_ATTEMPTS = 3
"""For passages: a build of hours must not end with one failure. A question's caller waits, and asks again itself."""
_BACKOFF = Backoff(first_seconds=0.5, longest_seconds=4.0)
_LONGEST_WAIT_SECONDS = 20.0
"""That an API may ask for between two attempts; the caller waits for more."""
# Tokens of a model that is elsewhere can only be estimated: words in pieces of four letters, and every other sign.
_PIECE = re.compile(r"\w{1,4}|[^\w\s]")


def load(spec: specs.OpenAIEmbedder, cache_dir: Path) -> OpenAIEmbedder:
    """Calls nothing, and needs no key yet: a version that nobody searches must not need one at the start."""
    for name in ("httpx2", "httpcore2"):  # at INFO they log every request with its URL
        logging.getLogger(name).setLevel(logging.WARNING)
    return OpenAIEmbedder(spec)


def digest(spec: specs.OpenAIEmbedder, cache_dir: Path) -> str:
    """See Embedder; the place and the key of the API may change, and what it is made of may not."""
    made_by = (spec.type, spec.model, spec.dimensions, spec.query_prefix, spec.passage_prefix)
    return hashlib.sha256(json.dumps(made_by).encode()).hexdigest()


class OpenAIEmbedder:
    """The model. Calls at once are bounded by the threads of documents and queries."""

    max_tokens = None  # unknown
    is_remote = True

    def __init__(self, spec: specs.OpenAIEmbedder) -> None:
        self.dimensions = spec.dimensions
        self.texts_at_once = spec.texts_at_once
        self.digest = digest(spec, Path())
        self._spec = spec
        self._url = f"{str(spec.base_url).rstrip('/')}/embeddings"
        self._http = httpx2.AsyncClient(
            follow_redirects=False, timeout=httpx2.Timeout(spec.timeout_seconds, connect=_CONNECT_SECONDS)
        )
        self._loop = _loop()
        weakref.finalize(self, _close, self._http, self._loop).atexit = False

    def embed_passages(self, texts: Sequence[str]) -> list[list[float]]:
        """See Embedder."""
        prefixed = [self._spec.passage_prefix + text for text in texts]
        failures = 0
        while True:
            try:
                return self._vectors(prefixed)
            except _Lasting as error:
                raise InvalidArgument(self._message(error), field="embedder") from None
            except _MayPass as error:
                failures += 1
                wait = max(error.wait_seconds or 0.0, _BACKOFF.seconds(failures))
                if failures == _ATTEMPTS or wait > _LONGEST_WAIT_SECONDS:
                    raise Unavailable(self._message(error), retry_after_seconds=error.wait_seconds) from None
                time.sleep(wait)

    def embed_query(self, text: str) -> list[float]:
        """See Embedder; whoever asks has made no mistake, so a failure that lasts is Unavailable too."""
        try:
            return self._vectors([self._spec.query_prefix + text])[0]
        except (_Lasting, _MayPass) as error:
            raise Unavailable(self._message(error)) from None

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        """See Embedder; an estimate."""
        return [found.span() for found in _PIECE.finditer(text)]

    def _vectors(self, texts: Sequence[str]) -> list[list[float]]:
        """Raises _MayPass and _Lasting."""
        body = {"model": self._spec.model, "input": list(texts), "encoding_format": "float"}
        headers = {"accept-encoding": "identity"}
        if self._spec.api_key_env is not None:
            headers["authorization"] = f"Bearer {_key(self._spec.api_key_env)}"
        call = asyncio.run_coroutine_threadsafe(self._answer(body, headers), self._loop)
        data = call.result()
        try:
            found = {int(each["index"]): each["embedding"] for each in json.loads(data)["data"]}
            return [self._unit(found[place]) for place in range(len(texts))]
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
            raise _Lasting("its answer holds no vector for each text") from None

    async def _answer(self, body: dict[str, Any], headers: dict[str, str]) -> bytes:
        """The body of the answer. Raises _MayPass and _Lasting."""
        try:
            # httpx2's own deadlines begin anew with every byte.
            async with (
                asyncio.timeout(self._spec.timeout_seconds),
                self._http.stream("POST", self._url, json=body, headers=headers) as response,
            ):
                status = response.status_code
                if status in _PASSING_STATUS or status >= 500:
                    raise _MayPass(f"it answers HTTP {status}", retry_after.seconds(response.headers, time.time()))
                if status != 200:
                    raise _Lasting(f"it answers HTTP {status}; check its URL, model and key")
                return await self._read(response, len(body["input"]))
        except (TimeoutError, httpx2.TimeoutException):
            raise _MayPass("it does not answer in time") from None
        except (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
            raise _Lasting(f"the request cannot be sent ({type(error).__name__})") from None
        except httpx2.TransportError:
            raise _MayPass("it cannot be reached") from None

    async def _read(self, response: httpx2.Response, texts: int) -> bytes:
        bound = _ANSWER_BYTES + texts * self.dimensions * _BYTES_OF_A_NUMBER
        data = bytearray()
        async for piece in response.aiter_raw():
            data += piece
            if len(data) > bound:
                raise _Lasting(f"its answer is longer than {self.dimensions} dimensions a text need")
        return bytes(data)

    def _unit(self, value: Any) -> list[float]:
        vector = [float(component) for component in value]
        length = math.hypot(*vector)
        if len(vector) != self.dimensions:
            raise _Lasting(f"its vectors have {len(vector)} dimensions, and factory.yaml has {self.dimensions}")
        if not math.isfinite(length) or length == 0:
            raise _Lasting("it returned no usable vector")
        return [component / length for component in vector]

    def _message(self, why: Exception) -> str:
        return f"The embedding model '{self._spec.model}' cannot be used: {why}."


class _MayPass(Exception):
    """Another attempt may succeed."""

    def __init__(self, why: str, wait_seconds: float | None = None) -> None:
        """wait_seconds: before the next attempt, if the API asks for it."""
        super().__init__(why)
        self.wait_seconds = wait_seconds


class _Lasting(Exception):
    """Another attempt would fail likewise, and the API may charge for it."""


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """Runs the calls of all APIs: a deadline ends a coroutine wherever it waits, and a blocking call only in places."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="embedding-apis", daemon=True).start()
    return loop


def _close(client: httpx2.AsyncClient, loop: asyncio.AbstractEventLoop) -> None:
    asyncio.run_coroutine_threadsafe(client.aclose(), loop)


def _key(variable: str) -> str:
    """Read for each call, so that changes of its file are followed. Raises _Lasting."""
    try:
        key = (settings.secret(variable) or "").strip()
    except InvalidArgument as error:
        raise _Lasting(error.message.rstrip(".")) from None
    if not key or not key.isascii() or not key.isprintable():
        raise _Lasting(f"the environment variable {variable} holds no usable key of an embedding API")
    return key
