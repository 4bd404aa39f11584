"""Which arm of a split answers a request: a pure function of names, the same in every process and release."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from genaifactory_common import specs

_BITS = 53  # of a float's mantissa: more would round up to 1


@dataclass(frozen=True)
class Unit:
    """What of a request may keep its arm; each may be empty but the request's id."""

    user: str
    conversation_id: str
    request_id: str


def assigned(split: specs.Split, tenant: str, unit: Unit) -> str:
    """The name of the arm that answers.

    Arms have intervals of [0, 1) from 0 on, in the order of the split. So an arm whose share grows keeps its units,
    and with one arm, or the last of several, no unit moves between two others.
    """
    for arm in split.arms:
        if tenant in arm.tenants:
            return arm.name
    at, end = _position(split, tenant, unit), 0.0
    for arm in split.arms:
        end += arm.share
        if at < end:
            return arm.name
    return specs.STABLE


def _position(split: specs.Split, tenant: str, unit: Unit) -> float:
    """In [0, 1), uniform over units and independent between splits.

    The caller's key is no part of it, so that a user has the same arm through all applications of the tenant.
    """
    kinds = {"user": unit.user, "conversation": unit.conversation_id}
    ordered = sorted(kinds.items(), key=lambda item: item[0] != split.unit)
    kind, name = next(((kind, name) for kind, name in ordered if name), ("request", unit.request_id))
    digest = hashlib.sha256()
    for part in (split.name, tenant, kind, name):
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    number = int.from_bytes(digest.digest()[:8], "big") >> (64 - _BITS)
    return number / float(1 << _BITS)
