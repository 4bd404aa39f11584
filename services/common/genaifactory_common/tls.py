"""The certificates of a running service, read from files that the kubelet replaces; changes need no restart."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from prometheus_client import Gauge

from genaifactory_common import certificates, files, settings
from genaifactory_common.errors import InvalidArgument

logger = logging.getLogger(__name__)

EXPIRY = Gauge(
    "genaifactory_certificate_expiry_timestamp_seconds",
    "When the certificate in force ends, in seconds since 1970, by its file.",
    ["certificate"],
)


@dataclass(frozen=True)
class Material:
    """PEM that belongs together."""

    ca: bytes
    certificate: bytes | None = None
    """None for a client without one."""
    private_key: bytes | None = None


class Files:
    """The last valid set of the files. Thread-safe: gRPC calls it from threads of its own."""

    def __init__(self, where: settings.Trust) -> None:
        """Raises InvalidArgument that names the file when the set is invalid."""
        self._where = where
        self._lock = threading.Lock()
        self._seen = _fingerprint(where)
        self._material = _read(where)
        shown = where.certificate if isinstance(where, settings.Tls) else where.ca
        # Computed when the metric is read, so that it is right also without connections.
        EXPIRY.labels(str(shown)).set_function(lambda: _expiry(self.current()).timestamp())

    def current(self) -> Material:
        """The set, read again when the files have changed. An invalid set is logged, once, and ignored."""
        with self._lock:
            now = _fingerprint(self._where)
            if now == self._seen:
                return self._material
            # Set before they are read: the next call sees a change that happens meanwhile.
            self._seen = now
            try:
                self._material = _read(self._where)
            except InvalidArgument as error:
                logger.error("the new certificate is refused, the last good one stays in force: %s", error.message)
            else:
                logger.info("follows a new certificate, until %s", _expiry(self._material).isoformat())
            return self._material


def server_credentials(where: settings.Tls, *, ask_clients: bool) -> grpc.ServerCredentials:
    """A server's credentials, which follow the files at each handshake. Raises InvalidArgument when they are invalid.

    ask_clients: only clients with a certificate of the authorities in `where.ca` are accepted.
    """
    own = Files(where)
    shown = own.current()

    def changed() -> grpc.ServerCertificateConfiguration:
        nonlocal shown
        material = own.current()
        if material is shown:
            return None  # type: ignore[return-value]  # None keeps the present ones, which the package's types omit
        shown = material
        return _configuration(material)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(shown), changed, require_client_authentication=ask_clients
    )


def channel_credentials(material: Material) -> grpc.ChannelCredentials:
    """A client's credentials."""
    return grpc.ssl_channel_credentials(material.ca, material.private_key, material.certificate)


def _expiry(material: Material) -> datetime:
    return certificates.expiry(material.certificate or material.ca)


def _configuration(material: Material) -> grpc.ServerCertificateConfiguration:
    pair = (material.private_key, material.certificate)
    return grpc.ssl_server_certificate_configuration([pair], material.ca)  # type: ignore[list-item]  # a server has both


def _read(where: settings.Trust) -> Material:
    """The set of the files. Raises InvalidArgument when a file is missing or no PEM, or the key does not match."""
    ca = _content(where.ca)
    _certificates(where.ca, ca)
    if not isinstance(where, settings.Tls):
        return Material(ca)
    certificate, private_key = _content(where.certificate), _content(where.private_key)
    public_key = _certificates(where.certificate, certificate)[0].public_key()
    try:
        key = serialization.load_pem_private_key(private_key, password=None)
    except (ValueError, TypeError):
        raise InvalidArgument(f"{where.private_key} holds no PEM key without a password.") from None
    if key.public_key() != public_key:
        raise InvalidArgument(f"{where.private_key} is not the key of {where.certificate}.")
    return Material(ca, certificate, private_key)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}.") from None


def _certificates(path: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise InvalidArgument(f"{path} holds no PEM certificate.") from None


def _fingerprint(where: settings.Trust) -> tuple[files.Fingerprint | None, ...]:
    own = (where.certificate, where.private_key) if isinstance(where, settings.Tls) else ()
    return tuple(files.fingerprint(path) for path in (*own, where.ca))
