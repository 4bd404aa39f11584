"""Guardrail policies."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from genaifactory_common.engine_specs import Spec
from genaifactory_common.normalise import normalise
from genaifactory_common.specs.entities import GROUPS, OTHERS
from genaifactory_common.specs.names import Name

_KNOWN = tuple(sorted({*GROUPS, *OTHERS, *(entity for members in GROUPS.values() for entity in members)}))


def _known(name: str) -> str:
    if name not in _KNOWN:
        raise ValueError(f"unknown entity or group '{name}'; known: {', '.join(_KNOWN)}")
    return name


def _visible(term: str) -> str:
    if not normalise(term).text.strip():
        raise ValueError("must hold a visible character")
    return term


Entity = Annotated[str, AfterValidator(_known), WithJsonSchema({"type": "string", "enum": list(_KNOWN)})]
"""An entity type of the guardrails, or a group of them."""


class Rule(Spec):
    """The actions for some kinds of findings."""

    entities: tuple[Entity, ...] = Field(
        min_length=1, description="Entity types ('EMAIL_ADDRESS') or groups ('PII', 'SECRET')."
    )
    input: Literal["allow", "mask", "block"] = "mask"
    output: Literal["allow", "mask", "block"] = "mask"
    min_score: float = Field(default=0.5, ge=0, le=1)


class Policy(Spec):
    """A guardrail policy. The first rule that names an entity decides; entities that no rule names pass."""

    name: Name
    rules: tuple[Rule, ...] = ()
    max_input_characters: int = Field(default=100_000, ge=1)
    languages: tuple[Literal["vi", "en"], ...] = Field(default=("vi", "en"), min_length=1)
    banned_terms: tuple[Annotated[str, AfterValidator(_visible)], ...] = Field(
        default=(), description="Texts that block, in any case."
    )
    images: Literal["block", "allow"] = Field(
        default="block", description="Images in messages, which no scanner reads; allow: they pass unscanned."
    )
