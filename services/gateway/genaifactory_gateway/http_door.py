"""The door for OpenAI's clients: which path does what. An ASGI application.

Plain ASGI rather than a framework: when a stream's status goes out, what a hang-up ends and how long a slow reader may
take are decided here, and a framework's response objects would hide just that. Nine paths need no router.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import urllib.parse
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import aclosing
from typing import Any, TypeVar

import orjson
import prometheus_client
from google.protobuf.timestamp_pb2 import Timestamp

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_common.errors import FactoryError, Internal, InvalidArgument, NotFound, Reason, Unavailable
from genaifactory_common.telemetry import Telemetry
from genaifactory_gateway import jsonbody, openai_requests, openai_responses, rules, upstream
from genaifactory_gateway.admission import Admission, Offer
from genaifactory_gateway.health import Health
from genaifactory_gateway.http_exchange import Exchange, Receive, Send
from genaifactory_gateway.observation import observed
from genaifactory_gateway.settings import Http
from genaifactory_gateway.upstream import Upstream

logger = logging.getLogger(__name__)

_Body = TypeVar("_Body", bound=openai_requests.Body)
_Handler = Callable[[Exchange], Awaitable[None]]

_MODELS = "/v1/models/"
# A body that takes longer to check than a turn of the event loop should last is checked in a thread.
_LARGE_BODY_BYTES = 64 << 10
_RATINGS = {None: monitor_pb2.RATING_UNSPECIFIED, "up": monitor_pb2.RATING_UP, "down": monitor_pb2.RATING_DOWN}


class HttpDoor:
    """Answers HTTP requests."""

    def __init__(
        self, admission: Admission, to: Upstream, health: Health, settings: Http, service_telemetry: Telemetry
    ) -> None:
        self._admission = admission
        self._upstream = to
        self._health = health
        self._settings = settings
        self._telemetry = service_telemetry
        self._handlers: dict[str, dict[str, _Handler]] = {
            "/v1/chat/completions": {"POST": self._chat},
            "/v1/embeddings": {"POST": self._embed},
            "/v1/models": {"GET": self._models},
            "/v1/feedback": {"POST": self._feedback},
            "/v1/usage": {"GET": self._usage},
            "/healthz": {"GET": self._alive},
            "/readyz": {"GET": self._ready},
            "/metrics": {"GET": self._metrics},
            f"{_MODELS}{{model}}": {"GET": self._model},
        }

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answers one request."""
        exchange = Exchange(scope, receive, send, self._settings)
        route = f"{_MODELS}{{model}}" if exchange.path.startswith(_MODELS) else exchange.path
        handlers = self._handlers.get(route)
        with observed(exchange, route if handlers else "unmatched", self._telemetry):
            try:
                await self._answer(exchange, handlers)
            except FactoryError as error:
                await _fail(exchange, error)
            except asyncio.CancelledError:  # the drain's time is over; the task ends here, with a word to the client
                await _fail(exchange, Unavailable("The gateway is stopping; try again.", retry_after_seconds=1.0))
            except Exception:
                logger.exception("unexpected error in %s, request %s", route, exchange.request_id)
                await _fail(exchange, Internal(f"The platform made a mistake; its log has {exchange.request_id}."))

    async def _answer(self, exchange: Exchange, handlers: dict[str, _Handler] | None) -> None:
        if handlers is None:
            raise NotFound("There is no such path; chat completions are at POST /v1/chat/completions.")
        handler = handlers.get(exchange.method)
        if handler is None:
            allowed = ", ".join(sorted(handlers))
            exchange.error = InvalidArgument(f"This path takes {allowed} only.")
            body = openai_responses.error_body(exchange.error)
            await exchange.respond(body, 405, headers=[(b"allow", allowed.encode())])
            return
        await handler(exchange)

    async def _chat(self, exchange: Exchange) -> None:
        async with self._admission.admit(exchange.authorization, "chat", exchange.request_id) as entry:
            exchange.entered(entry)
            body = await _read(exchange, openai_requests.ChatCompletion)
            route = entry.route(body.model)
            request = openai_requests.answer_request(body, exchange.request_id)
            answer = self._upstream.answer(entry, route, request)
            async with exchange.while_connected(), aclosing(answer) as events:
                created, choices = int(time.time()), body.n or 1
                if not body.stream:
                    completion = openai_responses.Completion(exchange.request_id, created, body.model, choices)
                    async for event in events:
                        if event.HasField("done"):
                            await exchange.respond(completion.body(event.done))
                        else:
                            completion.add(event)
                    return
                include_usage = bool(body.stream_options and body.stream_options.include_usage)
                chunks = openai_responses.Chunks(
                    exchange.request_id, created, body.model, choices, include_usage=include_usage
                )
                # The status goes out with the first event: an error before it is still a proper status.
                started = False
                async for event in events:
                    piece = chunks.closing(event.done) if event.HasField("done") else chunks.event(event)
                    if not started:
                        piece = chunks.opening() + piece
                        await exchange.start_stream()
                        started = True
                    await exchange.write(piece, last=event.HasField("done"))

    async def _embed(self, exchange: Exchange) -> None:
        async with self._admission.admit(exchange.authorization, "embed", exchange.request_id) as entry:
            exchange.entered(entry)
            body = await _read(exchange, openai_requests.Embeddings)
            model = entry.embedding_model(body.model)
            rules.check_texts(body.texts, "input")
            async with exchange.while_connected():
                response = await self._upstream.embed(entry, model, body.texts)
                size = len(response.embeddings[0].values)
                if body.dimensions not in (None, size):
                    raise InvalidArgument(
                        f"This model's vectors have {size} dimensions; leave 'dimensions' out or send {size}.",
                        field="dimensions",
                    )
                pieces = openai_responses.embeddings(
                    response.embeddings,
                    body.model,
                    response.usage.prompt_tokens,
                    as_base64=body.encoding_format == "base64",
                )
                parts: list[bytes] = []
                for piece in pieces:
                    parts.append(piece)
                    if len(parts) % 64 == 0:
                        await asyncio.sleep(0)  # thousands of vectors must not hold up the streams of others
                await exchange.respond(b"".join(parts))

    async def _models(self, exchange: Exchange) -> None:
        async with self._admission.admit(exchange.authorization, "models", exchange.request_id) as entry:
            exchange.entered(entry)
            await entry.reserve()
            data = [self._model_object(offer) for offer in entry.offers()]
            await exchange.respond(orjson.dumps({"object": "list", "data": data}))

    async def _model(self, exchange: Exchange) -> None:
        async with self._admission.admit(exchange.authorization, "models", exchange.request_id) as entry:
            exchange.entered(entry)
            offer = entry.offer(exchange.path.removeprefix(_MODELS))
            await entry.reserve()
            await exchange.respond(orjson.dumps(self._model_object(offer)))

    async def _feedback(self, exchange: Exchange) -> None:
        async with self._admission.admit(exchange.authorization, "feedback", exchange.request_id) as entry:
            exchange.entered(entry)
            body = await _read(exchange, openai_requests.Feedback)
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

    async def _usage(self, exchange: Exchange) -> None:
        async with self._admission.admit(exchange.authorization, "usage", exchange.request_id) as entry:
            exchange.entered(entry)
            start, end = _period(exchange.query)
            rows = await self._upstream.usage(entry, start, end)
            data = [
                {
                    "object": "usage",
                    "day": row.day,
                    "key_id": row.key_id,
                    "model": row.model,
                    "requests": row.requests,
                    "errors": row.errors,
                    **openai_responses.usage(row.usage),
                    "cost_micros": row.cost_micros,
                    "currency": row.currency,
                }
                for row in rows
            ]
            await exchange.respond(orjson.dumps({"object": "list", "data": data}))

    async def _alive(self, exchange: Exchange) -> None:
        await exchange.respond(b'{"status":"alive"}')

    async def _ready(self, exchange: Exchange) -> None:
        states = await self._health.look()
        status = "ready" if self._health.ready else "not ready"
        body = orjson.dumps({"status": status, "upstreams": states})
        await exchange.respond(body, 200 if self._health.ready else 503)

    async def _metrics(self, exchange: Exchange) -> None:
        text = await asyncio.to_thread(prometheus_client.generate_latest)
        kind = prometheus_client.CONTENT_TYPE_LATEST.encode()
        await exchange.respond(text, headers=[(b"content-type", kind)])

    def _model_object(self, offer: Offer) -> dict[str, Any]:
        return openai_responses.model_object(offer, self._admission.loaded_at)


async def _read(exchange: Exchange, model: type[_Body]) -> _Body:
    data = await exchange.body()
    if len(data) > _LARGE_BODY_BYTES:
        body = await asyncio.to_thread(openai_requests.read, model, data)
    else:
        body = openai_requests.read(model, data)
    exchange.named = lambda field: openai_requests.named_as_sent(field, body)
    return body


async def _fail(exchange: Exchange, error: FactoryError) -> None:
    with contextlib.suppress(FactoryError):  # a client that does not take its error either
        await exchange.fail(error)


def _period(query: bytes) -> tuple[Timestamp | None, Timestamp | None]:
    given = dict.fromkeys(("start_time", "end_time"), "")
    for name, value in urllib.parse.parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name not in given:
            raise InvalidArgument(
                f"Unknown parameter '{name[:100]}'; known: start_time, end_time.",
                field=name[:100],
                reason=Reason.UNKNOWN_FIELD,
            )
        given[name] = value
    return _moment("start_time", given["start_time"]), _moment("end_time", given["end_time"])


def _moment(field: str, text: str) -> Timestamp | None:
    if not text:
        return None
    moment = Timestamp()
    try:
        moment.FromJsonString(text)
    except ValueError:
        raise InvalidArgument(f"'{field}' must be a time like 2026-11-21T00:00:00Z.", field=field) from None
    return moment
