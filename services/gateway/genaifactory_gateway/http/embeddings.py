"""/v1/embeddings: vectors of texts."""

from __future__ import annotations

import asyncio

from genaifactory_common import conversation
from genaifactory_common.errors import InvalidArgument
from genaifactory_gateway.admission import Admission
from genaifactory_gateway.http.body import read
from genaifactory_gateway.http.exchange import Exchange
from genaifactory_gateway.http.paths import Handlers
from genaifactory_gateway.openai import requests, responses, token_ids
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
        async with self._admission.admit(exchange.authorization, "Embed", exchange.request_id) as entry:
            exchange.entered(entry)
            body = await read(exchange, requests.Embeddings)
            model = entry.embedding_model(body.model)
            texts = await asyncio.to_thread(body.texts)
            if body.has_token_ids:
                exchange.notes.append((b"x-genaifactory-token-ids", token_ids.NAME.encode()))
            conversation.check_texts(texts, "input")
            async with exchange.while_connected():
                response = await self._upstream.embed(entry, model, texts)
                size = len(response.embeddings[0].values)
                if body.dimensions not in (None, size):
                    raise InvalidArgument(
                        f"This model's vectors have {size} dimensions; leave 'dimensions' out or send {size}.",
                        field="dimensions",
                    )
                pieces = responses.embeddings(
                    response.embeddings,
                    body.model,
                    response.usage.prompt_tokens,
                    as_base64=body.encoding_format == "base64",
                )
                parts: list[bytes] = []
                for piece in pieces:
                    parts.append(piece)
                    if len(parts) % 64 == 0:
                        await asyncio.sleep(0)  # thousands of vectors must not delay streams of other requests
                await exchange.respond(b"".join(parts))
