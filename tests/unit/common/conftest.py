"""A real gRPC service whose answers each test decides, and the certificates of a small private CA."""

from __future__ import annotations

import dataclasses
import datetime
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from genaifactory.safety.v1 import safety_pb2, safety_pb2_grpc
from genaifactory_common import settings, testing
from genaifactory_common.runtime import ServiceApp
from genaifactory_common.telemetry import Telemetry

SERVICE = "genaifactory.safety.v1.SafetyService"
CHECK_TEXT = f"/{SERVICE}/CheckText"


def answer(text: str) -> safety_pb2.CheckTextResponse:
    return safety_pb2.CheckTextResponse(text=text)


def released(text: str) -> safety_pb2.CheckStreamResponse:
    return safety_pb2.CheckStreamResponse(released=text)


class Scripted(safety_pb2_grpc.SafetyServiceServicer):
    """SafetyService as a stand-in for any service: one unary method and one bidirectional one."""

    def __init__(self) -> None:
        self.unary: Callable[[safety_pb2.CheckTextRequest], Awaitable[safety_pb2.CheckTextResponse]] = self._echo
        self.duplex: Callable[[AsyncIterator[Any]], AsyncIterator[safety_pb2.CheckStreamResponse]] = self._echo_all

    async def CheckText(self, request: safety_pb2.CheckTextRequest, context: Any) -> safety_pb2.CheckTextResponse:
        return await self.unary(request)

    async def CheckStream(
        self, request_iterator: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[safety_pb2.CheckStreamResponse]:
        async for response in self.duplex(request_iterator):
            yield response

    async def _echo(self, request: safety_pb2.CheckTextRequest) -> safety_pb2.CheckTextResponse:
        return answer(request.text)

    async def _echo_all(self, requests: AsyncIterator[Any]) -> AsyncIterator[safety_pb2.CheckStreamResponse]:
        async for request in requests:
            yield released(request.text)

    def app(self, telemetry: Telemetry | None = None, **fields: Any) -> ServiceApp:
        app = ServiceApp(
            name="scripted",
            telemetry=telemetry or Telemetry("scripted"),
            service_names=(SERVICE,),
            register=lambda server: safety_pb2_grpc.add_SafetyServiceServicer_to_server(self, server),
            lifespan=no_lifespan,
            verifier=testing.VERIFIER,
        )
        return dataclasses.replace(app, **fields)


@asynccontextmanager
async def no_lifespan() -> AsyncIterator[None]:
    yield


@pytest.fixture
def scripted() -> Scripted:
    """A service that echoes until it is told otherwise."""
    return Scripted()


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """A folder whose path is short enough for a unix socket in it."""
    with tempfile.TemporaryDirectory(prefix="gf-") as folder:
        yield Path(folder)


@dataclass(frozen=True)
class Authority:
    """A certificate authority."""

    folder: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def issue(self, name: str, *, days: int = 1, ca: Authority | None = None) -> settings.Tls:
        """Files of a service with this name; `ca`: whom it trusts, when not its own authority."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(name, key.public_key(), self.certificate.subject, self.key, days=days)
        paths = [self.folder / f"{name}{suffix}" for suffix in (".crt", ".key", ".ca")]
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        paths[2].write_bytes((ca or self).certificate.public_bytes(serialization.Encoding.PEM))
        return settings.Tls(certificate=paths[0], private_key=paths[1], ca=paths[2])


def new_authority(folder: Path, name: str) -> Authority:
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return Authority(folder, _certificate(name, key.public_key(), subject, key, is_ca=True), key)


def _certificate(
    name: str,
    public_key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    days: int = 1,
    is_ca: bool = False,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
    )
    return builder.sign(issuer_key, hashes.SHA256())
