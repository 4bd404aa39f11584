"""Runs a service: start, health, reflection, drain on SIGTERM; in a pod, in `genaifactory run` and in tests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import grpc
import grpc.aio
import prometheus_client
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from genaifactory_common import background, settings, specs, tls, tokens
from genaifactory_common.channels import MAX_MESSAGE_BYTES, METADATA_OPTIONS
from genaifactory_common.errors import FactoryError, InvalidArgument
from genaifactory_common.interceptors import Gate, ServerInterceptor
from genaifactory_common.space import Room, Space
from genaifactory_common.telemetry import Telemetry, configure_logging

logger = logging.getLogger(__name__)

AnySettings = TypeVar("AnySettings", bound=settings.Common)

LIVENESS = "liveness"
"""The health service for liveness; "" is the one for readiness."""
SPACE_LOW = "space.low"
"""The health service that is NOT_SERVING while the service's disk is nearly full, or full."""
SPACE_FULL = "space.full"
"""The health service that is NOT_SERVING while the service's disk is so full that nothing new is accepted."""

_READINESS_INTERVAL_SECONDS = 1.0
_PARENT_INTERVAL_SECONDS = 1.0
# How long before the server's end the calls that still run are ended with an error that allows a retry.
_ENDING_SECONDS = 2.0
_PROBES = 16


@dataclass(frozen=True)
class ServiceApp:
    """A service that is ready to run; every `create_app` returns one."""

    name: str
    telemetry: Telemetry
    service_names: tuple[str, ...]
    """Full names of its gRPC services, for health and reflection."""
    register: Callable[[grpc.aio.Server], None]
    """Adds its servicers to a server."""
    lifespan: Callable[[], AbstractAsyncContextManager[None]]
    """Opens the service's resources before the first call, and closes them after the last."""
    ready: Callable[[], bool] = lambda: True
    """Whether it can answer now; called once a second, and reported by grpc.health.v1 as the service ""."""
    alive: Callable[[], bool] = lambda: True
    """False when only a restart can help; called once a second, and reported as the service "liveness"."""
    serves_while_opening: bool = False
    """Whether calls, health included, are answered while the lifespan still opens; until then it is not ready."""
    verifier: tokens.Verifier | None = None
    """Verifies callers' tokens; None only at the gateway, whose clients send credentials of their own."""
    gate: Gate | None = None
    """Checks the clients' credentials, and bounds what they send; None where `verifier` is not."""
    factory: specs.Source | None = None
    """The factory.yaml that it follows; `main` watches it for changes."""
    space: Space | None = None
    """Room for its data; checked while it runs, and reported as the services "space.low" and "space.full"."""
    drain: Callable[[], Awaitable[object]] | None = None
    """Drains a server of the service's own (the gateway's HTTP) while the gRPC server drains."""


@asynccontextmanager
async def running(app: ServiceApp, server_settings: settings.Server) -> AsyncIterator[str]:
    """Serves the app inside the block; yields the address to connect to. At the end of the block it is drained.

    Raises OSError when the address cannot be bound, InvalidArgument when the TLS settings are wrong.
    """
    interceptor = ServerInterceptor(
        app.telemetry,
        app.verifier,
        callers=_callers(app, server_settings),
        default_timeout_seconds=server_settings.default_timeout_seconds,
        gate=app.gate,
    )
    server = grpc.aio.server(
        interceptors=[interceptor],
        maximum_concurrent_rpcs=server_settings.max_concurrent_calls,
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            *METADATA_OPTIONS,
            # Else gRPC accepts, on a fast connection, whole messages of calls that no handler reads yet.
            *((("grpc.http2.bdp_probe", 0),) if app.gate is not None else ()),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.max_connection_age_ms", int(server_settings.max_connection_age_seconds * 1000)),
            ("grpc.max_connection_age_grace_ms", 3_600_000),
            ("grpc.so_reuseport", 0),  # a second process on the port is a mistake, not a replica
        ],
    )
    app.register(server)
    reporter = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(reporter, server)
    reflection.enable_server_reflection((*app.service_names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    address = _bind(server, server_settings, ask_clients=app.verifier is not None)
    opened = asyncio.Event()
    async with _probed(reporter, server_settings), _reported(app, reporter, opened), _keys_followed(app):
        if app.serves_while_opening:
            await server.start()
        try:
            async with _space_watched(app.space), app.lifespan():
                if not app.serves_while_opening:
                    await server.start()
                opened.set()
                await _report(app, reporter, opened=True)
                logger.info("%s serves on %s", app.name, address)
                try:
                    yield address
                finally:
                    await reporter.enter_graceful_shutdown()
                    async with asyncio.TaskGroup() as draining:
                        draining.create_task(_drain(app))
                        draining.create_task(_stop(server, interceptor, server_settings))
        finally:
            await server.stop(None)  # where opening failed or was cancelled


@asynccontextmanager
async def _probed(reporter: health.aio.HealthServicer, server_settings: settings.Server) -> AsyncIterator[None]:
    """Serves health, and nothing else, on a port of its own: the kubelet's probes do not support TLS."""
    if server_settings.health_address is None:
        yield
        return
    server = grpc.aio.server(maximum_concurrent_rpcs=_PROBES, options=[("grpc.so_reuseport", 0)])
    health_pb2_grpc.add_HealthServicer_to_server(reporter, server)
    try:
        server.add_insecure_port(server_settings.health_address)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {server_settings.health_address}: {error}") from None
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


def _space_watched(space: Space | None) -> AbstractAsyncContextManager[None]:
    return contextlib.nullcontext() if space is None else space.watched()


def _reported(
    app: ServiceApp, reporter: health.aio.HealthServicer, opened: asyncio.Event
) -> AbstractAsyncContextManager[None]:
    return background.running(_report_forever(app, reporter, opened), name=f"{app.name}-health")


def _keys_followed(app: ServiceApp) -> AbstractAsyncContextManager[None]:
    if app.verifier is None:
        return contextlib.nullcontext()
    return background.running(app.verifier.watch(), name=f"{app.name}-keys")


async def _drain(app: ServiceApp) -> None:
    if app.drain is not None:
        await app.drain()


async def _stop(server: grpc.aio.Server, interceptor: ServerInterceptor, server_settings: settings.Server) -> None:
    drain_seconds = server_settings.drain_seconds
    if not server_settings.address.startswith("unix:"):
        # Clients that watch health leave now. gRPC cancels calls that reach a server after `stop`.
        drain_seconds -= await _until_quiet(interceptor, server_settings.quiet_seconds, drain_seconds / 2)
    stopping = asyncio.ensure_future(server.stop(drain_seconds))
    # A call that is cut off by the server's end has no error; one that is ended before returns that a retry helps.
    await asyncio.wait((stopping,), timeout=drain_seconds - min(_ENDING_SECONDS, drain_seconds / 2))
    interceptor.end_running()
    await stopping


async def _until_quiet(interceptor: ServerInterceptor, quiet_seconds: float, longest: float) -> float:
    """Waits until no call has come for `quiet_seconds`, `longest` seconds at most; returns the seconds waited."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    while (now := loop.time()) < (  # noqa: ASYNC110  # each call postpones the end
        until := min(max(interceptor.last_call_at, started) + quiet_seconds, started + longest)
    ):
        await asyncio.sleep(until - now)
    return now - started


def _callers(app: ServiceApp, server_settings: settings.Server) -> frozenset[str]:
    """The callers to accept. Raises InvalidArgument when any certificate would do, or callers could not be checked."""
    callers = frozenset(server_settings.callers)
    if server_settings.tls is None:
        return frozenset()
    if app.verifier is None and callers:
        raise InvalidArgument("GENAIFACTORY_SERVER__CALLERS must be empty: the clients send keys, not certificates.")
    if app.verifier is not None and not callers:
        raise InvalidArgument("GENAIFACTORY_SERVER__CALLERS must name who may call, since the server has certificates.")
    return callers


def _bind(server: grpc.aio.Server, server_settings: settings.Server, *, ask_clients: bool) -> str:
    address = server_settings.address
    try:
        if server_settings.tls is None:
            port = server.add_insecure_port(address)
        else:
            credentials = tls.server_credentials(server_settings.tls, ask_clients=ask_clients)
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from None
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


async def _report_forever(app: ServiceApp, reporter: health.aio.HealthServicer, opened: asyncio.Event) -> None:
    while True:
        await _report(app, reporter, opened=opened.is_set())
        await asyncio.sleep(_READINESS_INTERVAL_SECONDS)


async def _report(app: ServiceApp, reporter: health.aio.HealthServicer, *, opened: bool) -> None:
    # The probes' own port serves before the service's does.
    ready, alive = _status(opened and app.ready()), _status(app.alive())
    for name in ("", *app.service_names):
        await reporter.set(name, ready)
    await reporter.set(LIVENESS, alive)
    room = Room.ENOUGH if app.space is None else app.space.room
    await reporter.set(SPACE_LOW, _status(room < Room.LOW))
    await reporter.set(SPACE_FULL, _status(room < Room.FULL))


def _status(good: bool) -> int:
    return health_pb2.HealthCheckResponse.SERVING if good else health_pb2.HealthCheckResponse.NOT_SERVING


def main(
    name: str,
    load: Callable[[], AnySettings],
    create: Callable[[AnySettings, Telemetry], ServiceApp],
) -> None:
    """Runs one service as this process until SIGTERM or SIGINT, then drains it.

    load: the settings' class. An error that prevents the start ends the process with one line that names it.
    """
    try:
        common = load()
    except ValidationError as error:
        raise SystemExit("\n".join(_problem(each) for each in error.errors(include_input=False))) from None
    except FactoryError as error:
        raise SystemExit(f"{name}: {error}") from None
    configure_logging(common.telemetry)
    telemetry = Telemetry(name, common.telemetry)
    try:
        if common.server.metrics_port is not None:
            prometheus_client.start_http_server(common.server.metrics_port)
        uvloop.run(_serve(common, lambda: create(common, telemetry)))
    except (FactoryError, OSError) as error:
        raise SystemExit(f"{name}: {error}") from None
    finally:
        telemetry.close()


async def _serve(common: settings.Common, create: Callable[[], ServiceApp]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    app = create()
    opened = asyncio.Event()

    async def serve() -> None:
        async with running(app, common.server):
            opened.set()
            await stop.wait()
            logger.info("%s drains for up to %.0f s", app.name, common.server.drain_seconds)

    async with _watched(app.factory), _ended_with(common.server.parent_pid, stop):
        serving, stopped = asyncio.create_task(serve()), asyncio.create_task(stop.wait())
        await asyncio.wait((serving, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not opened.is_set() and not serving.done():
            logger.info("%s is stopped before it was open", app.name)
            serving.cancel()
            await asyncio.wait((serving,))
            return
        await serving


def _ended_with(parent_pid: int | None, stop: asyncio.Event) -> AbstractAsyncContextManager[None]:
    async def look() -> None:
        # An orphan gets another parent, of which no event tells.
        while os.getppid() == parent_pid:  # noqa: ASYNC110
            await asyncio.sleep(_PARENT_INTERVAL_SECONDS)
        logger.warning("the process %d, which started this one, has ended", parent_pid)
        stop.set()

    return contextlib.nullcontext() if parent_pid is None else background.running(look(), name="parent")


def _watched(factory: specs.Source | None) -> AbstractAsyncContextManager[None]:
    return contextlib.nullcontext() if factory is None else background.running(factory.watch(), name="factory-watch")


def _problem(error: ErrorDetails) -> str:
    """A wrong setting, named by its environment variable."""
    return f"{settings.variable(error['loc'])}: {error['msg'].removeprefix('Value error, ')}"
