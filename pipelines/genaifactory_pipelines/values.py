"""The base of what steps exchange and datasets hold."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict

INPUT: Final = "input"
"""Marks a path among a step's parameters, Annotated[Path, INPUT]: the result depends on what the file holds."""
PRIVATE: Final = "private"
"""Marks a field among a step's parameters, Annotated[str, PRIVATE], that stays in the run's folder: MLflow gets neither
it nor the file that holds it."""


class Values(BaseModel):
    """Immutable; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
