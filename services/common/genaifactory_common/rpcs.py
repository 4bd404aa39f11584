"""The declarations of each method in the protos: who may call it, what it calls, whether it may run twice.

    facts("/genaifactory.retriever.v1.RetrieverService/Search").permissions      # {"chat"}: any of them
    granted("/genaifactory.gateway.v1.GatewayService/Chat")                      # the methods a chat calls, by service

Methods are named as gRPC names them on the wire: "/package.Service/Method".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.descriptor_pool import Default

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.modelserver.v1 import modelserver_pb2
from genaifactory.monitor.v1 import batches_pb2, monitor_pb2
from genaifactory.options.v1 import options_pb2
from genaifactory.orchestrator.v1 import orchestrator_pb2
from genaifactory.retriever.v1 import retriever_pb2
from genaifactory.safety.v1 import safety_pb2
from genaifactory_common import identity
from genaifactory_common.errors import PermissionDenied

_CONTRACTS = (batches_pb2, gateway_pb2, modelserver_pb2, monitor_pb2, orchestrator_pb2, retriever_pb2, safety_pb2)
_IDEMPOTENT = (MethodOptions.NO_SIDE_EFFECTS, MethodOptions.IDEMPOTENT)


@dataclass(frozen=True)
class Facts:
    """The declarations of a method. `permissions` is empty where any caller may call it, and with `peer`."""

    permissions: frozenset[str]
    """The caller's role must have at least one of them."""
    peer: bool
    """A service calls it in its own name, without a caller."""
    idempotent: bool
    """It may run twice without harm."""
    audit: str
    """The name of the act in an audit trail; empty: it is not audited."""
    calls: tuple[str, ...]
    """Methods that it calls in the caller's name."""

    def require(self, role: str, permissions: Collection[str]) -> None:
        """Raises PermissionDenied unless the role's permissions are enough."""
        if self.permissions:
            identity.require_any(self.permissions, role, permissions)


@cache
def facts(method: str) -> Facts:
    """Of "/package.Service/Method". Raises PermissionDenied for a method that does not declare who may call it."""
    found = _descriptor(method)
    options = MethodOptions() if found is None else found.GetOptions()
    declared = options.Extensions[options_pb2.rpc]
    if [bool(declared.any_of_permissions), declared.any_caller, declared.peer].count(True) != 1:
        raise PermissionDenied(f"The contract of the method '{method}' does not declare who may call it.")
    return Facts(
        permissions=frozenset(declared.any_of_permissions),
        peer=declared.peer,
        idempotent=options.idempotency_level in _IDEMPOTENT,
        audit=declared.audit,
        calls=tuple(f"/{called}" for called in declared.calls),
    )


@cache
def methods() -> tuple[str, ...]:
    """Every method of the platform's contracts."""
    services = [service for contract in _CONTRACTS for service in contract.DESCRIPTOR.services_by_name.values()]
    return tuple(f"/{service.full_name}/{name}" for service in services for name in service.methods_by_name)


def idempotent() -> tuple[str, ...]:
    """Every method that may run twice without harm; channels send these again."""
    return tuple(method for method in methods() if facts(method).idempotent)


@cache
def granted(method: str) -> Mapping[str, frozenset[str]]:
    """The methods that `method` leads to in the caller's name, directly and indirectly, by "package.Service".

    Without the method itself. Raises PermissionDenied for a method that does not declare who may call it.
    """
    reached: dict[str, set[str]] = {}
    waiting = list(facts(method).calls)
    while waiting:
        called = waiting.pop()
        of_service = reached.setdefault(service(called), set())
        if called not in of_service:
            of_service.add(called)
            waiting.extend(facts(called).calls)
    return {name: frozenset(found) for name, found in reached.items()}


def service(method: str) -> str:
    """ "package.Service" of "/package.Service/Method"."""
    return method.strip("/").partition("/")[0]


def _descriptor(method: str) -> MethodDescriptor | None:
    try:
        return Default().FindMethodByName(method.removeprefix("/").replace("/", "."))
    except KeyError:
        return None
