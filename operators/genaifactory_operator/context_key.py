"""Computes what is due on the Secrets with the key that signs callers' tokens, from their content and the time.

The key is replaced in steps, and no call fails: between two steps the change reaches every pod, and tokens in use
expire. The keys of the private Secret determine the step; PRIVATE always signs, and the public Secrets hold the public
keys of all of them, as a set.

    PRIVATE                  no rotation
    PRIVATE, NEXT            every pod begins to trust the next key
    PRIVATE, PREVIOUS        the next one has become PRIVATE; tokens of the previous one expire
    PRIVATE                  no pod trusts the previous key any more

A step begins with the last change of the Secrets that it waits for. Each change is of one Secret, and the next run
continues after any of them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from datetime import datetime, timedelta

from genaifactory_common import settings, tokens
from genaifactory_common.errors import InvalidArgument
from genaifactory_common.tokens import Signer
from genaifactory_operator.configuration import Configuration, ContextKey
from genaifactory_operator.planning import UNCHANGED, Plan
from genaifactory_operator.secret import Change, Secret

PRIVATE = settings.variable(["context_private_key"])
"""Key of the private Secret, and the setting that the gateway signs with: 32 bytes in base64."""
PUBLIC, PUBLIC_ONE = settings.KEY_SET, settings.KEY
"""Keys of the public Secrets, and the settings that verify with them: a key set; one key, of former versions."""
NEXT, PREVIOUS = "next.key", "previous.pub"
"""Keys of the private Secret: a private and a public key, 32 bytes in base64."""


def is_rotating(private: Secret) -> bool:
    """Whether a rotation of the key is under way."""
    return NEXT in private.data or PREVIOUS in private.data


def plan(wanted: Configuration, secrets: Mapping[str, Secret], now: datetime, *, rotate: bool = False) -> Plan:
    """The changes that are due on the Secrets of `wanted.context_key`.

    rotate: begin to replace the key, if that is not under way. Raises InvalidArgument when the private Secret holds
    something that is no key: it is never replaced.
    """
    context_key = wanted.context_key
    if context_key is None:
        return Plan()
    secret = secrets[context_key.private_secret]
    if not secret.data.get(PRIVATE):
        # The keys that a rotation left behind are of no use any more.
        rest = {key: None for key in (NEXT, PREVIOUS) if key in secret.data}
        return Plan((Change(secret, {PRIVATE: _made(), **rest}, "a new key for callers' tokens: there is none"),))
    if changes := tuple(_published(context_key, secrets, secret)):
        return Plan(changes)
    propagation = timedelta(seconds=wanted.propagation_seconds)
    if NEXT in secret.data:
        shown = [secret.changed, *(secrets[name].changed for name in context_key.public_secrets)]
        return _after(_latest(shown, now) + propagation, now, _switch(secret))
    if PREVIOUS in secret.data:
        running_out = timedelta(seconds=context_key.token_seconds + tokens.LEEWAY_SECONDS)
        forget = Change(secret, {PREVIOUS: None}, "forgets the previous key of callers' tokens")
        return _after(_latest([secret.changed], now) + propagation + running_out, now, forget)
    if rotate or now >= _latest([secret.changed], now) + timedelta(days=context_key.rotate_after_days):
        why = "the next key of callers' tokens; this one signs until all trust both"
        return Plan((Change(secret, {NEXT: _made()}, why),))
    return Plan()


def _trusted(secret: Secret) -> list[bytes]:
    """The public keys that go with what the private Secret holds; 32 raw bytes each."""
    trusted = [_private(secret, PRIVATE).public_key]
    if NEXT in secret.data:
        trusted.append(_private(secret, NEXT).public_key)
    if PREVIOUS in secret.data:
        trusted.append(_bytes(secret, PREVIOUS))
    return sorted(trusted)  # in the same order, whichever of them signs


def _published(wanted: ContextKey, secrets: Mapping[str, Secret], private: Secret) -> list[Change]:
    """Changes that are missing until every public Secret holds the keys, and every Secret the time of its change."""
    trusted, rotating = _trusted(private), is_rotating(private)
    changes = []
    text = tokens.jwks(trusted).encode()
    for secret in (secrets[name] for name in wanted.public_secrets):
        if secret.data.get(PUBLIC) != text:
            count = len(trusted)
            data: dict[str, bytes | None] = {PUBLIC: text}
            if rotating and PUBLIC_ONE in secret.data:
                data[PUBLIC_ONE] = None  # it will not sign any more
            changes.append(Change(secret, data, f"trusts {count} key{'s' * (count > 1)} of callers' tokens"))
        elif rotating and secret.changed is None:
            changes.append(Change(secret, {}, UNCHANGED))
    if private.changed is None:
        changes.append(Change(private, {}, UNCHANGED))
    return changes


def _switch(secret: Secret) -> Change:
    data: dict[str, bytes | None] = {
        PRIVATE: secret.data[NEXT],
        NEXT: None,
        PREVIOUS: base64.b64encode(_private(secret, PRIVATE).public_key),
    }
    return Change(secret, data, "the next key signs callers' tokens from now on")


def _after(moment: datetime, now: datetime, change: Change) -> Plan:
    return Plan(wait_until=moment) if now < moment else Plan((change,))


def _latest(times: list[datetime | None], now: datetime) -> datetime:
    # No later than now: the clock of an earlier run may have been ahead.
    return max((min(each, now) for each in times if each is not None), default=now)


def _made() -> bytes:
    return base64.b64encode(Signer.generate().private_key)


def _private(secret: Secret, key: str) -> Signer:
    return Signer(_bytes(secret, key))


def _bytes(secret: Secret, key: str) -> bytes:
    try:
        raw = base64.b64decode(secret.data[key], validate=True)
    except binascii.Error:
        raw = b""
    if len(raw) != 32:
        raise InvalidArgument(
            f"The Secret {secret.name} holds no key in {key}: it must be 32 bytes in base64. Delete it to have a new "
            "one made."
        )
    return raw
