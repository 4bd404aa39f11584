"""Run in a pod: asks a model server once and prints its answer. Arguments: address, a caller's token for Generate."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from genaifactory.modelserver.v1 import modelserver_pb2, modelserver_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, identity, passes, settings

TLS = settings.Tls(certificate=Path("/tls/tls.crt"), private_key=Path("/tls/tls.key"), ca=Path("/tls/ca.crt"))


async def main(address: str, context: str) -> None:
    """Prints the text."""
    shown = passes.Received({passes.passed_on("genaifactory.modelserver.v1.ModelService"): context})
    identity.set_current(identity.Caller("acme", "pod", "pod", "r"), shown, "ask")
    request = modelserver_pb2.GenerateRequest(
        model="tiny", prompt="Annual leave", sampling=types_pb2.Sampling(max_tokens=16, temperature=0.0)
    )
    async with channels.connect(address, TLS) as channel:
        stub = modelserver_pb2_grpc.ModelServiceStub(channel)
        async for message in channels.stream(stub.Generate, request, timeout_seconds=60):
            print(message.delta, end="")


asyncio.run(main(*sys.argv[1:]))
