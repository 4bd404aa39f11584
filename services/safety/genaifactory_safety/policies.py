"""The guardrail policies of factory.yaml, compiled for scanning once for each document."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from genaifactory_common import specs
from genaifactory_common.errors import NotFound
from genaifactory_safety import general, secrets, vietnamese
from genaifactory_safety.banned import BANNED_TERM, compile_terms
from genaifactory_safety.recogniser import StrictRecogniser
from genaifactory_safety.verdicts import Action, Direction

Catalogue = Mapping[Literal["PII", "SECRET"], tuple[StrictRecogniser, ...]]
"""Recognisers by the group that rules may name."""
UNSCANNABLE = "UNSCANNABLE"
"""An unbroken run of characters that is too long to be scanned."""
PII_SCANNER, SECRET_SCANNER, BANNED_SCANNER, LENGTH_SCANNER = "pii", "secrets", "banned_terms", "length"

_SCANNERS = {"PII": PII_SCANNER, "SECRET": SECRET_SCANNER, "BANNED": BANNED_SCANNER}
_NOT_DIGIT = re.compile(r"\D+")
_ACTIONS = {"allow": Action.ALLOW, "mask": Action.MASK, "block": Action.BLOCK}


@dataclass(frozen=True)
class Decision:
    """A policy's action for one entity type."""

    action: Action
    min_score: float
    scanner: str


@dataclass(frozen=True)
class Policy:
    """One policy for one direction."""

    name: str
    decisions: Mapping[str, Decision]
    """By entity type; others are not searched for."""
    counted: tuple[StrictRecogniser, ...]
    """Recognisers that need digits, those that need the fewest first."""
    named: tuple[tuple[str, StrictRecogniser], ...]
    """Recognisers that need one of some literals, once for each literal."""
    banned: Any
    """The pattern of compile_terms, or None."""
    max_characters: int | None
    scanners: tuple[str, ...]
    """The scanners that this policy runs; empty when it searches for nothing."""

    def recognisers(self, segment: str, window: str) -> list[StrictRecogniser]:
        """The recognisers that could match in a segment. window: the segment with the text before it."""
        digits = len(_NOT_DIGIT.sub("", segment))
        possible = []
        for recogniser in self.counted:
            if recogniser.min_digits > digits:
                break
            possible.append(recogniser)
        lowered = window.lower()
        possible += dict.fromkeys(recogniser for literal, recogniser in self.named if literal in lowered)
        return [r for r in possible if r.hint is None or r.hint.search(segment)]


@functools.cache
def catalogue() -> Catalogue:
    """The platform's recognisers."""
    return {"PII": (*general.recognisers(), *vietnamese.recognisers()), "SECRET": tuple(secrets.recognisers())}


def groups(recognisers: Catalogue) -> Mapping[str, tuple[str, ...]]:
    """The entity types of each group that rules may name."""
    found: dict[str, tuple[str, ...]] = {
        group: tuple(dict.fromkeys(r.entity for r in members)) for group, members in recognisers.items()
    }
    return {**found, "BANNED": (BANNED_TERM,)}


class Policies:
    """The policies in force."""

    def __init__(self, source: specs.Source, recognisers: Catalogue) -> None:
        def compiled(factory: specs.Factory) -> dict[tuple[str, Direction], Policy]:
            return {
                (policy.name, direction): compile_policy(policy, direction, recognisers)
                for policy in factory.policies
                for direction in Direction
            }

        self._table = source.derive(compiled)

    def get(self, name: str, direction: Direction, field: str = "policy") -> Policy:
        """The policy of this name; `field` is where a request names it. Raises NotFound."""
        table = self._table.current
        policy = table.get((name, direction))
        if policy is None:
            known = ", ".join(sorted({known for known, _ in table}))
            raise NotFound(f"There is no policy '{name}' in factory.yaml; there are: {known}.", field=field)
        return policy


def compile_policy(policy: specs.Policy, direction: Direction, recognisers: Catalogue) -> Policy:
    """One policy for one direction."""
    of_group = groups(recognisers)
    scanner_of = {
        **{entity: _SCANNERS[group] for group, members in of_group.items() for entity in members},
        UNSCANNABLE: LENGTH_SCANNER,
    }
    decisions: dict[str, Decision] = {}
    for rule in policy.rules:
        action = _ACTIONS[rule.input if direction is Direction.INPUT else rule.output]
        for entity in (entity for name in rule.entities for entity in of_group.get(name, (name,))):
            # The first rule that names an entity decides.
            decisions.setdefault(entity, Decision(action, rule.min_score, scanner_of[entity]))
    active = [
        recogniser
        for members in recognisers.values()
        for recogniser in members
        if recogniser.entity in decisions and set(recogniser.languages) & set(policy.languages)
    ]
    scanners = {scanner_of[recogniser.entity] for recogniser in active}
    banned = compile_terms(policy.banned_terms) if policy.banned_terms else None
    if banned is not None:
        decisions.setdefault(BANNED_TERM, Decision(Action.BLOCK, 0.0, BANNED_SCANNER))
        scanners.add(BANNED_SCANNER)
    # A run that cannot be scanned gets the policy's strongest action.
    strongest = max((decision.action for decision in decisions.values()), default=Action.ALLOW)
    decisions.setdefault(UNSCANNABLE, Decision(strongest, 0.0, LENGTH_SCANNER))
    return Policy(
        name=policy.name,
        decisions=decisions,
        counted=tuple(sorted((r for r in active if not r.literals), key=lambda r: r.min_digits)),
        named=tuple((literal, r) for r in active for literal in r.literals),
        banned=banned,
        max_characters=policy.max_input_characters if direction is Direction.INPUT else None,
        scanners=tuple(sorted(scanners)),
    )
