"""Callers' tokens: only those that the gateway signed for this service and method are accepted."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genaifactory_common import tokens
from genaifactory_common.errors import InvalidArgument, Unauthenticated
from genaifactory_common.followed import Fixed, Followed
from genaifactory_common.identity import Caller
from genaifactory_common.tokens import ISSUER, LEEWAY_SECONDS, LIFETIME_SECONDS, Signer, Verifier, jwks, key_set

SEARCH = "/genaifactory.retriever.v1.RetrieverService/Search"
RETRIEVER = "genaifactory.retriever.v1.RetrieverService"
CALLER = Caller("acme", "alice", "key-1", "developer", ("chat", "embed"), ("staff", "hà-nội"))
SIGNER = Signer.generate()
KEY_ID = tokens.key_id(SIGNER.public_key)


def verifier(*signers: Signer) -> Verifier:
    return Verifier(Fixed(key_set(signer.public_key for signer in signers or (SIGNER,))))


def token(caller: Caller = CALLER, signer: Signer = SIGNER, **fields: Any) -> str:
    return signer.sign(caller, fields.pop("audience", RETRIEVER), fields.pop("methods", ["Search"]), **fields)


def claims(**changes: Any) -> dict[str, Any]:
    """The claims of a valid token, signed now. A change to None removes a claim."""
    now = int(time.time())
    good = {**asdict(CALLER), "iss": ISSUER, "aud": RETRIEVER, "iat": now, "exp": now + 3600, "methods": ["Search"]}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def made(body: object, *, sign: Callable[[bytes], bytes] | None = None, **header: Any) -> str:
    """A token with any header and content, signed as the gateway signs, unless `sign` is given."""
    head = {"alg": "EdDSA", "typ": "JWT", "kid": KEY_ID, **header}
    text = ".".join(_b64(json.dumps(part).encode()) for part in (head, body))
    return f"{text}.{_b64((sign or SIGNER._key.sign)(text.encode()))}"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


async def refused(text: str, reason: str, *, method: str = SEARCH, by: Verifier | None = None) -> None:
    with pytest.raises(Unauthenticated, match=reason) as caught:
        await (by or verifier()).verify(text, method)
    assert text not in caught.value.message or not text


async def test_a_signed_caller_is_returned_unchanged() -> None:
    assert await verifier().verify(token(), SEARCH) == CALLER
    assert await verifier().verify(made(claims()), SEARCH) == CALLER  # the forgeries below each change one thing


async def test_a_token_for_another_service_is_refused_also_after_it_was_accepted_there() -> None:
    by = verifier()
    text = token(audience="genaifactory.safety.v1.SafetyService", methods=["Search", "CheckText"])
    await refused(text, "for another service", by=by)
    assert await by.verify(text, "/genaifactory.safety.v1.SafetyService/CheckText") == CALLER
    await refused(text, "for another service", by=by)


async def test_a_token_for_another_method_is_refused_also_after_it_was_accepted_for_its_own() -> None:
    by = verifier()
    assert await by.verify(token(methods=["Search", "ListIndexes"]), f"/{RETRIEVER}/ListIndexes") == CALLER
    text = token()
    assert await by.verify(text, SEARCH) == CALLER
    await refused(text, "not for the method DeleteDocuments", method=f"/{RETRIEVER}/DeleteDocuments", by=by)


async def test_a_token_is_refused_after_its_lifetime_also_when_it_was_seen_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by, text, now = verifier(), token(), time.time()
    monkeypatch.setattr(time, "time", lambda: now + LIFETIME_SECONDS + LEEWAY_SECONDS - 2)
    assert await by.verify(text, SEARCH) == CALLER
    monkeypatch.setattr(time, "time", lambda: now + LIFETIME_SECONDS + LEEWAY_SECONDS + 2)
    await refused(text, "has expired", by=by)


async def test_an_expired_token_is_refused_at_first_sight() -> None:
    now = int(time.time())
    await refused(made(claims(exp=now - LEEWAY_SECONDS - 2)), "has expired")
    assert await verifier().verify(made(claims(exp=now - 2)), SEARCH) == CALLER  # clocks differ


async def test_a_token_that_is_not_valid_yet_is_refused() -> None:
    now = int(time.time())
    await refused(made(claims(iat=now + LEEWAY_SECONDS + 5, exp=now + 600)), "not valid yet")
    await refused(made(claims(nbf=now + LEEWAY_SECONDS + 5)), "not valid yet")


async def test_a_token_signed_by_another_key_is_refused_whatever_id_it_names() -> None:
    stranger = Signer.generate()
    await refused(token(signer=stranger), "a key that is not trusted")
    await refused(made(claims(), sign=stranger._key.sign), "not signed by the gateway")
    other = tokens.key_id(stranger.public_key)
    await refused(made(claims(), kid=other), "not signed by the gateway", by=verifier(SIGNER, stranger))


async def test_a_token_is_verified_with_the_key_that_it_names() -> None:
    other = Signer.generate()
    both = verifier(SIGNER, other)
    assert await both.verify(token(), SEARCH) == CALLER
    assert await both.verify(token(signer=other), SEARCH) == CALLER


@pytest.mark.parametrize("kid", [None, "", "x", "../../etc/passwd", "x' OR 1=1", 5, ["a"], {"a": 1}])
async def test_a_token_that_names_no_key_of_the_set_is_refused(kid: Any) -> None:
    await refused(made(claims(), kid=kid), "names no key|not trusted|not signed")


async def test_a_token_that_is_not_signed_is_refused() -> None:
    await refused(made(claims(), alg="none", sign=lambda _: b""), "not signed by the gateway")
    await refused(made(claims(), alg="None", sign=lambda _: b""), "not signed by the gateway")
    await refused(made(claims(), sign=lambda _: b""), "not signed by the gateway")


def _mac(secret: bytes, digest: Any, data: bytes) -> bytes:
    return hmac.digest(secret, data, digest)


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_a_token_signed_with_the_public_key_as_a_secret_is_refused(algorithm: str) -> None:
    digest = getattr(hashlib, f"sha{algorithm[2:]}")
    for secret in (SIGNER.public_key, base64.b64encode(SIGNER.public_key), jwks([SIGNER.public_key]).encode()):
        text = made(claims(), alg=algorithm, sign=partial(_mac, secret, digest))
        await refused(text, "not signed by the gateway")


@pytest.mark.parametrize("algorithm", ["ES256", "RS256", "PS256", "eddsa", "", None, 5])
async def test_an_algorithm_other_than_eddsa_is_refused(algorithm: Any) -> None:
    await refused(made(claims(), alg=algorithm), "not signed by the gateway")


async def test_a_key_in_the_token_itself_is_ignored() -> None:
    stranger = Signer.generate()
    own = json.loads(jwks([stranger.public_key]))["keys"][0]
    for header in ({"jwk": own}, {"jku": "https://attacker.example/jwks.json"}, {"x5u": "https://attacker.example/c"}):
        await refused(made(claims(), sign=stranger._key.sign, **header), "not signed by the gateway")
        await refused(made(claims(), sign=stranger._key.sign, **header, kid=own["kid"]), "not trusted")


async def test_another_issuer_is_refused() -> None:
    await refused(made(claims(iss="someone")), "not signed by the gateway")
    await refused(made(claims(iss=None)), "not signed by the gateway")


async def test_an_altered_claim_is_refused() -> None:
    head, _, signature = token().split(".")
    for change in ({"tenant": "rival"}, {"permissions": ["operate"]}, {"exp": 2**40}, {"methods": ["DeleteDocuments"]}):
        body = _b64(json.dumps(claims(**change)).encode())
        await refused(f"{head}.{body}.{signature}", "not signed by the gateway")


@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_token_with_a_flipped_bit_is_refused(position: int, bit: int) -> None:
    head, body, signature = (base64.urlsafe_b64decode(part + "==") for part in token().split("."))
    data = bytearray(head + body)
    data[position % len(data)] ^= 1 << bit
    altered = f"{_b64(bytes(data[: len(head)]))}.{_b64(bytes(data[len(head) :]))}.{_b64(signature)}"
    asyncio.run(refused(altered, "."))


@given(st.text(max_size=200))
def test_any_other_text_is_refused_as_unauthenticated(text: str) -> None:
    with pytest.raises(Unauthenticated):
        asyncio.run(verifier().verify(text, SEARCH))


@pytest.mark.parametrize(
    "body",
    [
        [],
        "alice",
        None,
        {},
        claims(exp="soon"),
        claims(exp=None),
        claims(iat=None),
        claims(aud=None),
        claims(aud=[RETRIEVER, "genaifactory.safety.v1.SafetyService"]),
        claims(tenant=None),
        claims(tenant=5),
        claims(permissions=None),
        claims(permissions=5),
        claims(permissions="chat"),
        claims(groups=[5]),
        claims(methods=None),
        claims(methods="Search"),
    ],
)
async def test_signed_content_without_the_claims_of_a_caller_is_refused(body: object) -> None:
    await refused(made(body), "not signed by the gateway|claims")


async def test_a_token_of_a_key_that_was_removed_is_refused_also_when_it_was_seen_before() -> None:
    other = Signer.generate()
    keys = Fixed(key_set([SIGNER.public_key, other.public_key]))
    by = Verifier(keys)
    text = token()
    assert await by.verify(text, SEARCH) == CALLER
    keys.current = key_set([other.public_key])
    await refused(text, "not trusted", by=by)
    assert await by.verify(token(signer=other), SEARCH) == CALLER


class Published:
    """A key set that changes, with the number of reads."""

    def __init__(self, *signers: Signer) -> None:
        self.reads = 0
        self.put(*signers)

    def put(self, *signers: Signer) -> None:
        self.text = jwks(signer.public_key for signer in signers)

    def read(self) -> str:
        self.reads += 1
        return self.text


async def test_an_unknown_key_makes_the_key_set_be_read_at_once_but_at_a_bounded_rate() -> None:
    published, other = Published(SIGNER), Signer.generate()
    by = Verifier(Followed("keys", published.read, tokens.parse_jwks))
    await asyncio.sleep(0.25)
    published.put(SIGNER, other)
    assert await by.verify(token(signer=other), SEARCH) == CALLER
    before = published.reads
    for _ in range(500):
        await refused(token(signer=Signer.generate()), "not trusted", by=by)
    assert published.reads - before <= 5


async def test_the_cache_of_verified_tokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_CACHED_TOKENS", 8)
    by = verifier()
    for number in range(50):
        await by.verify(token(replace(CALLER, principal=str(number))), SEARCH)
    assert len(by._seen) == 8


async def test_a_refused_token_is_not_cached() -> None:
    by = verifier()
    for number in range(10):
        await refused(f"forged-{number}", ".", by=by)
    assert len(by._seen) == 0


def test_a_key_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32"):
        key_set([b"short"])
    with pytest.raises(ValueError, match="32"):
        Signer(b"short")
    with pytest.raises(InvalidArgument, match="32 bytes, base64") as caught:
        Signer.parse("c2hvcnQ=")
    assert "c2hvcnQ" not in caught.value.message


def test_a_key_set_survives_formatting_and_parsing() -> None:
    signers = [Signer.generate() for _ in range(3)]
    raw = [signer.public_key for signer in signers]
    assert tokens.parse_jwks(jwks(raw)) == key_set(raw)


def test_the_id_of_a_key_is_its_rfc_7638_thumbprint() -> None:
    # RFC 8037, A.3
    x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    assert tokens.key_id(base64.urlsafe_b64decode(f"{x}=")) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def _key(**changes: Any) -> dict[str, Any]:
    return {**json.loads(jwks([SIGNER.public_key]))["keys"][0], **changes}


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("", "not JSON"),
        ("[]", "1 to 3 keys"),
        ({"keys": []}, "1 to 3 keys"),
        ({"keys": [_key(kid=str(number)) for number in range(4)]}, "1 to 3 keys"),
        ({"keys": [_key(), _key()]}, "two keys of one 'kid'"),
        ({"keys": [_key(), 5]}, r"keys\[1\] must be of kty"),
        ({"keys": [_key(kty="RSA")]}, r"keys\[0\] must be of kty"),
        ({"keys": [_key(kty="oct", k="c2VjcmV0")]}, r"keys\[0\] must be of kty"),
        ({"keys": [_key(crv="Ed448")]}, r"keys\[0\] must be of kty"),
        ({"keys": [_key(d="c2VjcmV0")]}, r"keys\[0\] is a private key"),
        ({"keys": [_key(kid="")]}, "must have a 'kid'"),
        ({"keys": [_key(kid=5)]}, "must have a 'kid'"),
        ({"keys": [_key(alg="HS256")]}, "no 'alg' but EdDSA"),
        ({"keys": [_key(x="c2hvcnQ")]}, r"keys\[0\]\.x must be 32 bytes"),
        ({"keys": [_key(x=None)]}, r"keys\[0\]\.x must be 32 bytes"),
    ],
)
def test_an_invalid_key_set_is_refused_with_the_fault(document: object, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        tokens.parse_jwks(document if isinstance(document, str) else json.dumps(document))
