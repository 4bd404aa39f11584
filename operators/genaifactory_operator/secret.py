"""A Secret, and a change of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Secret:
    """The content of a Secret when it was read."""

    name: str
    version: str
    """Its resourceVersion: a change is refused when the Secret has another one by then."""
    data: Mapping[str, bytes]
    changed: datetime | None = None
    """When the issuer last changed it."""


@dataclass(frozen=True)
class Change:
    """Keys to set in a Secret, or to remove."""

    secret: Secret
    data: Mapping[str, bytes | None]
    """None: the key is removed."""
    why: str
    """The reason, for people: "a new certificate until 2027-02-20: there is none"."""
