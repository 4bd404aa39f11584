"""/v1/feedback: judgements of answers."""

from __future__ import annotations

import orjson

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_gateway import jsonbody, upstream
from genaifactory_gateway.admission import Admission
from genaifactory_gateway.http.body import read
from genaifactory_gateway.http.exchange import Exchange
from genaifactory_gateway.http.paths import Handlers
from genaifactory_gateway.openai import requests
from genaifactory_gateway.upstream import Upstream

_RATINGS = {None: monitor_pb2.RATING_UNSPECIFIED, "up": monitor_pb2.RATING_UP, "down": monitor_pb2.RATING_DOWN}


class HttpFeedback:
    """Stores judgements. Needs the permission 'feedback'."""

    def __init__(self, admission: Admission, to: Upstream) -> None:
        self._admission = admission
        self._upstream = to

    def handlers(self) -> Handlers:
        """By path and method."""
        return {"/v1/feedback": {"POST": self._feedback}}

    async def _feedback(self, exchange: Exchange) -> None:
        async with self._admission.admit(
            exchange.authorization, "SubmitFeedback", exchange.request_id, exchange.entered
        ) as entry:
            body = await read(exchange, requests.Feedback)
            feedback = upstream.Feedback(
                request_id=body.request_id,
                rating=_RATINGS[body.rating],
                correction=body.correction,
                comment=body.comment,
                ground_truth=jsonbody.struct(body.ground_truth, "ground_truth") if body.ground_truth else None,
                idempotency_key=body.idempotency_key,
            )
            feedback_id, known = await self._upstream.record_feedback(entry, feedback)
            answer = {
                "id": feedback_id,
                "object": "feedback",
                "request_id": body.request_id,
                "request_known": known,
            }
            await exchange.respond(orjson.dumps(answer))
