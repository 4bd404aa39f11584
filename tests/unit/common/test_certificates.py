"""The platform's own certificate authority: certificates are valid for one service, its names and a bounded time."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from genaifactory_common.certificates import Authority, Issued, expiry, signed_by
from genaifactory_common.errors import InvalidArgument
from genaifactory_common.testing import certificates

IDENTITY = "spiffe://cluster.local/ns/genai/sa/factory-safety"
NOW = datetime(2026, 11, 25, tzinfo=UTC)
DAY = timedelta(days=1)
AUTHORITY = Authority.create("factory", valid=10 * DAY, now=NOW)
ISSUED = AUTHORITY.issue(IDENTITY, ["factory-safety.genai.svc", "*.genai.svc"], valid=2 * DAY, now=NOW)


def loaded(issued: Issued) -> x509.Certificate:
    return x509.load_pem_x509_certificate(issued.certificate)


def verifier(authority: Authority, at: datetime) -> verification.PolicyBuilder:
    store = verification.Store([authority.certificate])
    return verification.PolicyBuilder().store(store).time(at)


def test_a_signed_certificate_passes_an_independent_check_as_server_and_as_client() -> None:
    builder = verifier(AUTHORITY, NOW + DAY)
    builder.build_server_verifier(x509.DNSName("factory-safety.genai.svc")).verify(loaded(ISSUED), [])
    shown = builder.build_client_verifier().verify(loaded(ISSUED), [])
    assert shown.subjects is not None
    assert x509.UniformResourceIdentifier(IDENTITY) in shown.subjects


def test_a_certificate_is_refused_for_another_name_after_its_time_or_under_another_authority() -> None:
    name = x509.DNSName("factory-safety.genai.svc")
    other = Authority.create("factory", valid=10 * DAY, now=NOW)
    for policy in (
        verifier(AUTHORITY, NOW + DAY).build_server_verifier(x509.DNSName("factory-monitor.genai")),
        verifier(AUTHORITY, NOW + 3 * DAY).build_server_verifier(name),
        verifier(other, NOW + DAY).build_server_verifier(name),
    ):
        with pytest.raises(verification.VerificationError):
            policy.verify(loaded(ISSUED), [])


def test_a_service_cannot_sign_for_others() -> None:
    key = serialization.load_pem_private_key(ISSUED.key, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    forged = Authority(loaded(ISSUED), key).issue("spiffe://x", ["factory-monitor.genai"], valid=DAY, now=NOW)
    policy = verifier(AUTHORITY, NOW + DAY).build_server_verifier(x509.DNSName("factory-monitor.genai"))
    with pytest.raises(verification.VerificationError):
        policy.verify(loaded(forged), [loaded(ISSUED)])


def test_extensions_restrict_the_use_of_each_certificate() -> None:
    ca, leaf = AUTHORITY.certificate.extensions, loaded(ISSUED).extensions
    constraints = ca.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    usage = ca.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, False)
    assert not leaf.get_extension_for_class(x509.BasicConstraints).value.ca
    purposes = leaf.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(purposes) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    issuer = leaf.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert issuer == ca.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


def test_no_certificate_outlives_the_authority() -> None:
    issued = AUTHORITY.issue(IDENTITY, [], valid=100 * DAY, now=NOW)
    assert expiry(issued.certificate) == expiry(AUTHORITY.pem) == NOW + 10 * DAY
    assert expiry(ISSUED.certificate) == NOW + 2 * DAY


def test_an_authority_that_is_loaded_again_signs_as_before() -> None:
    again = Authority.load(AUTHORITY.pem, AUTHORITY.key_pem)
    issued = again.issue(IDENTITY, ["a.b"], valid=DAY, now=NOW)
    assert signed_by(issued.certificate, AUTHORITY)
    assert not signed_by(issued.certificate, Authority.create("factory", valid=DAY))


def _rsa_key() -> bytes:
    key = rsa.generate_private_key(65537, 2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.mark.parametrize(
    ("certificate", "key", "message"),
    [
        (b"", AUTHORITY.key_pem, "no PEM certificate"),
        (AUTHORITY.pem, b"-----BEGIN", "no unencrypted PEM key"),
        (AUTHORITY.pem, _rsa_key(), "elliptic curve"),
        (AUTHORITY.pem, Authority.create("other", valid=DAY).key_pem, "do not belong together"),
        (ISSUED.certificate, ISSUED.key, "may not sign"),
    ],
)
def test_an_invalid_authority_is_refused(certificate: bytes, key: bytes, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Authority.load(certificate, key)


@pytest.mark.parametrize("pem", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_malformed_certificate_is_an_error(pem: bytes) -> None:
    with pytest.raises(InvalidArgument, match="no PEM certificate"):
        expiry(pem)
    with pytest.raises(InvalidArgument, match="no PEM certificate"):
        signed_by(pem, AUTHORITY)


def test_openssl_loads_the_files_that_tests_use(tmp_path: Path) -> None:
    own = certificates.write(tmp_path, certificates.new_authority())
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(own.ca))
    context.load_cert_chain(own.certificate, own.private_key)  # raises when key and certificate do not match
