"""Admission of requests over HTTP and gRPC: authenticate, charge, authorise, (the API validates), reserve; settle at
the end.

async with admission.admit(authorization, "Chat", request_id) as entry:   # checks the key, charges a request
    request = ...                                                          # read and validated by HTTP or gRPC
    route = entry.route(request.model)                                     # checks that the key may use the route
    await entry.reserve({"tokens": estimate})                              # checks the tenant's limits and its share
    ...                                                                    # channels.* now call in the caller's name
    entry.used({"tokens": count})                                          # the true amount
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory_common import identity, known, rpcs, specs
from genaifactory_common.errors import InvalidArgument, NotFound, Overloaded, PermissionDenied, Reason, Unauthenticated
from genaifactory_common.passes import Issued
from genaifactory_gateway.limits import Amounts, Kind, Limiter, Reservation, States
from genaifactory_gateway.shares import Shares

SERVICE = gateway_pb2.DESCRIPTOR.services_by_name["GatewayService"].full_name
# Longer than any key; a longer one is refused without hashing it.
_MAX_KEY_CHARACTERS = 512
_SHOWN_CHARACTERS = 100
_PREFIX = 16
# The memory that a request takes, however small its body is.
_LEAST_BODY_BYTES = 16 << 10
_RETRY_AFTER_SECONDS = 1.0


@dataclass(frozen=True)
class Holder:
    """The holder of an API key."""

    tenant: specs.Tenant
    key: specs.ApiKey
    role: specs.Role

    @property
    def principal(self) -> str:
        """The name of the caller that uses the key."""
        return self.key.id


@dataclass(frozen=True)
class Offer:
    """A route or embedding model that a key may name as `model`."""

    name: str
    task: str
    """"chat", "rag" or "embedding"."""
    description: str
    vision: bool = False
    """Whether it accepts images in messages: one of its models has vision, and its policy allows images."""


class Entry:
    """One admitted request; created by Admission.admit."""

    def __init__(self, admission: Admission, holder: Holder, method: str, request_id: str) -> None:
        self.holder = holder
        self.method = method
        """The gateway's method for this request: "/package.Service/Method"."""
        self.request_id = request_id
        self._admission = admission
        self._factory = admission.factory
        self._reservation: Reservation | None = None
        self._used: dict[Kind, int] = {"requests": 1}
        self._has_slot = False
        self._body_bytes = 0  # that count against the tenant's share

    def require_permission(self) -> None:
        """Raises PermissionDenied unless the key's role may call the method."""
        rpcs.facts(self.method).require(self.holder.role.name, self.holder.role.permissions)

    def route(self, name: str) -> specs.Route:
        """The route that the request names. Raises NotFound, PermissionDenied, InvalidArgument."""
        route = self._factory.route(name)
        if route is None or not self._visible(route):
            if self._embedding_model(name) is not None:
                raise InvalidArgument(f"'{name}' is an embedding model: use it with embeddings.", field="model")
            raise self._no_such_model(name)
        self._require_named(name)
        return route

    def embedding_model(self, name: str) -> specs.Model:
        """The embedding model that the request names. Raises NotFound, PermissionDenied, InvalidArgument."""
        model = self._embedding_model(name)
        if model is None:
            route = self._factory.route(name)
            if route is not None and self._visible(route):
                raise InvalidArgument(f"'{name}' answers chats: use it with chat completions.", field="model")
            raise self._no_such_model(name)
        self._require_named(name)
        return model

    def require_vision(self, route: specs.Route, field: str) -> None:
        """Raises InvalidArgument with the field of the first image unless a model of the route has vision."""
        if self._factory.seeing(route):
            return
        named = ", ".join(offer.name for offer in self.offers() if offer.vision)
        raise InvalidArgument(
            f"The model '{route.name}' accepts no images; "
            + (f"these models of this key do: {named}." if named else "no model of this key does."),
            field=field,
        )

    def offers(self) -> list[Offer]:
        """The routes and models that the key may name as `model`, sorted by name."""
        found = [
            Offer(r.name, r.task, r.description, self._accepts_images(r))
            for r in self._factory.routes
            if self._visible(r)
        ]
        found += [Offer(m.name, "embedding", m.description) for m in self._factory.models if m.kind == "embedding"]
        return sorted((o for o in found if self._may_name(o.name)), key=lambda o: o.name)

    def offer(self, name: str) -> Offer:
        """The route or model of this name. Raises NotFound, PermissionDenied."""
        if self._embedding_model(name) is not None:
            self.embedding_model(name)
        else:
            self.route(name)
        return next(offer for offer in self.offers() if offer.name == name)

    def _no_such_model(self, name: str) -> NotFound:
        names = ", ".join(offer.name for offer in self.offers()) or "none"
        return NotFound(
            f"There is no model '{name[:_SHOWN_CHARACTERS]}' that this key may use; it may use: {names}.",
            field="model",
            reason=Reason.MODEL_NOT_FOUND,
        )

    def knowledge_base(self, name: str) -> specs.KnowledgeBase:
        """The knowledge base of this name; empty: the tenant's only one. Raises NotFound, InvalidArgument."""
        return known.knowledge_base(self._factory, self.holder.tenant.name, name)

    async def charge(self) -> None:
        """Reserves one request within the tenant's limits: it counts, whatever is wrong with it. Raises RateLimited."""
        tenant = self.holder.tenant
        self._reservation = await self._admission.limiter.reserve(tenant.name, tenant.limits, self._used)

    def hold(self, size: int) -> None:
        """Counts bytes of the body against the memory for bodies, until the request ends. Raises Overloaded."""
        amount = size if self._body_bytes else max(size, _LEAST_BODY_BYTES)
        if not self._admission.bodies.take(self.holder.tenant.name, amount):
            raise Overloaded(
                "The bodies of the requests under way take as much memory as they may; try again.",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        self._body_bytes += amount

    async def reserve(self, amounts: Amounts | None = None) -> None:
        """Begins the work, once the whole request was read and is valid: counts it against the requests that run at
        once, reserves the amounts within the tenant's limits, and sets the caller as the task's identity.

        Raises Overloaded, RateLimited.
        """
        tenant, earlier = self.holder.tenant, self._reservation
        self._admission.begin(tenant.name)
        self._has_slot = True
        if earlier is None or amounts:
            wanted = {**({} if earlier else self._used), **(amounts or {})}
            self._reservation = await self._admission.limiter.reserve(tenant.name, tenant.limits, wanted, earlier)
        self._admission.speak_for(self.holder, self.request_id)

    def used(self, amounts: Amounts) -> None:
        """Sets the total amounts that the request has used. Amounts that are never set are 0."""
        self._used.update(amounts)

    async def limits(self) -> States:
        """The current state of the tenant's limits."""
        if self._reservation is not None:
            return self._reservation.states
        tenant = self.holder.tenant
        return await self._admission.limiter.states(tenant.name, tenant.limits)

    async def end(self) -> None:
        """Gives back what the request held, and charges what it used."""
        tenant = self.holder.tenant.name
        if self._has_slot:
            self._admission.slots.give_back(tenant)
        if self._body_bytes:
            self._admission.bodies.give_back(tenant, self._body_bytes)
        if self._reservation is not None:
            await self._admission.limiter.settle(self._reservation, self._used)

    def _embedding_model(self, name: str) -> specs.Model | None:
        model = self._factory.model(name)
        return model if model is not None and model.kind == "embedding" else None

    def _visible(self, route: specs.Route) -> bool:
        # A route over another tenant's knowledge base is visible to that tenant only.
        base = route.knowledge_base
        return base is None or self._factory.knowledge_base(base, self.holder.tenant.name) is not None

    def _accepts_images(self, route: specs.Route) -> bool:
        policy = self._factory.policy(route.policy)
        return bool(self._factory.seeing(route)) and policy is not None and policy.images == "allow"

    def _may_name(self, name: str) -> bool:
        return "*" in self.holder.role.routes or name in self.holder.role.routes

    def _require_named(self, name: str) -> None:
        if not self._may_name(name):
            raise PermissionDenied(f"The role '{self.holder.role.name}' may not use the model '{name}'.", field="model")


class Admission:
    """Admits requests with a key of the factory.yaml in force, and counts those that run."""

    def __init__(
        self,
        source: specs.Source,
        issued: Issued,
        limiter: Limiter,
        *,
        max_concurrent_requests: int,
        max_body_bytes: int,
    ) -> None:
        """max_body_bytes: of all requests under way together."""
        self.limiter = limiter
        self.slots = Shares(max_concurrent_requests)
        """Requests that run now, by tenant."""
        self.bodies = Shares(max_body_bytes)
        """Bytes of the bodies of requests under way, by tenant."""
        self._issued = issued
        self._source = source
        self._holders = source.derive(_holders)
        self._named = source.derive(_named)
        self.loaded_at = int(time.time())
        source.follow(self._follow)

    @property
    def factory(self) -> specs.Factory:
        """The factory.yaml in force."""
        return self._source.current

    def _follow(self, change: specs.Change) -> None:
        self.loaded_at = int(time.time())
        self.limiter.keep_only(tenant.name for tenant in change.after.tenants)

    @asynccontextmanager
    async def admit(
        self,
        authorization: str | None,
        rpc: str,
        request_id: str,
        entered: Callable[[Entry], None] = lambda entry: None,
    ) -> AsyncIterator[Entry]:
        """Admits a request with a valid key whose role may call `rpc`, and charges it, before its body is read.

        authorization: the header or metadata value, "Bearer KEY". rpc: the method of GatewayService; HTTP's resources
        name the corresponding one or, where there is none, "/package.Service/Method" of the service that they call.
        entered: called with the entry before it is charged. Raises Unauthenticated, RateLimited, PermissionDenied.
        """
        async with self._entered(self.authenticate(authorization), rpc, request_id) as entry:
            entered(entry)
            await entry.charge()
            entry.require_permission()
            yield entry

    @asynccontextmanager
    async def admit_batch(self, tenant: str, key_id: str, rpc: str, request_id: str) -> AsyncIterator[Entry]:
        """As `admit`, for work that the holder of a key has left to the platform, with what the key may do now. It is
        charged only when it begins: the platform may have to wait for room, and ask again.

        Raises PermissionDenied, Unauthenticated when the key is gone.
        """
        async with self._entered(self.holder(tenant, key_id), rpc, request_id) as entry:
            entry.require_permission()
            yield entry

    def holder(self, tenant: str, key_id: str) -> Holder:
        """The holder of a key of the factory.yaml in force, by the names of both. Raises Unauthenticated."""
        holder = self._named.current.get((tenant, key_id))
        if holder is None:
            raise Unauthenticated(f"The API key '{key_id}' is not in factory.yaml any more.")
        return holder

    def begin(self, tenant: str) -> None:
        """Counts a request as running. Raises Overloaded when the gateway, or the tenant's share of it, is full."""
        if not self.slots.take(tenant):
            raise Overloaded(
                "The gateway serves as many requests as it can, or as one tenant may have at once; try again.",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )

    @asynccontextmanager
    async def _entered(self, holder: Holder, rpc: str, request_id: str) -> AsyncIterator[Entry]:
        entry = Entry(self, holder, rpc if rpc.startswith("/") else f"/{SERVICE}/{rpc}", request_id)
        try:
            yield entry
        finally:
            await entry.end()

    def speak_for(self, holder: Holder, request_id: str) -> None:
        """Sets the holder as the identity of the running task's calls; a token is signed for each call."""
        caller = identity.Caller(
            tenant=holder.tenant.name,
            principal=holder.principal,
            key_id=holder.key.id,
            role=holder.role.name,
            permissions=holder.role.permissions,
            groups=holder.key.groups,
        )
        identity.set_current(caller, self._issued.of(caller), request_id)

    def authenticate(self, authorization: str | None) -> Holder:
        """The holder of the key in "Bearer KEY". Raises Unauthenticated."""
        if not authorization:
            raise Unauthenticated("No API key: send the header 'Authorization: Bearer <key>'.")
        scheme, _, key = authorization.partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise Unauthenticated("The Authorization header must be 'Bearer <key>'.")
        if len(key) <= _MAX_KEY_CHARACTERS:
            digest = hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()
            for holder in self._holders.current.get(digest[:_PREFIX], ()):
                if hmac.compare_digest(holder.key.sha256, digest):
                    return holder
        raise Unauthenticated("The API key is not known.")


def _holders(factory: specs.Factory) -> dict[str, list[Holder]]:
    """Holders by the beginning of their key's hash; the whole hash is compared in constant time."""
    found: dict[str, list[Holder]] = {}
    for holder in _named(factory).values():
        found.setdefault(holder.key.sha256[:_PREFIX], []).append(holder)
    return found


def _named(factory: specs.Factory) -> dict[tuple[str, str], Holder]:
    """Holders by the names of their tenant and key."""
    roles = {role.name: role for role in factory.roles}
    return {
        (tenant.name, key.id): Holder(tenant, key, roles[key.role]) for tenant in factory.tenants for key in tenant.keys
    }
