"""The base of what steps exchange and datasets hold."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Values(BaseModel):
    """Immutable; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
