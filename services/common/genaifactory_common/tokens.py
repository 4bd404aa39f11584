"""Callers' tokens: JWTs that the gateway signs with EdDSA, each for some methods of one service, valid for minutes.

    token = Signer(private_key).sign(caller, "genaifactory.safety.v1.SafetyService", ["CheckText"])
    verifier = Verifier(Fixed(key_set([public_key])))
    caller = await verifier.verify(token, "/genaifactory.safety.v1.SafetyService/CheckText")

RFC 7519 (JWT), 8037 (EdDSA and its keys), 7517 (key sets), 7638 (a key's id is its thumbprint), 8725 (checks).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from genaifactory_common.errors import InvalidArgument, Unauthenticated
from genaifactory_common.followed import Followed
from genaifactory_common.identity import Caller

ALGORITHM = "EdDSA"
ISSUER = "genaifactory-gateway"
LIFETIME_SECONDS = 300.0
"""Lifetime of a token, unless its request needs a longer one."""
LEEWAY_SECONDS = 30.0
"""Greatest difference between the clocks of two nodes."""
MAX_KEYS = 3
"""Keys in a key set: the previous one, the one that signs, the next one."""
_CACHED_TOKENS = 4096

Keys = Mapping[str, Ed25519PublicKey]
"""Public keys by their ids."""


class Signer:
    """A key that signs callers' tokens."""

    def __init__(self, private_key: bytes) -> None:
        """private_key: 32 raw bytes. Raises ValueError for another length."""
        self._key = Ed25519PrivateKey.from_private_bytes(private_key)
        self._headers = {"kid": key_id(self.public_key)}

    @classmethod
    def generate(cls) -> Signer:
        """A signer with a new key."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def parse(cls, text: str) -> Signer:
        """A signer with the key in a text, 32 bytes in base64. Raises InvalidArgument, without the text."""
        try:
            return cls(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError):
            raise InvalidArgument("The private key must be 32 bytes, base64.") from None

    @property
    def private_key(self) -> bytes:
        """32 raw bytes; secret."""
        return self._key.private_bytes_raw()

    @property
    def public_key(self) -> bytes:
        """32 raw bytes."""
        return self._key.public_key().public_bytes_raw()

    def sign(
        self, caller: Caller, audience: str, methods: Iterable[str], *, lifetime_seconds: float = LIFETIME_SECONDS
    ) -> str:
        """A token with which `caller` may call those methods of the service "package.Service"."""
        now = int(time.time())
        lasting = {"iss": ISSUER, "aud": audience, "iat": now, "exp": now + int(lifetime_seconds)}
        claims = {**lasting, **vars(caller), "methods": sorted(methods)}
        return jwt.encode(claims, self._key, algorithm=ALGORITHM, headers=self._headers)


class Verifier:
    """Checks callers' tokens."""

    def __init__(self, keys: Followed[Keys]) -> None:
        self._followed = keys
        self._keys = keys.current
        # Many calls carry the same token, whose signature is checked once.
        self._seen: OrderedDict[str, _Checked] = OrderedDict()

    async def watch(self) -> None:
        """Follows the keys, forever, where they can change."""
        await self._followed.watch()

    async def verify(self, token: str, method: str) -> Caller:
        """The caller that the gateway signed for a call of "/package.Service/Method". Raises Unauthenticated."""
        if self._followed.current is not self._keys:
            self._keys = self._followed.current
            self._seen.clear()  # a key that signed some of them may be gone
        known = self._seen.get(token)
        if known is None:
            known = await self._checked(token)
            self._seen[token] = known
            if len(self._seen) > _CACHED_TOKENS:
                self._seen.popitem(last=False)
        if known.expires + LEEWAY_SECONDS < time.time():
            raise Unauthenticated("The caller's token has expired.")
        service, _, name = method.removeprefix("/").partition("/")
        if known.audience != service:
            raise Unauthenticated(f"The caller's token is for another service than {service}.")
        if name not in known.methods:
            raise Unauthenticated(f"The caller's token is not for the method {name}.")
        return known.caller

    async def _checked(self, token: str) -> _Checked:
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = await self._key(kid)
            claims = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                leeway=LEEWAY_SECONDS,
                # The audience is checked in `verify`, for every call and not only for a token's first.
                options={"require": ["iss", "aud", "iat", "exp"], "verify_aud": False},
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("The caller's token has expired.") from None
        except jwt.ImmatureSignatureError:
            raise Unauthenticated("The caller's token is not valid yet; do the nodes' clocks agree?") from None
        except (jwt.PyJWTError, UnicodeError):
            raise Unauthenticated("The caller's token is not signed by the gateway.") from None
        return _read(claims)

    async def _key(self, kid: str | None) -> Ed25519PublicKey:
        if kid is None:
            raise Unauthenticated("The caller's token names no key.")
        if kid not in self._followed.current:
            await self._followed.look()
        key = self._followed.current.get(kid)
        if key is None:
            raise Unauthenticated("The caller's token is signed with a key that is not trusted, or not any more.")
        return key


@dataclass(frozen=True)
class _Checked:
    """A token whose signature is valid."""

    caller: Caller
    audience: str
    methods: frozenset[str]
    expires: float


def key_set(public_keys: Iterable[bytes]) -> Keys:
    """A key set of keys of 32 raw bytes each. Raises ValueError for another length."""
    return {key_id(raw): Ed25519PublicKey.from_public_bytes(raw) for raw in public_keys}


def key_id(public_key: bytes) -> str:
    """The thumbprint of a key of 32 raw bytes (RFC 7638, SHA-256)."""
    members = json.dumps(_jwk(public_key), separators=(",", ":"), sort_keys=True)
    return _b64(hashlib.sha256(members.encode()).digest())


def jwks(public_keys: Iterable[bytes]) -> str:
    """A key set as JSON (RFC 7517), in the given order; `parse_jwks` reads it."""
    keys = [{**_jwk(raw), "kid": key_id(raw), "alg": ALGORITHM, "use": "sig"} for raw in public_keys]
    return json.dumps({"keys": keys}, separators=(",", ":"))


def parse_jwks(text: str) -> Keys:
    """The keys of a key set as JSON. Raises InvalidArgument that names the fault."""
    try:
        document = json.loads(text)
    except ValueError:
        raise InvalidArgument("The key set is not JSON.") from None
    found = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(found, list) or not 1 <= len(found) <= MAX_KEYS:
        raise InvalidArgument(f'The key set must be {{"keys": [...]}} with 1 to {MAX_KEYS} keys.')
    keys = dict(_parsed(each, f"keys[{number}]") for number, each in enumerate(found))
    if len(keys) < len(found):
        raise InvalidArgument("The key set has two keys of one 'kid'.")
    return keys


def _parsed(each: object, path: str) -> tuple[str, Ed25519PublicKey]:
    if not isinstance(each, dict) or (each.get("kty"), each.get("crv")) != ("OKP", "Ed25519"):
        raise InvalidArgument(f"The key set's {path} must be of kty 'OKP' and crv 'Ed25519'.")
    if "d" in each:
        raise InvalidArgument(f"The key set's {path} is a private key; it must hold public ones.")
    kid, x = each.get("kid"), each.get("x")
    if not isinstance(kid, str) or not kid or each.get("alg", ALGORITHM) != ALGORITHM:
        raise InvalidArgument(f"The key set's {path} must have a 'kid', and no 'alg' but {ALGORITHM}.")
    try:
        return kid, Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(f"{x}="))
    except (binascii.Error, ValueError):
        raise InvalidArgument(f"The key set's {path}.x must be 32 bytes, base64url.") from None


def _read(claims: Mapping[str, Any]) -> _Checked:
    names = ("aud", "tenant", "principal", "key_id", "role")
    lists = ("permissions", "groups", "methods")
    if not (
        all(isinstance(claims.get(name), str) for name in names)
        and all(isinstance(claims.get(name), list) for name in lists)
        and all(isinstance(item, str) for name in lists for item in claims[name])
    ):
        raise Unauthenticated("The caller's token lacks claims, or they have wrong types.")
    caller = Caller(
        tenant=claims["tenant"],
        principal=claims["principal"],
        key_id=claims["key_id"],
        role=claims["role"],
        permissions=tuple(claims["permissions"]),
        groups=tuple(claims["groups"]),
    )
    return _Checked(caller, claims["aud"], frozenset(claims["methods"]), float(claims["exp"]))


def _jwk(public_key: bytes) -> dict[str, str]:
    return {"kty": "OKP", "crv": "Ed25519", "x": _b64(public_key)}


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
