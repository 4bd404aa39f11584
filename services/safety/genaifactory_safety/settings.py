"""Settings of the guardrails: how much is scanned at once, where, and for how long."""

from __future__ import annotations

from pydantic import Field

from genaifactory_common.settings import Common
from genaifactory_common.settings import Settings as Group


class Scan(Group):
    """How texts are scanned."""

    inline_characters: int = Field(
        default=1024,
        ge=0,
        description="Pieces up to this long are scanned where they arrive, which is faster; longer ones in a thread.",
    )
    threads: int = Field(default=2, ge=1, le=64, description="Threads for long pieces.")
    max_queued: int = Field(
        default=64, ge=0, description="Pieces that may wait for a thread; then new calls are refused as overloaded."
    )
    timeout_seconds: float = Field(
        default=5.0, gt=0, le=600, description="For one piece, waiting included; then the text counts as not scanned."
    )


class Settings(Common):
    """The guardrails'."""

    scan: Scan = Scan()
