"""Guardrail policies."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from genaifactory_common.engine_specs import Spec
from genaifactory_common.specs.names import Name


class Rule(Spec):
    """What to do about one kind of finding."""

    entities: tuple[str, ...] = Field(
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
    banned_terms: tuple[str, ...] = Field(default=(), description="Texts that block, whatever their case.")
    images: Literal["block", "allow"] = Field(
        default="block", description="Images in messages, which no scanner looks into; allow: they pass unscanned."
    )
