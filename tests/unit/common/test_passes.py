"""Callers' tokens of a call: those for the methods that it leads to, and no others."""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64decode
from dataclasses import replace
from typing import Any

import pytest

from genaifactory_common import channels, passes, rpcs, testing
from genaifactory_common.errors import Unauthenticated
from genaifactory_common.followed import Fixed
from genaifactory_common.identity import Caller
from genaifactory_common.passes import CONTEXT, LONGEST_SECONDS, Issued, Metadata, Received, passed_on
from genaifactory_common.specs.tenants import ApiKey
from genaifactory_common.tokens import LIFETIME_SECONDS, Signer, Verifier, key_set

BOUND = "grpc.max_metadata_size"
CALLER = testing.CALLER
ANSWER = "/genaifactory.orchestrator.v1.OrchestratorService/Answer"
SEARCH = "/genaifactory.retriever.v1.RetrieverService/Search"
DELETE = "/genaifactory.retriever.v1.RetrieverService/DeleteDocuments"
GENERATE = "/genaifactory.modelserver.v1.ModelService/Generate"
RECORD = "/genaifactory.monitor.v1.MonitorService/RecordInteractions"
INNER = [
    method
    for method in rpcs.methods()
    if not rpcs.facts(method).peer and not method.startswith("/genaifactory.gateway.")
]


@pytest.fixture
def signer() -> Signer:
    return Signer.generate()


def verifier(signer: Signer) -> Verifier:
    return Verifier(Fixed(key_set([signer.public_key])))


def claims(token: str) -> dict[str, Any]:
    body = token.split(".")[1]
    found: dict[str, Any] = json.loads(urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return found


def life(metadata: Metadata) -> float:
    found = claims(dict(metadata)[CONTEXT])
    return float(found["exp"] - found["iat"])


@pytest.mark.parametrize("method", INNER)
def test_a_key_with_as_many_groups_as_it_may_have_can_call(method: str, signer: Signer) -> None:
    """Beyond the bound of metadata, no call of such a key would reach a service."""
    key = ApiKey(id="k", sha256="0" * 64, role="r", groups=tuple(f"{number:063}" for number in range(64)))
    metadata = Issued(Fixed(signer)).metadata(replace(CALLER, groups=key.groups), method, 60)
    assert sum(len(name) + len(value) + 32 for name, value in metadata) < dict(channels.METADATA_OPTIONS)[BOUND] / 2


@pytest.mark.parametrize("method", INNER)
async def test_a_call_carries_tokens_for_its_method_and_those_that_it_leads_to(method: str, signer: Signer) -> None:
    metadata = dict(Issued(Fixed(signer)).metadata(CALLER, method, 60))
    assert await verifier(signer).verify(metadata.pop(CONTEXT), method) == CALLER
    granted = rpcs.granted(method)
    assert metadata.keys() == {passed_on(service) for service in granted}
    for service, methods in granted.items():
        found = claims(metadata[passed_on(service)])
        assert (found["aud"], frozenset(f"/{service}/{name}" for name in found["methods"])) == (service, methods)


async def test_a_service_sends_each_received_token_to_the_service_that_it_is_for(signer: Signer) -> None:
    given = dict(Issued(Fixed(signer)).metadata(CALLER, ANSWER, 60))
    own = given.pop(CONTEXT)
    received = Received(given)
    shown = dict(received.metadata(SEARCH, 5))
    assert shown == {CONTEXT: given[passed_on("genaifactory.retriever.v1.RetrieverService")]}
    by = verifier(signer)
    assert await by.verify(shown[CONTEXT], SEARCH) == CALLER
    # A compromised retriever can call neither the orchestrator nor the model server, nor delete documents.
    for method in (ANSWER, GENERATE, DELETE):
        with pytest.raises(Unauthenticated):
            await by.verify(shown[CONTEXT], method)
    # Nor can the orchestrator call a method of the retriever that an answer does not need.
    with pytest.raises(Unauthenticated, match="not for the method DeleteDocuments"):
        await by.verify(dict(received.metadata(DELETE, 5))[CONTEXT], DELETE)
    assert own not in shown.values()


def test_a_service_sends_no_token_to_a_service_for_which_it_received_none(signer: Signer) -> None:
    given = dict(Issued(Fixed(signer)).metadata(CALLER, SEARCH, 60))
    given.pop(CONTEXT)
    assert dict(Received(given).metadata(ANSWER, 5)) == {}


def test_a_call_in_a_services_own_name_carries_no_caller(signer: Signer) -> None:
    assert Issued(Fixed(signer)).metadata(CALLER, RECORD, 5) == ()


def test_tokens_are_reused_while_they_are_valid(signer: Signer, monkeypatch: pytest.MonkeyPatch) -> None:
    issued, now = Issued(Fixed(signer)), time.time()
    first = issued.metadata(CALLER, ANSWER, 121)
    monkeypatch.setattr(time, "time", lambda: now + LIFETIME_SECONDS - 123)
    assert issued.metadata(CALLER, ANSWER, 121) is first
    monkeypatch.setattr(time, "time", lambda: now + LIFETIME_SECONDS - 120)
    assert issued.metadata(CALLER, ANSWER, 121) is not first


def test_each_caller_and_method_has_tokens_of_its_own(signer: Signer) -> None:
    issued = Issued(Fixed(signer))
    other = replace(CALLER, groups=("board",))
    shown = [issued.metadata(CALLER, ANSWER, 5), issued.metadata(other, ANSWER, 5), issued.metadata(CALLER, SEARCH, 5)]
    assert len({dict(each)[CONTEXT] for each in shown}) == 3


def test_a_token_is_valid_for_minutes_and_longer_only_for_a_later_deadline(signer: Signer) -> None:
    issued = Issued(Fixed(signer))
    assert [life(issued.metadata(CALLER, ANSWER, seconds)) for seconds in (1, 60, 240, 241, 600, 3600, 10**6)] == [
        *(300, 300, 300, 360, 660, 3660),
        LONGEST_SECONDS,
    ]
    # One that was signed for a long request is not reused for a short one.
    assert life(issued.metadata(CALLER, ANSWER, 1)) == LIFETIME_SECONDS


def test_no_token_is_valid_for_longer_than_a_replaced_key_is_trusted(signer: Signer) -> None:
    issued = Issued(Fixed(signer), longest_seconds=400)
    first = issued.metadata(CALLER, ANSWER, 3600)
    assert life(first) == 400
    assert issued.metadata(CALLER, ANSWER, 3600) is first  # reused, although none can be valid for the whole request


def test_a_new_key_signs_at_once(signer: Signer) -> None:
    keys = Fixed(signer)
    issued = Issued(keys)
    first = issued.metadata(CALLER, ANSWER, 5)
    keys.current = Signer.generate()
    assert issued.metadata(CALLER, ANSWER, 5) != first


def test_the_cache_of_issued_tokens_is_bounded(signer: Signer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_ISSUED", 8)
    issued = Issued(Fixed(signer))
    for number in range(50):
        issued.metadata(Caller("acme", str(number), "k", "r"), SEARCH, 5)
    assert len(issued._issued) == 8
    assert issued.metadata(Caller("acme", "49", "k", "r"), SEARCH, 5) is next(reversed(issued._issued.values()))[2]
