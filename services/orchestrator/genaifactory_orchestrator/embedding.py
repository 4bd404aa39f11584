"""Embeds texts with a model of factory.yaml, and records the request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from genaifactory_common import identity, specs
from genaifactory_common.errors import Cancelled, NotFound, Reason
from genaifactory_orchestrator.answers.interaction import Record
from genaifactory_orchestrator.models.backend import Embeddings
from genaifactory_orchestrator.models.client import ModelClient
from genaifactory_orchestrator.models.pricing import Cost
from genaifactory_orchestrator.stores.outbox import Outbox


class Embedder:
    """Embeds texts."""

    def __init__(self, source: specs.Source, models: ModelClient, outbox: Outbox, *, timeout_seconds: float) -> None:
        self._source = source
        self._models = models
        self._outbox = outbox
        self._timeout_seconds = timeout_seconds

    async def embed(self, request_id: str, model: str, texts: Sequence[str]) -> tuple[Embeddings, Cost]:
        """One vector for each text, for the current caller, and their price.

        The interaction is on disk when this returns. Raises NotFound (no such embedding model) and the errors of
        the model client.
        """
        found = self._source.current.model(model)
        if found is None or found.kind != "embedding":
            raise NotFound(
                f"The embedding model '{model}' does not exist or you do not have access to it.",
                field="model",
                reason=Reason.MODEL_NOT_FOUND,
            )
        record = Record(request_id, identity.current(), "embedding", route=model, model=model)
        with self._outbox.reserve() as place:
            try:
                result = await self._models.embed(
                    model, texts, timeout_seconds=self._timeout_seconds, attempts=record.attempts
                )
            except asyncio.CancelledError:
                place.put_soon(record.failed(Cancelled("The caller cancelled the request.")))
                raise
            except Exception as error:
                await place.put(record.failed(error))
                raise
            await place.put(record.embedded())
        return result, record.cost
