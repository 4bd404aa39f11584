"""Looks up names of a request in factory.yaml; the error of an unknown name lists the known ones."""

from __future__ import annotations

from genaifactory_common import specs
from genaifactory_common.errors import InvalidArgument, NotFound, PermissionDenied

_SHOWN = 100


def tenant(factory: specs.Factory, name: str) -> specs.Tenant:
    """The tenant of a signed caller.

    Raises PermissionDenied when there is none of the name, without the names of others: tenants do not see each other.
    """
    found = next((tenant for tenant in factory.tenants if tenant.name == name), None)
    if found is None:
        raise PermissionDenied(
            f"factory.yaml has no tenant '{name[:_SHOWN]}', so what is stored for it could not be read.", field="tenant"
        )
    return found


def knowledge_bases(factory: specs.Factory, tenant_name: str) -> list[str]:
    """Names of the knowledge bases that the tenant may use, in the order of factory.yaml."""
    return [base.name for base in factory.knowledge_bases if factory.knowledge_base(base.name, tenant_name)]


def knowledge_base(
    factory: specs.Factory, tenant_name: str, name: str, *, field: str = "knowledge_base"
) -> specs.KnowledgeBase:
    """The knowledge base of this name; of no name: the only one that the tenant may use.

    field: its name in the request. Raises InvalidArgument when no name is given and there are several, NotFound.
    """
    usable = knowledge_bases(factory, tenant_name)
    if not name and len(usable) > 1:
        raise InvalidArgument(f"Give '{field}', one of: {', '.join(usable)}.", field=field)
    found = factory.knowledge_base(name or next(iter(usable), ""), tenant_name)
    if found is None:
        known = ", ".join(usable) or "none"
        raise NotFound(
            f"There is no knowledge base '{name[:_SHOWN]}' that the tenant may use; there are: {known}.", field=field
        )
    return found
