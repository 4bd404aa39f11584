"""A private certificate authority, and the certificates of services that it signs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from genaifactory_common.errors import InvalidArgument

_PEM = serialization.Encoding.PEM
# Clocks of a cluster's machines differ.
_BACKDATED = timedelta(minutes=5)


@dataclass(frozen=True)
class Issued:
    """A service's certificate and its key: PEM, the key as PKCS8."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True)
class Authority:
    """Signs certificates of services, which cannot sign others."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, common_name: str, *, valid: timedelta, now: datetime | None = None) -> Authority:
        """A new, self-signed authority with a key on P-256."""
        now = now or datetime.now(UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        certificate = (
            _builder(name, name, key.public_key(), now - _BACKDATED, now + valid)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def load(cls, certificate: bytes, key: bytes) -> Authority:
        """From PEM. Raises InvalidArgument when they are not an authority's or do not belong together."""
        loaded = _certificate(certificate)
        try:
            private = serialization.load_pem_private_key(key, password=None)
        except (ValueError, TypeError):
            raise InvalidArgument("The authority's key is no unencrypted PEM key.") from None
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise InvalidArgument("The authority's key must be one of an elliptic curve.")
        if private.public_key() != loaded.public_key():
            raise InvalidArgument("The authority's certificate and key do not belong together.")
        if not _may_sign(loaded):
            raise InvalidArgument("The authority's certificate may not sign others.")
        return cls(loaded, private)

    @property
    def pem(self) -> bytes:
        """The certificate that peers trust."""
        return self.certificate.public_bytes(_PEM)

    @property
    def key_pem(self) -> bytes:
        """The secret key, PKCS8."""
        return _key_pem(self.key)

    def issue(self, identity: str, names: Sequence[str], *, valid: timedelta, now: datetime | None = None) -> Issued:
        """A new key and its certificate, for a service that is a server and a client; never outlives the authority.

        identity: the service's URI ("spiffe://cluster.local/ns/genai/sa/factory-gateway"). names: its DNS names.
        """
        now = now or datetime.now(UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        until = min(now + valid, self.certificate.not_valid_after_utc)
        alternatives = [x509.UniformResourceIdentifier(identity), *map(x509.DNSName, names)]
        certificate = (
            # No subject, whose length X.509 bounds; the names are critical for that (RFC 5280, 4.2.1.6).
            _builder(x509.Name([]), self.certificate.subject, key.public_key(), now - _BACKDATED, until)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return Issued(certificate.public_bytes(_PEM), _key_pem(key))


def expiry(pem: bytes) -> datetime:
    """When the first certificate expires. Raises InvalidArgument when there is none."""
    return _certificate(pem).not_valid_after_utc


def signed_by(pem: bytes, authority: Authority) -> bool:
    """Whether the authority signed the first certificate. Raises InvalidArgument when there is none."""
    try:
        _certificate(pem).verify_directly_issued_by(authority.certificate)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise InvalidArgument("It is no PEM certificate.") from None


def _may_sign(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except x509.ExtensionNotFound:
        return False
    return constraints.value.ca


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    start: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
