"""Who a call is for: what the gateway signed, and nothing that anybody else made of it."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genaifactory_common import identity, testing
from genaifactory_common.errors import PermissionDenied, Unauthenticated
from genaifactory_common.identity import LIFETIME_SECONDS, Caller, Signer, Verifier

CALLER = Caller("acme", "alice", "key-1", "developer", ("chat", "embed"), ("staff", "hà-nội"), "req-1")
SIGNER = Signer.generate()


def signed(signer: Signer, fields: object) -> str:
    """A token of any content, signed as the gateway signs."""
    body = json.dumps(fields).encode()
    return f"{_b64(body)}.{_b64(signer._key.sign(body))}"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def complete() -> dict[str, object]:
    return {**asdict(CALLER), "exp": int(time.time()) + 60}


def test_a_signed_caller_comes_back_whole() -> None:
    assert Verifier(SIGNER.public_key).verify(SIGNER.sign(CALLER)) == CALLER


def test_another_key_cannot_sign() -> None:
    with pytest.raises(Unauthenticated, match="not signed by the gateway"):
        Verifier(SIGNER.public_key).verify(Signer.generate().sign(CALLER))


def test_a_signature_does_not_fit_another_caller() -> None:
    _, _, signature = SIGNER.sign(CALLER).partition(".")
    body, _, _ = SIGNER.sign(replace(CALLER, tenant="rival")).partition(".")
    with pytest.raises(Unauthenticated):
        Verifier(SIGNER.public_key).verify(f"{body}.{signature}")


@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_flipped_bit_passes(position: int, bit: int) -> None:
    body, _, signature = SIGNER.sign(CALLER).partition(".")
    data = bytearray(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    data[position % len(data)] ^= 1 << bit
    with pytest.raises(Unauthenticated):
        Verifier(SIGNER.public_key).verify(f"{_b64(bytes(data))}.{signature}")


@given(st.text(max_size=200))
def test_any_text_is_refused_and_nothing_else_happens(text: str) -> None:
    with pytest.raises(Unauthenticated):
        Verifier(SIGNER.public_key).verify(text)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        "alice",
        None,
        {},
        {**complete(), "exp": None},
        {**complete(), "exp": "soon"},
        {key: value for key, value in complete().items() if key != "exp"},
        {key: value for key, value in complete().items() if key != "tenant"},
        {key: value for key, value in complete().items() if key != "permissions"},
        {**complete(), "permissions": 5},
        {**complete(), "admin": True},
    ],
)
def test_a_signed_text_that_is_no_caller_is_refused(fields: object) -> None:
    with pytest.raises(Unauthenticated):
        Verifier(SIGNER.public_key).verify(signed(SIGNER, fields))


def test_a_token_ends_after_its_lifetime_also_when_it_was_seen_before(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = Verifier(SIGNER.public_key)
    token = SIGNER.sign(CALLER)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + LIFETIME_SECONDS - 2)
    assert verifier.verify(token) == CALLER
    monkeypatch.setattr(time, "time", lambda: now + LIFETIME_SECONDS + 2)
    with pytest.raises(Unauthenticated, match="expired"):
        verifier.verify(token)


def test_the_memory_of_seen_tokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_CACHED_TOKENS", 8)
    verifier = Verifier(SIGNER.public_key)
    for i in range(50):
        verifier.verify(SIGNER.sign(replace(CALLER, request_id=str(i))))
    assert len(verifier._seen) == 8


def test_a_refused_token_is_not_remembered() -> None:
    verifier = Verifier(SIGNER.public_key)
    for i in range(10):
        with pytest.raises(Unauthenticated):
            verifier.verify(f"forged-{i}")
    assert len(verifier._seen) == 0


def test_a_key_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32"):
        Verifier(b"short")
    with pytest.raises(ValueError, match="32"):
        Signer(b"short")


def test_a_signer_made_of_its_private_key_signs_alike() -> None:
    again = Signer(SIGNER.private_key)
    assert again.public_key == SIGNER.public_key
    assert Verifier(SIGNER.public_key).verify(again.sign(CALLER)) == CALLER


def test_outside_of_a_request_there_is_no_caller() -> None:
    with pytest.raises(Unauthenticated, match="no caller context"):
        identity.current()
    assert identity.current_token() is None


def test_a_permission_is_named_when_it_is_missing() -> None:
    CALLER.require("chat")
    with pytest.raises(PermissionDenied, match="'developer' has no permission 'operate'"):
        CALLER.require("operate")


async def test_each_task_has_its_own_caller() -> None:
    async def act(tenant: str) -> str:
        testing.act_as(replace(CALLER, tenant=tenant))
        await asyncio.sleep(0)
        return identity.current().tenant

    assert list(await asyncio.gather(act("one"), act("two"))) == ["one", "two"]
    with pytest.raises(Unauthenticated):
        identity.current()
