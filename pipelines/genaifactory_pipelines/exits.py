"""Exit statuses of a step that runs as a process, by which whoever started it knows whether to start it again."""

from __future__ import annotations

from genaifactory_common.errors import FactoryError

FAILED = 1
"""It would fail again."""
NOT_PASSED = 3
"""It did its work, and what it judged was not good enough: a gate that was not passed, drift, a refusal."""
TRANSIENT = 75
"""It may succeed when it is started again: the platform was away, or refused for long. EX_TEMPFAIL of sysexits.h."""


def of(error: FactoryError) -> int:
    """The status of a step that failed."""
    from genaifactory_pipelines.gateway import PASSING  # gRPC, which a command that only names a status needs not

    return TRANSIENT if isinstance(error, PASSING) else FAILED
