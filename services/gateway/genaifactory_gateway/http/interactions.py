"""/v1/interactions: exports recorded interactions as JSON lines."""

from __future__ import annotations

from contextlib import aclosing

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_gateway.admission import Admission
from genaifactory_gateway.http import query
from genaifactory_gateway.http.exchange import Exchange
from genaifactory_gateway.http.paths import Handlers
from genaifactory_gateway.records import Records


class HttpInteractions:
    """Exports the tenant's records. Needs the permission 'export'."""

    def __init__(self, admission: Admission, records: Records) -> None:
        self._admission = admission
        self._records = records

    def handlers(self) -> Handlers:
        """By path and method."""
        return {"/v1/interactions": {"GET": self._export}}

    async def _export(self, exchange: Exchange) -> None:
        async with self._admission.admit(
            exchange.authorization, "ExportInteractions", exchange.request_id, exchange.entered
        ) as entry:
            given = query.parameters(exchange.query, ("start_time", "end_time", "route", "model", "key_id"))
            wanted = monitor_pb2.InteractionFilter(
                start_time=query.moment("start_time", given["start_time"]),
                end_time=query.moment("end_time", given["end_time"]),
                route=given["route"],
                model=given["model"],
                key_id=given["key_id"],
            )
            exchange.named = lambda field: None if field is None else field.removeprefix("filter.")
            async with exchange.while_connected(), aclosing(self._records.export(entry, wanted)) as pieces:
                async for piece in pieces:
                    if not exchange.status:  # so that an error before the first line has its own status
                        await exchange.start_lines()
                    await exchange.write(piece.jsonl)
                if not exchange.status:
                    await exchange.start_lines()
                await exchange.write(b"", last=True)
