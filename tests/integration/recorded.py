"""What monitor has on record, once the queues of a platform that was killed have been sent."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from genaifactory.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from genaifactory_common import channels
from genaifactory_local.testing import Platform


async def counted(platform: Platform, enough: Callable[[Counter[str]], bool]) -> Counter[str]:
    """How often monitor has each request, by its id, once it has enough of them, or after a minute."""
    platform.sign_in()
    async with channels.connect(platform.endpoints.socket("monitor")) as channel:
        stub = monitor_pb2_grpc.MonitorServiceStub(channel)
        for _ in range(60):
            found: Counter[str] = Counter()
            request = monitor_pb2.QueryInteractionsRequest(page_size=500, without_text=True)
            while True:
                page = await channels.unary(stub.QueryInteractions, request, timeout_seconds=30)
                found.update(interaction.request_id for interaction in page.interactions)
                if not page.next_page_token:
                    break
                request.page_token = page.next_page_token
            if enough(found):
                break
            await asyncio.sleep(1)  # the queue of the last life is still being sent
    return found
