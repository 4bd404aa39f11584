"""The declarations of each method in the protos: complete, with existing names, and refused where they are missing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from genaifactory_common import rpcs
from genaifactory_common.errors import PermissionDenied
from genaifactory_common.specs.tenants import Permission

PROTOS = Path(__file__).parents[3] / "protos"
GATEWAY, RETRIEVER = "genaifactory.gateway.v1.GatewayService", "genaifactory.retriever.v1.RetrieverService"


def written() -> set[str]:
    """The methods in the text of the protos."""
    found = set()
    for path in PROTOS.rglob("*.proto"):
        text = path.read_text("utf-8")
        package = re.findall(r"^package (.+);", text, re.MULTILINE)[0]
        for line in text.splitlines():
            if declared := re.match(r"service (\w+) ", line):
                service = declared[1]
            elif declared := re.match(r"  rpc (\w+)\(", line):
                found.add(f"/{package}.{service}/{declared[1]}")
    return found


def test_methods_lists_every_method_of_every_contract() -> None:
    assert set(rpcs.methods()) == written()
    assert len(rpcs.methods()) == len(written())


@pytest.mark.parametrize("method", rpcs.methods())
def test_each_method_declares_who_may_call_it_and_existing_calls(method: str) -> None:
    facts = rpcs.facts(method)
    assert facts.permissions <= set(get_args(Permission))
    assert set(facts.calls) <= set(rpcs.methods())
    assert re.fullmatch(r"|[a-z]+\.[a-z]+", facts.audit)


@pytest.mark.parametrize(
    "method",
    [
        "",
        "/",
        f"/{GATEWAY}",
        f"/{GATEWAY}/Nothing",
        "/grpc.health.v1.Health/Check",
        "/genaifactory.types.v1.Nobody/Call",
    ],
)
def test_a_method_that_does_not_declare_who_may_call_it_is_refused(method: str) -> None:
    with pytest.raises(PermissionDenied, match="does not declare who may call it"):
        rpcs.facts(method)
    with pytest.raises(PermissionDenied):
        rpcs.granted(method)


def test_a_call_is_granted_the_methods_that_it_calls_directly_and_indirectly() -> None:
    granted = rpcs.granted(f"/{GATEWAY}/Chat")
    assert granted == {
        "genaifactory.orchestrator.v1.OrchestratorService": {
            "/genaifactory.orchestrator.v1.OrchestratorService/Answer",
        },
        "genaifactory.safety.v1.SafetyService": {
            "/genaifactory.safety.v1.SafetyService/CheckText",
            "/genaifactory.safety.v1.SafetyService/CheckStream",
        },
        RETRIEVER: {f"/{RETRIEVER}/Search"},
        "genaifactory.modelserver.v1.ModelService": {"/genaifactory.modelserver.v1.ModelService/Generate"},
    }
    assert rpcs.granted(f"/{RETRIEVER}/Search") == {}
    assert rpcs.granted(f"/{GATEWAY}/DeleteDocuments") == {RETRIEVER: {f"/{RETRIEVER}/DeleteDocuments"}}


def test_no_call_is_granted_a_method_that_services_call_in_their_own_name() -> None:
    granted = {called for method in rpcs.methods() for found in rpcs.granted(method).values() for called in found}
    assert not any(rpcs.facts(called).peer for called in granted)
    of_workers = ("ClaimBatch", "AddLines", "FinishCheck", "ClaimLines", "StoreResult", "ReleaseLine", "FailBatch")
    assert {method for method in rpcs.methods() if rpcs.facts(method).peer} == {
        "/genaifactory.monitor.v1.MonitorService/RecordInteractions",
        *(f"/genaifactory.monitor.v1.BatchService/{name}" for name in of_workers),
    }
