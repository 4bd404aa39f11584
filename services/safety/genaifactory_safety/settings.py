"""Settings of the guardrails: limits, threads and timeouts of scans."""

from __future__ import annotations

from pydantic import Field

from genaifactory_common.settings import Common
from genaifactory_common.settings import Settings as Group


class Scan(Group):
    """How texts are scanned."""

    inline_characters: int = Field(
        default=1024,
        ge=0,
        description="Pieces up to this length are scanned on the event loop, which is faster; longer ones in a thread.",
    )
    threads: int = Field(default=2, ge=1, le=64, description="Threads for long pieces.")
    max_queued: int = Field(
        default=64, ge=0, description="Pieces that may wait for a thread; beyond it new calls fail with OVERLOADED."
    )
    timeout_seconds: float = Field(
        default=5.0, gt=0, le=600, description="For one piece, waiting included; beyond it the text is not scanned."
    )


class Settings(Common):
    """Settings of the guardrail service."""

    scan: Scan = Scan()
