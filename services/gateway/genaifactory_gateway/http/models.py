"""/v1/models: the routes and models that the key may name as `model`."""

from __future__ import annotations

from typing import Any

import orjson

from genaifactory_gateway.admission import Admission, Offer
from genaifactory_gateway.http.exchange import Exchange
from genaifactory_gateway.http.paths import Handlers
from genaifactory_gateway.openai import responses

_ALL = "/v1/models"
_ONE = "/v1/models/"


class HttpModels:
    """Lists routes and embedding models. Needs the permission 'models'."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def handlers(self) -> Handlers:
        """By path and method."""
        return {_ALL: {"GET": self._models}, f"{_ONE}{{model}}": {"GET": self._model}}

    async def _models(self, exchange: Exchange) -> None:
        async with self._admission.admit(
            exchange.authorization, "ListModels", exchange.request_id, exchange.entered
        ) as entry:
            await entry.reserve()
            data = [self._model_object(offer) for offer in entry.offers()]
            await exchange.respond(orjson.dumps({"object": "list", "data": data}))

    async def _model(self, exchange: Exchange) -> None:
        async with self._admission.admit(
            exchange.authorization, "ListModels", exchange.request_id, exchange.entered
        ) as entry:
            offer = entry.offer(exchange.path.removeprefix(_ONE))
            await entry.reserve()
            await exchange.respond(orjson.dumps(self._model_object(offer)))

    def _model_object(self, offer: Offer) -> dict[str, Any]:
        return responses.model_object(offer, self._admission.loaded_at)
