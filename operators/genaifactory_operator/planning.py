"""Computes what is due on the Secrets with certificates, from their content and the time.

The authority is replaced in steps, without downtime: between two steps the change reaches every pod. The keys of the
authority's Secret determine the step; `ca` always signs, and all that are there are trusted.

    ca                  no rotation
    ca, next            every service begins to trust the next one
    previous, ca        the next one has become ca, and every service gets a certificate that it signs
    ca                  no service trusts the previous one any more

The services' Secrets hold the time of their last change, from which a step counts: the next run continues one that was
ended, and a Secret that was reverted by something else begins its step again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from genaifactory_common import certificates
from genaifactory_common.errors import InvalidArgument
from genaifactory_operator import configuration
from genaifactory_operator.configuration import Configuration, Issued
from genaifactory_operator.secret import Change, Secret

CERTIFICATE, KEY, TRUSTED = "tls.crt", "tls.key", "ca.crt"
"""Keys of a service's Secret."""
CA_CERTIFICATE, CA_KEY = "ca.crt", "ca.key"
NEXT_CERTIFICATE, NEXT_KEY, PREVIOUS_CERTIFICATE = "next.crt", "next.key", "previous.crt"
"""Keys of the authority's Secret."""
UNCHANGED = "unchanged; its step of the rotation counts from now"
"""Why a Secret with the right content gets the time of the change alone."""


@dataclass(frozen=True)
class Plan:
    """What is due now."""

    changes: tuple[Change, ...] = ()
    """Independent of each other; what depends on them is due once they are made."""
    wait_until: datetime | None = None
    """Without changes: when the next step of a rotation is due. None: nothing is left to do."""
    note: str = ""
    """A request to a person, when nothing is left to do."""


@dataclass(frozen=True)
class _Authorities:
    """The content of the authority's Secret."""

    secret: Secret
    signer: certificates.Authority
    expires: datetime
    trusted: bytes

    @property
    def rotating(self) -> bool:
        return is_rotating(self.secret)


def is_rotating(authority: Secret) -> bool:
    """Whether a rotation of the authority is under way."""
    return NEXT_CERTIFICATE in authority.data or PREVIOUS_CERTIFICATE in authority.data


def plan(
    wanted: Configuration,
    secrets: Mapping[str, Secret],
    now: datetime,
    *,
    rotate: bool = False,
    renew_changed_before: datetime | None = None,
) -> Plan:
    """The changes that are due on the Secrets of `wanted`.

    rotate: begin to replace the authority, if that is not under way. renew_changed_before: renew the certificates of
    Secrets that were last changed before this.

    Raises InvalidArgument when the authority's Secret holds something that cannot be used.
    """
    if wanted.authority is None:
        return Plan()
    secret = secrets[wanted.authority.secret]
    authorities = _read(wanted.authority, secret, now)
    if authorities is None:
        return Plan((_first_authority(wanted.authority, secret, now),))
    changes = tuple(
        change
        for issued in wanted.issued
        if (change := _of_service(wanted, issued, secrets[issued.secret], authorities, now, renew_changed_before))
    )
    if changes:
        return Plan(changes)
    if authorities.rotating:
        return _next_step(authorities, _settled(wanted, secrets, now), now)
    renew_at = authorities.expires - timedelta(days=wanted.authority.renew_before_days)
    if not wanted.authority.external and (rotate or now >= renew_at):
        return Plan((_announcement(wanted.authority, authorities, now),))
    if now >= renew_at:
        return Plan(
            note=f"{secret.name}: the authority ends on {authorities.expires:%Y-%m-%d}; replace it, it is yours"
        )
    return Plan()


def _read(wanted: configuration.Authority, secret: Secret, now: datetime) -> _Authorities | None:
    """None when no authority can sign and one may be made."""
    if not wanted.external and not secret.data.keys() & {CA_CERTIFICATE, CA_KEY}:
        return None
    signer = _loaded(secret, CA_CERTIFICATE, CA_KEY)
    if NEXT_CERTIFICATE in secret.data:
        _loaded(secret, NEXT_CERTIFICATE, NEXT_KEY)
    expires = signer.certificate.not_valid_after_utc
    if expires <= now:
        if wanted.external:
            raise InvalidArgument(f"The Secret {secret.name}: the authority expired on {expires:%Y-%m-%d}.")
        return None
    keys = (CA_CERTIFICATE, NEXT_CERTIFICATE, PREVIOUS_CERTIFICATE)
    trusted = b"".join(secret.data[key].rstrip() + b"\n" for key in keys if key in secret.data)
    return _Authorities(secret, signer, expires, trusted)


def _loaded(secret: Secret, certificate: str, key: str) -> certificates.Authority:
    """Raises InvalidArgument for content that cannot be used: it is never replaced, since it may be the user's own."""
    try:
        return certificates.Authority.load(secret.data[certificate], secret.data[key])
    except KeyError as missing:
        raise InvalidArgument(
            f"The Secret {secret.name} needs both {certificate} and {key}; it has no {missing}."
        ) from None
    except InvalidArgument as error:
        raise InvalidArgument(f"The Secret {secret.name}, {certificate} and {key}: {error.message}") from None


def _first_authority(wanted: configuration.Authority, secret: Secret, now: datetime) -> Change:
    made = _new_authority(wanted, now)
    # The keys that a rotation left behind are of no use any more.
    rest = {key: None for key in (NEXT_CERTIFICATE, NEXT_KEY, PREVIOUS_CERTIFICATE) if key in secret.data}
    why = f"a new authority until {certificates.expiry(made.pem):%Y-%m-%d}: there is none that is valid"
    return Change(secret, {CA_CERTIFICATE: made.pem, CA_KEY: made.key_pem, **rest}, why)


def _announcement(wanted: configuration.Authority, authorities: _Authorities, now: datetime) -> Change:
    made = _new_authority(wanted, now)
    why = f"the next authority, until {certificates.expiry(made.pem):%Y-%m-%d}; this one signs until all trust both"
    return Change(authorities.secret, {NEXT_CERTIFICATE: made.pem, NEXT_KEY: made.key_pem}, why)


def _new_authority(wanted: configuration.Authority, now: datetime) -> certificates.Authority:
    # A distinct name, by which clients distinguish the authorities in a bundle.
    return certificates.Authority.create(
        f"{wanted.secret} {now:%Y-%m-%dT%H:%M:%SZ}", valid=timedelta(days=wanted.valid_days), now=now
    )


def _of_service(
    wanted: Configuration,
    issued: Issued,
    secret: Secret,
    authorities: _Authorities,
    now: datetime,
    renew_changed_before: datetime | None,
) -> Change | None:
    valid = min(timedelta(days=wanted.certificates.valid_days), authorities.expires - now)
    renew_before = timedelta(days=wanted.certificates.renew_before_days)
    forced = renew_changed_before is not None and (secret.changed is None or secret.changed < renew_changed_before)
    why = next(_flaws(issued, secret, authorities.signer), None)
    why = why or _lapsing(secret, renew_before, valid, now) or ("it was asked for" if forced else None)
    if why is not None:
        made = authorities.signer.issue(issued.identity, issued.names, valid=valid, now=now)
        data = {CERTIFICATE: made.certificate, KEY: made.key, TRUSTED: authorities.trusted}
        until = certificates.expiry(made.certificate)
        return Change(secret, data, f"a new certificate until {until:%Y-%m-%d}: {why}")
    if secret.data.get(TRUSTED) != authorities.trusted:
        count = authorities.trusted.count(b"-----BEGIN CERTIFICATE-----")
        return Change(secret, {TRUSTED: authorities.trusted}, f"trusts {count} authorit{'y' if count == 1 else 'ies'}")
    if authorities.rotating and secret.changed is None:
        return Change(secret, {}, UNCHANGED)
    return None


def _flaws(issued: Issued, secret: Secret, signer: certificates.Authority) -> Iterator[str]:
    """The faults of a service's certificate and key, the worst first."""
    pem, key_pem = secret.data.get(CERTIFICATE), secret.data.get(KEY)
    if not pem or not key_pem:
        yield "there is none"
        return
    try:
        certificate = x509.load_pem_x509_certificates(pem)[0]
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        key = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound):
        yield "the one that is there cannot be read"
        return
    if key.public_key() != certificate.public_key():
        yield "its key is not that of the certificate"
    if set(names.get_values_for_type(x509.DNSName)) != set(issued.names):
        yield "the names changed"
    if names.get_values_for_type(x509.UniformResourceIdentifier) != [issued.identity]:
        yield "the identity changed"
    if not certificates.signed_by(pem, signer):
        yield "another authority signed it"


def _lapsing(secret: Secret, renew_before: timedelta, valid: timedelta, now: datetime) -> str | None:
    expires = certificates.expiry(secret.data[CERTIFICATE])
    # A new one does not help where the authority itself expires as early.
    return f"it ends on {expires:%Y-%m-%d}" if expires - renew_before <= now and now + valid > expires else None


def _settled(wanted: Configuration, secrets: Mapping[str, Secret], now: datetime) -> datetime:
    """When the last change of the services' Secrets has reached every pod."""
    # No later than now: the clock of an earlier run may have been ahead.
    times = [min(changed, now) for issued in wanted.issued if (changed := secrets[issued.secret].changed)]
    return max(times, default=now) + timedelta(seconds=wanted.propagation_seconds)


def _next_step(authorities: _Authorities, settled: datetime, now: datetime) -> Plan:
    if now < settled:
        return Plan(wait_until=settled)
    secret = authorities.secret
    if NEXT_CERTIFICATE not in secret.data:
        return Plan((Change(secret, {PREVIOUS_CERTIFICATE: None}, "forgets the previous authority"),))
    data: dict[str, bytes | None] = {
        CA_CERTIFICATE: secret.data[NEXT_CERTIFICATE],
        CA_KEY: secret.data[NEXT_KEY],
        NEXT_CERTIFICATE: None,
        NEXT_KEY: None,
        PREVIOUS_CERTIFICATE: secret.data[CA_CERTIFICATE],
    }
    return Plan((Change(secret, data, "the next authority signs from now on"),))
