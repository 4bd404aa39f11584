"""An embedding model behind any OpenAI-compatible API: one HTTP call for a few texts, each with a deadline."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2

from genaifactory_common import settings, specs
from genaifactory_common.backoff import Backoff
from genaifactory_common.errors import InvalidArgument, Unavailable

_CONNECT_SECONDS = 10.0
_BYTES_OF_A_NUMBER = 32
_ANSWER_BYTES = 64 * 1024
"""Of an answer, beside its vectors."""
_ATTEMPTS = 3
"""For passages: a build of hours must not end with one failure. A question's caller waits, and asks again itself."""
_BACKOFF = Backoff(first_seconds=0.5, longest_seconds=4.0)
# Tokens of a model that is elsewhere can only be estimated: words in pieces of four letters, and every other sign.
_PIECE = re.compile(r"\w{1,4}|[^\w\s]")


def load(spec: specs.OpenAIEmbedder, cache_dir: Path) -> OpenAIEmbedder:
    """Calls nothing. Raises Unavailable without the key that the spec names."""
    for name in ("httpx2", "httpcore2"):  # at INFO they log every request with its URL
        logging.getLogger(name).setLevel(logging.WARNING)
    if spec.api_key_env is not None:
        _key(spec.api_key_env)
    return OpenAIEmbedder(spec)


class OpenAIEmbedder:
    """The model. Calls at once are bounded by the threads of documents and queries."""

    is_remote = True

    def __init__(self, spec: specs.OpenAIEmbedder) -> None:
        self.dimensions = spec.dimensions
        self.texts_at_once = spec.texts_at_once
        # The place and the key of the API may change; these may not.
        made_by = (spec.type, spec.model, spec.dimensions, spec.query_prefix, spec.passage_prefix)
        self.digest = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()
        self._spec = spec
        self._url = f"{str(spec.base_url).rstrip('/')}/embeddings"
        self._http = httpx2.Client(
            follow_redirects=False, timeout=httpx2.Timeout(spec.timeout_seconds, connect=_CONNECT_SECONDS)
        )
        weakref.finalize(self, self._http.close)

    def embed_passages(self, texts: Sequence[str]) -> list[list[float]]:
        """See Embedder."""
        prefixed = [self._spec.passage_prefix + text for text in texts]
        failures = 0
        while True:
            try:
                return self._vectors(prefixed)
            except _MayPass as error:
                failures += 1
                if failures == _ATTEMPTS:
                    raise self._failed(str(error)) from None
                time.sleep(_BACKOFF.seconds(failures))

    def embed_query(self, text: str) -> list[float]:
        """See Embedder."""
        try:
            return self._vectors([self._spec.query_prefix + text])[0]
        except _MayPass as error:
            raise self._failed(str(error)) from None

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        """See Embedder; an estimate."""
        return [found.span() for found in _PIECE.finditer(text)]

    def _vectors(self, texts: Sequence[str]) -> list[list[float]]:
        """Raises _MayPass and Unavailable."""
        body = {"model": self._spec.model, "input": list(texts), "encoding_format": "float"}
        headers = {"accept-encoding": "identity"}
        if self._spec.api_key_env is not None:
            headers["authorization"] = f"Bearer {_key(self._spec.api_key_env)}"
        until = time.monotonic() + self._spec.timeout_seconds
        try:
            with self._http.stream("POST", self._url, json=body, headers=headers) as response:
                if response.status_code in (408, 409, 425, 429) or response.status_code >= 500:
                    raise _MayPass(f"it answers HTTP {response.status_code}")
                if response.status_code != 200:
                    raise self._failed(f"it answers HTTP {response.status_code}; check its URL, model and key")
                data = self._read(response, len(texts), until)
        except httpx2.TimeoutException:
            raise _MayPass("it does not answer in time") from None
        except (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
            raise self._failed(f"the request cannot be sent ({type(error).__name__})") from None
        except httpx2.TransportError:
            raise _MayPass("it cannot be reached") from None
        try:
            found = {int(each["index"]): each["embedding"] for each in json.loads(data)["data"]}
            return [self._unit(found[place]) for place in range(len(texts))]
        except (ValueError, TypeError, LookupError, RecursionError):
            raise self._failed("its answer holds no vector for each text") from None

    def _read(self, response: httpx2.Response, texts: int, until: float) -> bytes:
        bound = _ANSWER_BYTES + texts * self.dimensions * _BYTES_OF_A_NUMBER
        data = bytearray()
        for piece in response.iter_raw():
            data += piece
            if time.monotonic() > until:
                raise _MayPass("it does not answer in time")
            if len(data) > bound:
                raise self._failed(f"its answer is longer than {self.dimensions} dimensions a text need")
        return bytes(data)

    def _unit(self, value: Any) -> list[float]:
        vector = [float(component) for component in value]
        length = math.hypot(*vector)
        if len(vector) != self.dimensions:
            raise self._failed(f"its vectors have {len(vector)} dimensions, and factory.yaml has {self.dimensions}")
        if not math.isfinite(length) or length == 0:
            raise self._failed("it returned no usable vector")
        return [component / length for component in vector]

    def _failed(self, why: str) -> Unavailable:
        return Unavailable(f"The embedding model '{self._spec.model}' cannot be used: {why}.")


class _MayPass(Exception):
    """Another attempt may succeed."""


def _key(variable: str) -> str:
    """Read for each call, so that changes of its file are followed."""
    try:
        key = (settings.secret(variable) or "").strip()
    except InvalidArgument as error:
        raise Unavailable(error.message) from None
    if not key or not key.isascii() or not key.isprintable():
        raise Unavailable(f"The environment variable {variable} holds no usable key of an embedding API.")
    return key
