"""The platform's help for evaluators: embeddings, and what guardrails find."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from genaifactory_common import conversation
from genaifactory_pipelines.evaluation.protocol import Embed, Find

_BATCH_TEXTS = 64
_MOST_CHARACTERS = 10_000
"""Models of embeddings read some hundred tokens; a batch stays far below the bound of one call."""
_MOST_KNOWN = 20_000
"""Vectors that are kept: 60 MB of MiniLM's."""


class Embedder(Protocol):
    """See Gateway."""

    async def embed(self, texts: Sequence[str], model: str) -> list[Sequence[float]]:
        """A vector for each text. texts: 1 to conversation.MAX_TEXTS, none empty. Raises FactoryError."""
        ...


class Finder(Protocol):
    """See Gateway."""

    async def find(self, texts: Sequence[str], policy: str) -> list[frozenset[str]]:
        """The types of entities that a policy finds in each text. texts: 1 to conversation.MAX_CHECKED_TEXTS. Raises
        FactoryError."""
        ...


def finding(finder: Finder) -> Find:
    """Finds in any number of texts."""
    most = conversation.MAX_CHECKED_TEXTS

    async def find(texts: Sequence[str], policy: str) -> list[frozenset[str]]:
        return [each for i in range(0, len(texts), most) for each in await finder.find(texts[i : i + most], policy)]

    return find


def embedding(embedder: Embedder, model: str) -> Embed:
    """Embeds by a model of the platform, a text that passages of several answers share once."""
    known: dict[str, Sequence[float]] = {}

    async def embed(texts: Sequence[str]) -> Sequence[Sequence[float]]:
        if len(known) > _MOST_KNOWN:
            known.clear()
        found = {text: known[text] for text in texts if text in known}
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        for start in range(0, len(missing), _BATCH_TEXTS):
            batch = missing[start : start + _BATCH_TEXTS]
            vectors = await embedder.embed([text[:_MOST_CHARACTERS] for text in batch], model)
            found |= zip(batch, vectors, strict=True)
        known.update(found)
        return [found[text] for text in texts]

    return embed
