"""The model server as a process of its own: vLLM has its own Python and processes, and loads for minutes."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio

from genaifactory.modelserver.v1 import modelserver_pb2, modelserver_pb2_grpc
from genaifactory_common import channels, files, settings, specs
from genaifactory_common.errors import Unavailable
from genaifactory_common.tokens import Signer
from genaifactory_local.configuration import sign_in
from genaifactory_local.state import State, service_address

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
_KILL_AFTER_SECONDS = 15.0

Report = Callable[[str], None]
"""Called with a line about progress, for the terminal."""


@asynccontextmanager
async def running(
    python: Path,
    state: State,
    sockets: Path,
    source: specs.Source,
    signer: Signer,
    *,
    telemetry: settings.Telemetry,
    drain_seconds: float,
    report: Report,
) -> AsyncIterator[grpc.aio.Channel]:
    """Runs it inside the block; yields a channel once every model is ready. Raises FactoryError when one cannot be."""
    address = service_address(sockets, "modelserver")
    factory_file = state.data("modelserver") / "factory.yaml"
    log = state.log_file.with_name("modelserver.log")

    def write(factory: specs.Factory) -> None:
        factory_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.write(factory_file, factory.model_dump_json(indent=1).encode())  # JSON is YAML

    await asyncio.to_thread(write, source.current)
    source.follow(lambda change: write(change.after))
    environment = {
        **os.environ,
        "GENAIFACTORY_SERVER__ADDRESS": address,
        "GENAIFACTORY_SERVER__DRAIN_SECONDS": str(drain_seconds),
        "GENAIFACTORY_SERVER__PARENT_PID": str(os.getpid()),
        "GENAIFACTORY_FACTORY_FILE": str(factory_file),
        "GENAIFACTORY_DATA_DIR": str(state.data("modelserver")),
        "GENAIFACTORY_CONTEXT_PUBLIC_KEY": base64.b64encode(signer.public_key).decode(),
        "GENAIFACTORY_TELEMETRY__LOG_LEVEL": telemetry.log_level,
    }
    if telemetry.spans_file is not None:
        environment["GENAIFACTORY_TELEMETRY__SPANS_FILE"] = str(telemetry.spans_file)
    process = await asyncio.to_thread(_start, python, environment, log)
    try:
        async with channels.connect(address) as channel:
            tenant = source.current.tenants[0].name
            await _opened(process, channel, Path(address.removeprefix("unix:")), signer, tenant, log, report)
            yield channel
    finally:
        await _stop(process, drain_seconds)


def _start(python: Path, environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        # Its own session: Ctrl-C in the terminal must not stop it before its callers.
        return subprocess.Popen(  # noqa: S603  # the interpreter that has vLLM
            (python, "-m", "genaifactory_modelserver"),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


async def _opened(
    process: subprocess.Popen[bytes],
    channel: grpc.aio.Channel,
    socket: Path,
    signer: Signer,
    tenant: str,
    log: Path,
    report: Report,
) -> None:
    sign_in(signer, tenant)
    stub = modelserver_pb2_grpc.ModelServiceStub(channel)
    reported = ""
    while True:
        if process.poll() is not None:
            raise Unavailable(f"The model server has ended: {await asyncio.to_thread(_last_line, log)}")
        if not await asyncio.to_thread(socket.exists):  # it does not listen yet
            await asyncio.sleep(_LOOK_SECONDS)
            continue
        listed = await channels.unary(stub.ListModels, modelserver_pb2.ListModelsRequest(), timeout_seconds=30.0)
        for model in listed.models:
            if model.state == modelserver_pb2.MODEL_STATE_FAILED:
                raise Unavailable(f"The model '{model.name}' cannot be served: {model.state_message}")
        waiting = [model for model in listed.models if model.state != modelserver_pb2.MODEL_STATE_READY]
        if not waiting:
            for model in listed.models:
                if model.state_message:
                    logger.warning("%s: %s", model.name, model.state_message)
            return
        message = f"{waiting[0].name}: {waiting[0].state_message}"
        if message != reported:
            report(message)
            reported = message
        await asyncio.sleep(_LOOK_SECONDS)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{lines[-1].removeprefix('modelserver: ')} ({log})" if lines else f"its log {log} is empty."


async def _stop(process: subprocess.Popen[bytes], drain_seconds: float) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        await asyncio.to_thread(process.wait, drain_seconds + _KILL_AFTER_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        await asyncio.to_thread(process.wait)
