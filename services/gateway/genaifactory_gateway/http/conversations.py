"""/v1/conversations: deletes stored conversations."""

from __future__ import annotations

import orjson

from genaifactory_gateway.admission import Admission
from genaifactory_gateway.http import query
from genaifactory_gateway.http.exchange import Exchange
from genaifactory_gateway.http.paths import Handlers
from genaifactory_gateway.upstream import Upstream

_ONE = "/v1/conversations/"


class HttpConversations:
    """Deletes conversations of the caller. Needs the permission 'chat'."""

    def __init__(self, admission: Admission, to: Upstream) -> None:
        self._admission = admission
        self._upstream = to

    def handlers(self) -> Handlers:
        """By path and method."""
        return {f"{_ONE}{{id}}": {"DELETE": self._delete}}

    async def _delete(self, exchange: Exchange) -> None:
        async with self._admission.admit(
            exchange.authorization, "DeleteConversation", exchange.request_id, exchange.entered
        ) as entry:
            exchange.named = lambda field: "id" if field == "conversation_id" else field
            query.parameters(exchange.query, ())
            conversation_id = exchange.path.removeprefix(_ONE)
            existed = await self._upstream.delete_conversation(entry, conversation_id)
            answer = {"object": "conversation.deleted", "id": conversation_id, "deleted": existed}
            await exchange.respond(orjson.dumps(answer))
