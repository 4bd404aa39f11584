"""A real gateway with gRPC alone, in front of a test's services; calls of others cannot be reached."""

from __future__ import annotations

import asyncio
import base64
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc.aio
from pydantic import SecretStr

from genaifactory_common import channels, runtime, settings, specs, testing
from genaifactory_common.telemetry import Telemetry
from genaifactory_gateway import app
from genaifactory_gateway.settings import Settings

KEY = "gf-administrator"
FACTORY = f"""
tenants:
  - name: acme
    keys: [{{id: admin, sha256: {specs.hash_key(KEY)}, role: admin}}]
roles: [{{name: admin, permissions: [chat, usage, ingest, export, operate]}}]
models: [{{name: extractive, backend: {{type: modelserver, model: extractive}}}}]
routes: [{{name: chat, task: chat, models: [extractive]}}]
knowledge_bases: [{{name: documents}}]
policies: [{{name: default}}]
"""


@asynccontextmanager
async def gateway(
    *, retriever: grpc.aio.Channel | None = None, monitor: grpc.aio.Channel | None = None, address: str = ""
) -> AsyncIterator[grpc.aio.Channel]:
    """Runs it inside the block; yields a channel with KEY. address: unix:PATH; empty: one of its own."""
    async with AsyncExitStack() as stack:
        nobody = await stack.enter_async_context(channels.connect("unix:/nonexistent/service.sock"))
        folder = await asyncio.to_thread(tempfile.TemporaryDirectory, prefix="gf-")
        stack.push_async_callback(asyncio.to_thread, folder.cleanup)
        own = Settings(context_private_key=SecretStr(base64.b64encode(testing.SIGNER.private_key).decode()))
        to = app.Channels(orchestrator=nobody, monitor=monitor or nobody, retriever=retriever or nobody, safety=nobody)
        private = app.create_private_app(own, specs.Source(specs.parse(FACTORY)), to, Telemetry("gateway"))
        server = settings.Server(address=address or f"unix:{folder.name}/gateway.sock", drain_seconds=0.1)
        at = await stack.enter_async_context(runtime.running(private, server))
        yield await stack.enter_async_context(channels.connect(at, api_key=KEY))
