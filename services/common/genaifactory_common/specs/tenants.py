"""Tenants and roles: keys, permissions and limits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from genaifactory_common.engine_specs import Spec
from genaifactory_common.specs.names import Name

Permission = Literal["chat", "embed", "models", "feedback", "usage", "ingest", "export", "evaluate", "operate"]


class ApiKey(Spec):
    """An API key. Only its hash is stored."""

    id: Name = Field(description="Names the key in records; not secret.")
    sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of the key, hex. `genaifactory config hash-key` computes it.",
    )
    role: Name = Field(description="Name of a role.")
    # As many as a document has. Every token of a call carries them: with 64 of the longest an answer's have 25 KB
    # together, of the 64 KiB that channels accept.
    groups: tuple[Name, ...] = Field(default=(), max_length=64, description="Groups for document access.")


class Limits(Spec):
    """Limits of a tenant's keys together."""

    requests_per_minute: int = Field(default=600, ge=1)
    tokens_per_minute: int = Field(default=1_000_000, ge=1)


class Tenant(Spec):
    """A customer or department; data, cache and limits are its own."""

    name: Name
    keys: tuple[ApiKey, ...] = ()
    limits: Limits = Limits()


class Role(Spec):
    """The permissions of keys."""

    name: Name
    permissions: tuple[Permission, ...]
    routes: tuple[str, ...] = Field(default=("*",), description="Routes and embedding models it may name; '*' is all.")
