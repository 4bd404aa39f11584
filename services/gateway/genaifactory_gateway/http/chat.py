"""/v1/chat/completions: answers, whole or as a stream."""

from __future__ import annotations

import time
from contextlib import aclosing

from genaifactory_gateway.admission import Admission
from genaifactory_gateway.http.body import read
from genaifactory_gateway.http.exchange import Exchange
from genaifactory_gateway.http.paths import Handlers
from genaifactory_gateway.openai import opened, requests, responses
from genaifactory_gateway.upstream import Upstream

PATH = "/v1/chat/completions"


class HttpChat:
    """Answers conversations. Needs the permission 'chat'."""

    def __init__(self, admission: Admission, to: Upstream) -> None:
        self._admission = admission
        self._upstream = to

    def handlers(self) -> Handlers:
        """By path and method."""
        return {PATH: {"POST": self._chat}}

    async def _chat(self, exchange: Exchange) -> None:
        async with self._admission.admit(
            exchange.authorization, "Chat", exchange.request_id, exchange.entered
        ) as entry:
            body = await read(exchange, requests.ChatCompletion)
            route = entry.route(body.model)
            request = requests.answer_request(body, exchange.request_id, arm=exchange.arm)
            request.fresh = opened.bypasses_cache(exchange.headers.get(b"cache-control", b""))
            answer = self._upstream.answer(entry, route, request)
            async with exchange.while_connected(), aclosing(answer) as events:
                created, choices = int(time.time()), body.n or 1
                if not body.stream:
                    completion = responses.Completion(exchange.request_id, created, body.model, choices)
                    done = await completion.collect(events)
                    exchange.notes = opened.headers(completion.opened)
                    await exchange.respond(completion.body(done))
                    return
                include_usage = bool(body.stream_options and body.stream_options.include_usage)
                chunks = responses.Chunks(
                    exchange.request_id, created, body.model, choices, include_usage=include_usage
                )
                # The status is sent with the first event, so that an earlier error still has its own status.
                started = False
                async for event in events:
                    piece = chunks.closing(event.done) if event.HasField("done") else chunks.event(event)
                    if not started:
                        piece = chunks.opening(event.opened) + piece
                        exchange.notes = opened.headers(event.opened)
                        await exchange.start_stream()
                        started = True
                    await exchange.write(piece, last=event.HasField("done"))
