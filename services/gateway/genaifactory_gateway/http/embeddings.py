"""/v1/embeddings: vectors of texts."""

from __future__ import annotations

import asyncio

from genaifactory_gateway.admission import Admission
from genaifactory_gateway.http.body import read
from genaifactory_gateway.http.exchange import Exchange
from genaifactory_gateway.http.paths import Handlers
from genaifactory_gateway.openai import embedding, requests, token_ids
from genaifactory_gateway.upstream import Upstream


class HttpEmbeddings:
    """Embeds texts. Needs the permission 'embed'."""

    def __init__(self, admission: Admission, to: Upstream) -> None:
        self._admission = admission
        self._upstream = to

    def handlers(self) -> Handlers:
        """By path and method."""
        return {"/v1/embeddings": {"POST": self._embed}}

    async def _embed(self, exchange: Exchange) -> None:
        async with self._admission.admit(
            exchange.authorization, "Embed", exchange.request_id, exchange.entered
        ) as entry:
            body = await read(exchange, requests.Embeddings)
            if body.has_token_ids:
                exchange.notes.append((b"x-genaifactory-token-ids", token_ids.NAME.encode()))
            async with exchange.while_connected():
                response = await embedding.embed(entry, self._upstream, body)
                parts: list[bytes] = []
                for piece in embedding.pieces(response, body):
                    parts.append(piece)
                    if len(parts) % 64 == 0:
                        await asyncio.sleep(0)  # thousands of vectors must not delay streams of other requests
                await exchange.respond(b"".join(parts))
