"""A model behind any OpenAI-compatible API: one HTTP call for a stream of pieces or a batch of vectors."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx2
import orjson

from genaifactory_common import conversation, retry_after, settings, specs, telemetry
from genaifactory_common.errors import InvalidArgument
from genaifactory_orchestrator.models import openai_errors, openai_format, sse
from genaifactory_orchestrator.models.backend import Embeddings, Failure, Piece, Prompt, Remedy, Usage

MAX_CONNECTIONS = 256  # to one model; further requests wait for a free one
MAX_STREAM_BYTES = 64 * 1024 * 1024
MAX_EMBEDDINGS_BYTES = 32 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
EMBED_BATCH = 256  # texts in one call; a response stays within its bound up to 4096 components a vector
_CONNECT_TIMEOUT_SECONDS = 10.0
_POOL_TIMEOUT_SECONDS = 5.0
_DRAIN_SECONDS = 0.05


class OpenAIBackend:
    """One model of one API, with a connection pool of its own, so that an API that hangs does not block others."""

    def __init__(self, name: str, spec: specs.OpenAIBackend, environ: Mapping[str, str], tls: ssl.SSLContext) -> None:
        """name: of the model in factory.yaml. environ: holds the key that the spec names, or the folder of its file."""
        self._name = name
        self._spec = spec
        self._environ = environ
        base_url = str(spec.base_url).rstrip("/")
        self._chat_url = httpx2.URL(f"{base_url}/chat/completions")
        self._embeddings_url = httpx2.URL(f"{base_url}/embeddings")
        self._http = httpx2.AsyncClient(
            verify=tls,
            follow_redirects=False,
            limits=httpx2.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=32, keepalive_expiry=30.0),
        )

    @property
    def continues_exactly(self) -> bool:
        """Only vLLM's API can continue an unfinished answer."""
        return self._spec.dialect == "vllm"

    async def generate(self, prompt: Prompt, *, prefix: str, timeout_seconds: float) -> AsyncGenerator[Piece, None]:
        """Streams an answer. Raises Failure."""
        try:
            body = openai_format.chat_body(self._spec, prompt, prefix)
        except openai_format.Unsupported as unsupported:
            raise Failure(unsupported.error, Remedy.NEXT, unhealthy=False) from None
        with openai_errors.translated(self._name):
            async with self._post(self._chat_url, body, "text/event-stream", timeout_seconds) as response:
                parser, received, choices = sse.Parser(), 0, prompt.choices
                async with aclosing(response.aiter_raw()) as raw:
                    async for data in raw:
                        received += len(data)
                        if received > MAX_STREAM_BYTES:
                            raise sse.MalformedStream("the stream is larger than the bound")
                        for event in parser.feed(data):
                            if event.data == b"[DONE]":
                                await _drain(raw)
                                return
                            for piece in self._pieces(event, choices):
                                yield piece

    async def embed(self, texts: Sequence[str], *, timeout_seconds: float) -> Embeddings:
        """One vector for each text. Raises Failure."""
        vectors: list[list[float]] = []
        usage = Usage()
        for start in range(0, len(texts), EMBED_BATCH):
            batch = texts[start : start + EMBED_BATCH]
            body = {"model": self._spec.model, "input": list(batch), "encoding_format": "float"}
            with openai_errors.translated(self._name):
                async with self._post(self._embeddings_url, body, "application/json", timeout_seconds) as response:
                    data = await _read(response, MAX_EMBEDDINGS_BYTES)
                if len(data) > MAX_EMBEDDINGS_BYTES:
                    raise openai_errors.malformed(self._name, "the response is larger than the bound")
                # Megabytes of numbers: parsed off the event loop, in at most one thread for each call.
                found, counted = await asyncio.to_thread(_vectors, data, len(batch))
            vectors += found
            usage += counted or Usage(prompt_tokens=sum(map(conversation.estimated_tokens, batch)), estimated=True)
        return Embeddings(vectors, usage)

    async def close(self) -> None:
        """Closes the pool."""
        await self._http.aclose()

    @asynccontextmanager
    async def _post(
        self, url: httpx2.URL, body: dict[str, Any], content_type: str, timeout_seconds: float
    ) -> AsyncIterator[httpx2.Response]:
        """A response of status 200 and the right type, with its body still to be read; closed after the block."""
        timeout = httpx2.Timeout(
            timeout_seconds,
            connect=min(timeout_seconds, _CONNECT_TIMEOUT_SECONDS),
            pool=min(timeout_seconds, _POOL_TIMEOUT_SECONDS),
        )
        request = self._http.build_request(
            "POST", url, content=orjson.dumps(body), headers=await self._headers(content_type), timeout=timeout
        )
        response = await self._http.send(request, stream=True)
        try:
            if response.status_code != 200:
                wait = retry_after.seconds(response.headers, time.time())
                refused = _json_or_none(await _read(response, MAX_ERROR_BYTES))
                raise openai_errors.refusal(self._name, response.status_code, refused, wait)
            if not response.headers.get("content-type", "").lower().startswith(content_type):
                raise openai_errors.malformed(self._name, f"the content type is not {content_type}")
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise openai_errors.malformed(self._name, "it is compressed, which the request did not allow")
            yield response
        finally:
            await response.aclose()

    async def _headers(self, accept: str) -> dict[str, str]:
        headers = {"content-type": "application/json", "accept": accept, "accept-encoding": "identity"}
        if self._spec.api_key_env is not None:
            headers["authorization"] = f"Bearer {await self._key(self._spec.api_key_env)}"
        if self._spec.dialect == "vllm":
            headers.update(telemetry.inject())
        return headers

    async def _key(self, variable: str) -> str:
        # Read for each call, so that changes of its file are followed.
        try:
            key = self._environ.get(variable) or await asyncio.to_thread(settings.secret, variable, self._environ) or ""
        except InvalidArgument as error:
            raise openai_errors.setup_failure(self._name, error.message) from None
        key = key.strip()
        if not key or not key.isascii() or not key.isprintable():
            raise openai_errors.setup_failure(self._name, f"the environment variable {variable} holds no usable key")
        return key

    def _pieces(self, event: sse.ServerSentEvent, choices: int) -> Iterator[Piece]:
        chunk = orjson.loads(event.data)
        if event.name == b"error" or (isinstance(chunk, dict) and chunk.get("error") is not None):
            raise openai_errors.stream_error(self._name, chunk)
        return openai_format.pieces(chunk, choices)


async def _drain(raw: AsyncGenerator[bytes, None]) -> None:
    """Reads the end of the body, so that the connection can be reused; if it does not end in time, it is closed."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for _ in raw:
                pass


async def _read(response: httpx2.Response, bound: int) -> bytes:
    """The body; if it is longer than `bound`, a part of it that is longer than that."""
    data = bytearray()
    async with aclosing(response.aiter_raw()) as raw:
        async for piece in raw:
            data += piece
            if len(data) > bound:
                break
    return bytes(data)


def _json_or_none(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None


def _vectors(data: bytes, count: int) -> tuple[list[list[float]], Usage | None]:
    return openai_format.vectors(orjson.loads(data), count)
