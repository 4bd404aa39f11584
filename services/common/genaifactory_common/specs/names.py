"""Names that several parts of factory.yaml share."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

NAME = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"
Name = Annotated[str, StringConstraints(pattern=NAME)]
"""Lower-case letters, digits, '.', '_' and '-', at most 63 characters."""
