"""The key with which the gateway signs callers, in its Secrets."""

from __future__ import annotations

import base64

import pytest

from genaifactory_common.errors import InvalidArgument
from genaifactory_common.identity import Caller, Signer, Verifier
from genaifactory_operator import context_key
from tests.unit.operator.wanted import NOW, Memory, wanted

PRIVATE, PUBLIC = "factory-context-key", "factory-context-public-key"


def _settle(memory: Memory) -> int:
    count = 0
    while changes := context_key.due(wanted().context_key, memory.secrets):
        for change in changes:
            memory.apply(change, NOW)
            count += 1
    return count


def test_a_caller_that_the_private_secret_signs_is_known_by_the_public_one() -> None:
    memory = Memory(wanted().secrets)
    assert _settle(memory) == 2
    signer = Signer(base64.b64decode(memory.secrets[PRIVATE].data["GENAIFACTORY_CONTEXT_PRIVATE_KEY"]))
    verifier = Verifier(base64.b64decode(memory.secrets[PUBLIC].data["GENAIFACTORY_CONTEXT_PUBLIC_KEY"]))
    caller = Caller("acme", "alice", "alice", "user")
    assert verifier.verify(signer.sign(caller)) == caller


def test_it_is_made_once() -> None:
    memory = Memory(wanted().secrets)
    _settle(memory)
    assert _settle(memory) == 0


def test_a_public_key_that_does_not_fit_is_mended() -> None:
    memory = Memory(wanted().secrets)
    _settle(memory)
    before = dict(memory.secrets)
    memory.put(PUBLIC, {"GENAIFACTORY_CONTEXT_PUBLIC_KEY": b"another"}, NOW)
    assert _settle(memory) == 1
    assert memory.secrets[PUBLIC].data == before[PUBLIC].data
    assert memory.secrets[PRIVATE] == before[PRIVATE]


@pytest.mark.parametrize("text", [b"not base64", base64.b64encode(b"too short")])
def test_what_is_no_key_is_not_replaced_but_said(text: bytes) -> None:
    memory = Memory(wanted().secrets)
    memory.put(PRIVATE, {"GENAIFACTORY_CONTEXT_PRIVATE_KEY": text}, NOW)
    with pytest.raises(InvalidArgument, match=f"{PRIVATE} holds no key") as caught:
        context_key.due(wanted().context_key, memory.secrets)
    assert text.decode() not in caught.value.message  # it may be a key with a typing mistake
