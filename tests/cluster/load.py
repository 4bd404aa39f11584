"""Run in a pod: asks the platform without pause, over HTTP and gRPC, until SIGTERM; says what failed.

Argument: the release's name. Writes one JSON object a line: every failure as it happens, and a summary every few
seconds. The ids of answered requests are appended to /tmp/answered.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, settings

RELEASE = sys.argv[1]
KEY = Path("/etc/genaifactory-secrets/GENAIFACTORY_API_KEY").read_text().strip()
TLS = settings.Trust(ca=Path("/etc/genaifactory-tls/ca.crt"))
PAUSE_SECONDS = float(os.environ.get("PAUSE_SECONDS", "0.4"))
SUMMARY_SECONDS = 5.0
KEEP_ALIVE = os.environ.get("KEEP_ALIVE", "yes") == "yes"
# What a client waits for an answer.
TIMEOUT_SECONDS = 60.0

counter = itertools.count()
answered: Counter[str] = Counter()
failed: Counter[str] = Counter()
latencies: list[float] = []
ids = Path("/tmp/answered").open("a", buffering=1)  # noqa: SIM115  # as long as the process


def question(route: str) -> str:
    """Never the same twice; the documents answer it."""
    return f"How many days of annual leave do I have? ({route} {os.getpid()}-{next(counter)})"


async def ask_http(client: httpx2.AsyncClient, *, close: bool, stream: bool, route: str) -> str:
    """One question without retries; the request's id. close: on a connection of its own."""
    body = {"model": route, "stream": stream, "messages": [{"role": "user", "content": question(route)}]}
    headers = {"authorization": f"Bearer {KEY}"} | ({"connection": "close"} if close else {})
    response = await client.post("/v1/chat/completions", json=body, headers=headers)
    if response.status_code != 200:
        raise RuntimeError(f"{response.status_code} {response.text[:300]}")
    if stream and not response.text.rstrip().endswith("data: [DONE]"):
        raise RuntimeError(f"the stream ended early: {response.text[-300:]}")
    if not stream and not response.json()["choices"][0]["message"]["content"]:
        raise RuntimeError("an empty answer")
    return response.headers["x-request-id"]


async def ask_grpc(stub: gateway_pb2_grpc.GatewayServiceAsyncStub, *, route: str) -> str:
    """One question, with the retries that the channel has; the request's id."""
    request = gateway_pb2.ChatRequest(
        model=route, messages=[types_pb2.Message(role=types_pb2.ROLE_USER, content=question(route))]
    )
    request_id, done, text = "", False, ""
    async for part in stub.Chat(request, timeout=TIMEOUT_SECONDS, metadata=(("authorization", f"Bearer {KEY}"),)):
        request_id, done, text = part.request_id or request_id, part.HasField("done"), text + part.delta
    if not done or not text:
        raise RuntimeError(f"the stream ended early after {text!r}")
    return request_id


async def repeat(name: str, ask: Callable[[], Awaitable[str]], stop: asyncio.Event) -> None:
    """Asks until told to stop; what fails is said and counted, and the next question follows."""
    while not stop.is_set():
        started = time.monotonic()
        try:
            request_id = await ask()
        except Exception as error:
            failed[name] += 1
            seconds = time.monotonic() - started
            say(
                {
                    "client": name,
                    "after_seconds": round(seconds, 2),
                    "failure": f"{type(error).__name__}: {error}"[:600],
                }
            )
        else:
            latencies.append(time.monotonic() - started)
            answered[name] += 1
            ids.write(request_id + "\n")
        await asyncio.sleep(PAUSE_SECONDS)


def say(what: dict[str, Any]) -> None:
    """One line."""
    print(json.dumps({"time": time.strftime("%H:%M:%S", time.gmtime()), **what}), flush=True)


def summary() -> dict[str, Any]:
    """What was seen since the start."""
    ordered = sorted(latencies)
    quantiles = {f"p{q}": round(ordered[len(ordered) * q // 100], 3) for q in (50, 99)} if ordered else {}
    longest = round(ordered[-1], 3) if ordered else 0.0
    return {
        "answered": sum(answered.values()),
        "by": answered,
        "failed": sum(failed.values()),
        **quantiles,
        "longest": longest,
    }


async def main() -> None:
    """Runs until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    client = httpx2.AsyncClient(base_url=f"http://{RELEASE}-gateway", timeout=TIMEOUT_SECONDS, trust_env=False)
    channel = channels.connect(f"dns:///{RELEASE}-gateway-pods:50051", TLS)
    async with client, channel:
        stub = gateway_pb2_grpc.GatewayServiceStub(channel)
        clients: dict[str, Callable[[], Awaitable[str]]] = {
            "http": lambda: ask_http(client, close=not KEEP_ALIVE, stream=False, route="rag"),
            "http-stream": lambda: ask_http(client, close=not KEEP_ALIVE, stream=True, route="rag"),
            "http-close": lambda: ask_http(client, close=True, stream=False, route="chat"),
            "grpc": lambda: ask_grpc(stub, route="rag"),
            "grpc-chat": lambda: ask_grpc(stub, route="chat"),
        }
        async with asyncio.TaskGroup() as group:
            for name, ask in clients.items():
                group.create_task(repeat(name, ask, stop))
            while not stop.is_set():
                try:
                    await asyncio.wait_for(stop.wait(), SUMMARY_SECONDS)
                except TimeoutError:
                    say(summary())
    say({"ended": True, **summary()})


asyncio.run(main())
