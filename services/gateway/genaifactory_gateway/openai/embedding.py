"""Embeds the texts of a body of OpenAI's API."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from genaifactory.orchestrator.v1 import orchestrator_pb2
from genaifactory_common import conversation
from genaifactory_common.errors import InvalidArgument
from genaifactory_gateway.admission import Entry
from genaifactory_gateway.openai import responses
from genaifactory_gateway.openai.requests import Embeddings
from genaifactory_gateway.upstream import Upstream


async def texts(body: Embeddings) -> list[str]:
    """The texts that the body holds, within the bounds. Raises InvalidArgument."""
    found = await asyncio.to_thread(body.texts)
    conversation.check_texts(found, "input")
    return found


async def embed(entry: Entry, to: Upstream, body: Embeddings) -> orchestrator_pb2.EmbedResponse:
    """Reserves and embeds; the vectors have the dimensions that the body names. Raises FactoryError."""
    model = entry.embedding_model(body.model)
    response = await to.embed(entry, model, await texts(body))
    size = len(response.embeddings[0].values)
    if body.dimensions not in (None, size):
        raise InvalidArgument(
            f"This model's vectors have {size} dimensions; leave 'dimensions' out or send {size}.",
            field="dimensions",
        )
    return response


def pieces(response: orchestrator_pb2.EmbedResponse, body: Embeddings) -> Iterator[bytes]:
    """The JSON of the response, in one piece for each vector."""
    return responses.embeddings(
        response.embeddings,
        body.model,
        response.usage.prompt_tokens,
        as_base64=body.encoding_format == "base64",
    )
