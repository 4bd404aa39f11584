"""Who a call is for: the caller's context, signed by the gateway alone, carried in call metadata.

The gateway holds an Ed25519 private key; every other service holds the public key, so that a compromised service
cannot speak for another tenant. Transport decides too: `interceptors` trusts it only over mTLS or a unix socket.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections import OrderedDict
from contextvars import ContextVar
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from genaifactory_common.errors import PermissionDenied, Unauthenticated

METADATA_KEY = "x-genaifactory-context"
LIFETIME_SECONDS = 3600
_CACHED_TOKENS = 4096
_encode = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True)
class Caller:
    """The identity of one request."""

    tenant: str
    principal: str
    """Who asked, within the tenant: the API key's id, or the OIDC subject."""
    key_id: str
    role: str
    permissions: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    """For document access."""
    request_id: str = ""

    def require(self, permission: str) -> None:
        """Raises PermissionDenied unless the role has the permission."""
        if permission not in self.permissions:
            raise PermissionDenied(f"The role '{self.role}' has no permission '{permission}'.")


_caller: ContextVar[Caller | None] = ContextVar("genaifactory_caller", default=None)
_token: ContextVar[str | None] = ContextVar("genaifactory_token", default=None)


def current() -> Caller:
    """The caller of the request in hand. Raises Unauthenticated outside of one."""
    caller = _caller.get()
    if caller is None:
        raise Unauthenticated("The call carries no caller context.")
    return caller


def current_token() -> str | None:
    """The signed context of the request in hand, to pass on."""
    return _token.get()


def set_current(caller: Caller, token: str) -> None:
    """Makes `caller` the identity of the running task and of what it starts."""
    _caller.set(caller)
    _token.set(token)


def forget() -> None:
    """Makes the running task nobody's."""
    _caller.set(None)
    _token.set(None)


class Signer:
    """Signs callers; the gateway's."""

    def __init__(self, private_key: bytes) -> None:
        """private_key: 32 raw bytes."""
        self._key = Ed25519PrivateKey.from_private_bytes(private_key)

    @classmethod
    def generate(cls) -> Signer:
        """A signer with a new key."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @property
    def private_key(self) -> bytes:
        """32 raw bytes; secret."""
        return self._key.private_bytes_raw()

    @property
    def public_key(self) -> bytes:
        """32 raw bytes."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, caller: Caller) -> str:
        """The token for call metadata; valid for LIFETIME_SECONDS."""
        body = _encode({**vars(caller), "exp": int(time.time()) + LIFETIME_SECONDS}).encode()
        return f"{_b64(body)}.{_b64(self._key.sign(body))}"


class Verifier:
    """Checks signed callers."""

    def __init__(self, public_key: bytes) -> None:
        """public_key: 32 raw bytes."""
        self._key = Ed25519PublicKey.from_public_bytes(public_key)
        # One request makes several calls with one token; the signature is checked once.
        self._seen: OrderedDict[str, tuple[Caller, int]] = OrderedDict()

    def verify(self, token: str) -> Caller:
        """The caller that the gateway signed. Raises Unauthenticated."""
        known = self._seen.get(token)
        if known is None:
            known = self._checked(token)
            self._seen[token] = known
            if len(self._seen) > _CACHED_TOKENS:
                self._seen.popitem(last=False)
        caller, expires = known
        if expires < time.time():
            raise Unauthenticated("The caller context has expired.")
        return caller

    def _checked(self, token: str) -> tuple[Caller, int]:
        try:
            body_text, _, signature = token.partition(".")
            body = _unb64(body_text)
            self._key.verify(_unb64(signature), body)
            fields = json.loads(body)
            expires = int(fields.pop("exp"))
            fields["permissions"] = tuple(fields["permissions"])
            fields["groups"] = tuple(fields["groups"])
            return Caller(**fields), expires
        except (InvalidSignature, ValueError, KeyError, TypeError, AttributeError, binascii.Error):
            raise Unauthenticated("The caller context is not signed by the gateway.") from None


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
