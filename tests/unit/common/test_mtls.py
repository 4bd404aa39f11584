"""mTLS: the callers that a service accepts, by their certificates, and changes of certificates."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc.aio
import prometheus_client
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from genaifactory.safety.v1 import safety_pb2, safety_pb2_grpc
from genaifactory_common import channels, connection, runtime, settings, testing, tls
from genaifactory_common.certificates import Authority, expiry
from genaifactory_common.errors import (
    DeadlineExceeded,
    InvalidArgument,
    PermissionDenied,
    Unavailable,
    from_rpc,
)
from genaifactory_common.testing import certificates
from tests.unit.common.conftest import Scripted, answer, released

SAFETY = "spiffe://cluster.local/ns/genai/sa/factory-safety"
STRANGER = "spiffe://cluster.local/ns/other/sa/factory-gateway"
REQUEST = safety_pb2.CheckTextRequest(text="x")

# Certificates are checked on the event loop: their files are in memory, and rarely read.
pytestmark = pytest.mark.allow_blocking


@pytest.fixture
def authority() -> Authority:
    """The authority that all services trust."""
    return certificates.new_authority()


@pytest.fixture
def of_server(tmp_path: Path, authority: Authority) -> settings.Tls:
    """The service's own certificate."""
    return certificates.write(tmp_path / "server", authority, SAFETY)


def server(of_server: settings.Tls | None, *callers: str, **fields: Any) -> settings.Server:
    return settings.Server(
        address="localhost:0",
        drain_seconds=0.1,
        tls=of_server,
        callers=callers or (certificates.GATEWAY,),
        **fields,
    )


async def check(channel: grpc.aio.Channel, *, seconds: float = 5) -> str:
    stub = safety_pb2_grpc.SafetyServiceStub(channel)
    return (await channels.unary(stub.CheckText, REQUEST, timeout_seconds=seconds)).text


async def list_services(channel: grpc.aio.Channel) -> set[str]:
    async def asked() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    make_stub: Any = reflection_pb2_grpc.ServerReflectionStub  # the package's types lack asyncio
    try:
        async for response in make_stub(channel).ServerReflectionInfo(asked(), timeout=5):
            return {service.name for service in response.list_services_response.service}
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from None
    raise AssertionError("no response")


class TestCallers:
    async def test_a_configured_caller_is_accepted(
        self, scripted: Scripted, tmp_path: Path, authority: Authority, of_server: settings.Tls
    ) -> None:
        of_client = certificates.write(tmp_path / "client", authority, SAFETY)
        testing.act_as()
        where = server(of_server, certificates.GATEWAY, SAFETY)
        async with runtime.running(scripted.app(), where) as address, channels.connect(address, of_client) as channel:
            assert await check(channel) == "x"
            assert "grpc.health.v1.Health" in await list_services(channel)

    @pytest.mark.parametrize("who", [STRANGER, "spiffe://cluster.local/ns/genai/sa/factory-gateway2"])
    async def test_another_identity_of_the_same_authority_is_refused(
        self,
        who: str,
        scripted: Scripted,
        tmp_path: Path,
        authority: Authority,
        of_server: settings.Tls,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        called = False

        async def note(_: safety_pb2.CheckTextRequest) -> safety_pb2.CheckTextResponse:
            nonlocal called
            called = True
            return answer("")

        async def note_all(
            requests: AsyncIterator[safety_pb2.CheckStreamRequest],
        ) -> AsyncIterator[safety_pb2.CheckStreamResponse]:
            nonlocal called
            called = True
            yield released("")

        scripted.unary, scripted.duplex = note, note_all
        of_client = certificates.write(tmp_path / "client", authority, who, ("localhost", certificates.GATEWAY[9:]))
        testing.act_as()
        async with (
            runtime.running(scripted.app(), server(of_server)) as address,
            channels.connect(address, of_client) as channel,
        ):
            with pytest.raises(PermissionDenied, match=f"^{who} may not call this service.$"):
                await check(channel)
            stream = channels.Duplex(safety_pb2_grpc.SafetyServiceStub(channel).CheckStream, timeout_seconds=5)
            with pytest.raises(PermissionDenied, match=who):
                [response async for response in stream]
            with pytest.raises(PermissionDenied, match=who):
                await list_services(channel)
            # Health is open to every client.
            health: Any = health_pb2_grpc.HealthStub(channel)  # the package's types lack its methods
            state = await health.Check(health_pb2.HealthCheckRequest(), timeout=5)
            assert state.status == health_pb2.HealthCheckResponse.SERVING
        assert not called
        assert f"{who}, at ipv" in caplog.text

    @pytest.mark.parametrize("who", ["another ca's", "expired", "nobody's"])
    async def test_a_peer_without_a_valid_certificate_is_refused(
        self, who: str, scripted: Scripted, tmp_path: Path, authority: Authority, of_server: settings.Tls
    ) -> None:
        of_client: settings.Tls | None = None
        if who == "another ca's":
            stranger = certificates.new_authority()
            of_client = certificates.write(tmp_path / "client", stranger, trusted=(authority,))
        elif who == "expired":
            long_ago = datetime.now(UTC) - 2 * certificates.DAY
            of_client = certificates.write(tmp_path / "client", authority, now=long_ago)
        testing.act_as()
        async with (
            runtime.running(scripted.app(), server(of_server)) as address,
            channels.connect(address, of_client) as channel,
        ):
            with pytest.raises((Unavailable, DeadlineExceeded)):
                await check(channel, seconds=1)

    async def test_a_client_refuses_a_server_of_another_ca(
        self, scripted: Scripted, tmp_path: Path, authority: Authority
    ) -> None:
        stranger = certificates.new_authority()
        of_server = certificates.write(tmp_path / "server", stranger, SAFETY, trusted=(authority,))
        of_client = certificates.write(tmp_path / "client", authority)
        testing.act_as()
        async with (
            runtime.running(scripted.app(), server(of_server)) as address,
            channels.connect(address, of_client) as channel,
        ):
            with pytest.raises((Unavailable, DeadlineExceeded)):
                await check(channel, seconds=1)

    async def test_a_service_that_would_accept_every_certificate_does_not_start(
        self, scripted: Scripted, of_server: settings.Tls
    ) -> None:
        open_to_all = settings.Server(address="localhost:0", tls=of_server)
        with pytest.raises(InvalidArgument, match="GENAIFACTORY_SERVER__CALLERS"):
            await runtime.running(scripted.app(), open_to_all).__aenter__()

    async def test_clients_with_keys_need_no_certificates(
        self, scripted: Scripted, authority: Authority, of_server: settings.Tls
    ) -> None:
        """At the gateway, which verifies no callers' tokens."""
        app = scripted.app(verifier=None)
        with pytest.raises(InvalidArgument, match="GENAIFACTORY_SERVER__CALLERS must be empty"):
            await runtime.running(app, server(of_server)).__aenter__()
        where = settings.Server(address="localhost:0", drain_seconds=0.1, tls=of_server)
        credentials = grpc.ssl_channel_credentials(authority.pem)
        async with runtime.running(app, where) as address, grpc.aio.secure_channel(address, credentials) as channel:
            assert await check(channel) == "x"
            assert "grpc.health.v1.Health" in await list_services(channel)

    async def test_a_unix_socket_needs_no_certificate(self, scripted: Scripted, socket_folder: Path) -> None:
        testing.act_as()
        where = settings.Server(address=f"unix:{socket_folder}/s", callers=(STRANGER,), drain_seconds=0.1)
        async with runtime.running(scripted.app(), where) as address, channels.connect(address) as channel:
            assert await check(channel) == "x"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients check for new certificates at every call."""
    monkeypatch.setattr(connection, "_LOOK_SECONDS", 0.0)


class TestCertificatesThatChange:
    async def test_neither_side_loses_a_call_while_certificates_and_the_authority_are_replaced(
        self, scripted: Scripted, tmp_path: Path, authority: Authority, impatient: None
    ) -> None:
        new, answered, stop = certificates.new_authority("next"), 0, asyncio.Event()
        shown: set[bytes] = set()

        def put(signer: Authority, *trusted: Authority) -> tuple[settings.Tls, settings.Tls]:
            own = certificates.write(tmp_path / "server", signer, SAFETY, trusted=trusted)
            shown.add(own.certificate.read_bytes())
            return own, certificates.write(tmp_path / "client", signer, trusted=trusted)

        of_server, of_client = put(authority, authority)
        testing.act_as()
        where = server(of_server, max_connection_age_seconds=0.2)
        async with (
            runtime.running(scripted.app(), where) as address,
            channels.connect(address, of_client) as channel,
        ):
            seen: set[bytes] = set()

            async def ask() -> None:
                nonlocal answered
                while not stop.is_set():
                    assert await check(channel) == "x"
                    answered += 1

            async def go_on_streaming() -> None:
                stub = safety_pb2_grpc.SafetyServiceStub(channel)
                async with channels.Duplex(stub.CheckStream, timeout_seconds=60) as call:
                    responses = aiter(call)
                    while not stop.is_set():
                        await call.send(safety_pb2.CheckStreamRequest(text="piece"))
                        assert (await anext(responses)).released == "piece"
                        await asyncio.sleep(0.01)
                    await call.done_sending()

            async with asyncio.TaskGroup() as group:
                for work in (ask, ask, ask, go_on_streaming):
                    group.create_task(work())
                for signer, trusted in (
                    (authority, (authority,)),  # a certificate is renewed
                    (authority, (authority, new)),  # both sides begin to trust the next authority
                    (new, (new, authority)),  # it signs
                    (new, (new,)),  # neither side trusts the old one any more
                ):
                    await asyncio.sleep(0.5)
                    put(signer, *trusted)
                    await asyncio.sleep(0.5)
                    seen.add(await asyncio.to_thread(served_certificate, address, of_client))
                stop.set()
        assert answered > 100
        assert len(seen) == 4
        assert seen <= shown

    async def test_a_server_keeps_the_last_valid_set_and_logs_that_once(
        self,
        scripted: Scripted,
        tmp_path: Path,
        authority: Authority,
        of_server: settings.Tls,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        of_client = certificates.write(tmp_path / "client", authority)
        testing.act_as()
        async with runtime.running(scripted.app(), server(of_server)) as address:
            for spoil, message in WRONG:
                good = of_server.certificate.read_bytes()
                caplog.clear()
                spoil(of_server)
                for _ in range(3):
                    async with channels.connect(address, of_client) as channel:
                        assert await check(channel) == "x"
                    assert await asyncio.to_thread(served_certificate, address, of_client) == good
                (refusal,) = [record for record in caplog.records if record.levelno == logging.ERROR]
                assert message in refusal.getMessage()
                certificates.write(tmp_path / "server", authority, SAFETY)
                assert of_server.certificate.read_bytes() != good
                shown = await asyncio.to_thread(served_certificate, address, of_client)
                assert shown == of_server.certificate.read_bytes()

    async def test_a_client_keeps_the_last_valid_set(
        self, scripted: Scripted, tmp_path: Path, authority: Authority, of_server: settings.Tls, impatient: None
    ) -> None:
        of_client = certificates.write(tmp_path / "client", authority)
        testing.act_as()
        async with (
            runtime.running(scripted.app(), server(of_server)) as address,
            channels.connect(address, of_client) as channel,
        ):
            of_client.ca.resolve().write_bytes(b"half a fi")
            assert await check(channel) == "x"
            certificates.write(tmp_path / "client", authority, STRANGER)
            with pytest.raises(PermissionDenied):
                await check(channel)
            certificates.write(tmp_path / "client", authority)
            assert await check(channel) == "x"

    @pytest.mark.parametrize("missing", ["certificate", "private_key", "ca"])
    async def test_missing_files_are_an_error_at_the_start(
        self, missing: str, scripted: Scripted, of_server: settings.Tls
    ) -> None:
        path: Path = getattr(of_server, missing)
        await asyncio.to_thread(path.unlink)
        with pytest.raises(InvalidArgument, match=f"{path} cannot be read"):
            await runtime.running(scripted.app(), server(of_server)).__aenter__()
        with pytest.raises(InvalidArgument, match=f"{path} cannot be read"):
            channels.connect("dns:///localhost:1", of_server)

    async def test_the_expiry_of_the_certificate_in_force_is_a_metric_also_without_connections(
        self, tmp_path: Path, authority: Authority, of_server: settings.Tls
    ) -> None:
        def ends() -> float | None:
            labels = {"certificate": str(of_server.certificate)}
            return prometheus_client.REGISTRY.get_sample_value(tls.EXPIRY._name, labels)

        assert ends() is None
        tls.Files(of_server)
        assert ends() == expiry(of_server.certificate.read_bytes()).timestamp()
        certificates.write(tmp_path / "server", authority, now=datetime.now(UTC) - certificates.DAY / 2)
        assert ends() == expiry(of_server.certificate.read_bytes()).timestamp()


WRONG: tuple[tuple[Callable[[settings.Tls], object], str], ...] = (
    (lambda own: own.certificate.resolve().write_bytes(b"-----BEGIN CERTIFICATE-----\nMIIB"), "no PEM certificate"),
    (lambda own: own.private_key.resolve().write_bytes(certificates.new_authority().key_pem), "is not the key of"),
    (lambda own: own.private_key.resolve().write_bytes(b"half a k"), "no PEM key"),
    (lambda own: own.ca.resolve().unlink(), "cannot be read"),
)


def served_certificate(address: str, own: settings.Tls) -> bytes:
    """The certificate that the server presents in a handshake now, as PEM."""
    context = ssl.create_default_context(cafile=str(own.ca))
    context.load_cert_chain(own.certificate, own.private_key)
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port))) as raw,
        context.wrap_socket(raw, server_hostname=host) as wrapped,
    ):
        shown = wrapped.getpeercert(binary_form=True)
        assert shown is not None
        return ssl.DER_cert_to_PEM_cert(shown).encode()
