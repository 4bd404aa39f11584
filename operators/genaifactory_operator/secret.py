"""A Secret as the issuer sees it, and a change of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Secret:
    """What a Secret held when it was read."""

    name: str
    version: str
    """Its resourceVersion: a change of it that another overtook is refused."""
    data: Mapping[str, bytes]
    changed: datetime | None = None
    """When the issuer last changed it."""


@dataclass(frozen=True)
class Change:
    """Keys that a Secret should get, or lose."""

    secret: Secret
    data: Mapping[str, bytes | None]
    """None: the key goes."""
    why: str
    """For people: "a new certificate until 2027-02-20: there is none"."""
