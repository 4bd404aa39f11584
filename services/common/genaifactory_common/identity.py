"""The caller of the current request, and the right to call other services on its behalf."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from genaifactory_common.errors import PermissionDenied, Unauthenticated


@dataclass(frozen=True)
class Caller:
    """The identity behind a request."""

    tenant: str
    principal: str
    """The caller within the tenant: the API key's id, or the OIDC subject."""
    key_id: str
    role: str
    permissions: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    """For document access."""

    def require(self, permission: str) -> None:
        """Raises PermissionDenied unless the role has the permission."""
        require_any({permission}, self.role, self.permissions)


def require_any(needed: Collection[str], role: str, permissions: Collection[str]) -> None:
    """Raises PermissionDenied unless the role's permissions include one of those needed."""
    if not any(permission in permissions for permission in needed):
        names = " or ".join(f"'{permission}'" for permission in sorted(needed))
        raise PermissionDenied(f"The role '{role}' has no permission {names}.")


class Passes(Protocol):
    """The right to call other services on behalf of a caller."""

    def metadata(self, method: str, within_seconds: float) -> Iterable[tuple[str, str]]:
        """The tokens, as metadata, for a call of "/package.Service/Method" that may last so long."""


_caller: ContextVar[Caller | None] = ContextVar("genaifactory_caller", default=None)
_passes: ContextVar[Passes | None] = ContextVar("genaifactory_passes", default=None)
_request_id: ContextVar[str] = ContextVar("genaifactory_request_id", default="")


def current() -> Caller:
    """The caller of the current request. Raises Unauthenticated outside of one."""
    caller = _caller.get()
    if caller is None:
        raise Unauthenticated("The call carries no caller context.")
    return caller


def passes() -> Passes | None:
    """The right to call other services for the current request; None outside of one."""
    return _passes.get()


def request_id() -> str:
    """The current request's id; empty outside of one. It names the request in traces, and grants nothing."""
    return _request_id.get()


def set_current(caller: Caller, passes: Passes, request_id: str) -> None:
    """Sets the identity of the running task and of the tasks that it starts."""
    _caller.set(caller)
    _passes.set(passes)
    _request_id.set(request_id)


def forget() -> None:
    """Removes the identity of the running task."""
    _caller.set(None)
    _passes.set(None)
    _request_id.set("")
