"""Policies, scans of texts in pieces, and a served guardrail service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from genaifactory.safety.v1 import safety_pb2_grpc
from genaifactory_common import specs, testing
from genaifactory_common.telemetry import Telemetry
from genaifactory_safety.app import create_app
from genaifactory_safety.policies import Catalogue, Policy, catalogue, compile_policy
from genaifactory_safety.scanner import StreamScanner
from genaifactory_safety.settings import Scan, Settings
from genaifactory_safety.verdicts import Direction, Verdict

FACTORY = """
tenants: [{{name: acme}}]
roles: [{{name: developer, permissions: [chat]}}]
models: [{{name: extractive, backend: {{type: modelserver, model: extractive}}}}]
routes: [{{name: chat, task: chat, models: [extractive], policy: {used}}}]
policies: {policies}
"""
POLICIES = """
  - name: default
    rules:
      - {entities: [SECRET], input: block, output: mask}
      - {entities: [PII], input: mask, output: mask}
  - name: strict
    max_input_characters: 1000
    banned_terms: [dự án mật]
    rules: [{entities: [SECRET], output: block}, {entities: [PII]}]
  - {name: open}
"""

Served = Callable[..., AbstractAsyncContextManager["safety_pb2_grpc.SafetyServiceAsyncStub"]]


def factory(policies: str = POLICIES, *, used: str = "default") -> specs.Factory:
    """A document with these policies, one of which its route uses."""
    return specs.parse(FACTORY.format(policies=policies, used=used))


def compiled(
    *rules: specs.Rule,
    banned_terms: Sequence[str] = (),
    direction: Direction = Direction.OUTPUT,
    recognisers: Catalogue | None = None,
) -> Policy:
    """A compiled policy; without rules: PII and secrets are masked."""
    rules = rules or (specs.Rule(entities=("PII", "SECRET")),)
    policy = specs.Policy(name="test", rules=rules, banned_terms=tuple(banned_terms))
    return compile_policy(policy, direction, recognisers or catalogue())


MASK = compiled()


def scan(text: str, policy: Policy = MASK, cuts: Iterable[int] = ()) -> tuple[str, Verdict]:
    """All that a scan of the text, cut at these offsets, releases, and its verdict."""
    scanner = StreamScanner(policy)
    released, begin = [], 0
    for end in (*sorted(cuts), len(text)):
        released.append(scanner.push(text[begin:end]))
        begin = end
    released.append(scanner.finish())
    return "".join(released), scanner.verdict()


@pytest.fixture
def served() -> Served:
    """Serves the guardrails; yields their stub."""

    @asynccontextmanager
    async def serve(
        *, source: specs.Source | None = None, scan: Scan | None = None, recognisers: Catalogue | None = None
    ) -> AsyncIterator[safety_pb2_grpc.SafetyServiceAsyncStub]:
        settings = Settings(context_public_key=testing.SIGNER.public_key, scan=scan or Scan())
        app = create_app(settings, source or specs.Source(factory()), Telemetry("safety"), recognisers=recognisers)
        testing.act_as()
        async with testing.served(app) as channel:
            stub: safety_pb2_grpc.SafetyServiceAsyncStub = safety_pb2_grpc.SafetyServiceStub(channel)
            yield stub

    return serve
