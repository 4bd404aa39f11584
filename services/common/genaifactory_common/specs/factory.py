"""The whole document, and the checks across its parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from genaifactory_common.engine_specs import AnyEngine, Extractive, MiniLM, Spec
from genaifactory_common.specs.gates import Gate
from genaifactory_common.specs.models import Model
from genaifactory_common.specs.names import Name
from genaifactory_common.specs.policies import Policy
from genaifactory_common.specs.routes import KnowledgeBase, Prompt, Route
from genaifactory_common.specs.sources import AnySource
from genaifactory_common.specs.splits import Arm, Split
from genaifactory_common.specs.tenants import Role, Tenant

Origin = Annotated[
    str,
    StringConstraints(pattern=r"^(\*|https?://([a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(:[1-9][0-9]{0,4})?)$"),
]
"""'*', or a scheme, a host in lower case and a port unless it is the scheme's default: as browsers send in Origin."""


class InconsistentError(ValueError):
    """Contradictory parts of a document; each problem is 'path: what is wrong'."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problems))


class Cors(Spec):
    """Which web pages of other origins may call the HTTP API from a browser, each with an API key of its own."""

    allowed_origins: tuple[Origin, ...] = Field(
        default=(), description="Like 'https://app.example.com', without a path; '*' is any. Empty: none."
    )
    max_age_seconds: int = Field(
        default=600, ge=0, le=86_400, description="How long a browser may cache the permission."
    )


class Retired(Spec):
    """Names that are no longer used. What is stored under them stays and may be out of reach."""

    tenants: tuple[Name, ...] = ()
    knowledge_bases: tuple[Name, ...] = ()


class Factory(Spec):
    """The whole document."""

    version: Literal[1] = 1
    tenants: tuple[Tenant, ...] = Field(min_length=1)
    roles: tuple[Role, ...] = Field(min_length=1)
    models: tuple[Model, ...] = Field(min_length=1)
    routes: tuple[Route, ...] = Field(min_length=1)
    splits: tuple[Split, ...] = Field(default=(), description="Routes that several arms answer, each with a share.")
    prompts: tuple[Prompt, ...] = ()
    knowledge_bases: tuple[KnowledgeBase, ...] = ()
    policies: tuple[Policy, ...] = Field(min_length=1)
    sources: tuple[AnySource, ...] = Field(
        default=(), description="Where documents are read from by `genaifactory sources sync` and `reindex`."
    )
    gates: tuple[Gate, ...] = Field(default=(), description="What candidates have to fulfil before a release.")
    cors: Cors = Cors()
    retired: Retired = Retired()
    engines: tuple[AnyEngine, ...] = Field(
        default=(Extractive(), MiniLM()),
        min_length=1,
        description="Engines of the model server. A change needs its restart, except of adapters.serve.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if problems := list(self._problems()):
            raise InconsistentError(problems)
        return self

    def _problems(self) -> Iterator[str]:
        yield from _unique("tenants", [t.name for t in self.tenants])
        yield from _unique("roles", [r.name for r in self.roles])
        yield from _unique("models", [m.name for m in self.models])
        yield from _unique("routes", [r.name for r in self.routes])
        yield from _unique("prompts", [p.reference for p in self.prompts])
        yield from _unique("knowledge_bases", [k.name for k in self.knowledge_bases])
        yield from _unique("sources", [s.name for s in self.sources])
        yield from _unique("policies", [p.name for p in self.policies])
        yield from _unique("gates", [g.name for g in self.gates])
        yield from _unique("splits", [s.name for s in self.splits])
        yield from _unique("splits[].route", [s.route for s in self.splits])
        yield from _unique("engines", [name for engine in self.engines for name in engine.names()])
        keys = [key for tenant in self.tenants for key in tenant.keys]
        yield from _unique("tenants[].keys[].id", [k.id for k in keys])
        yield from _unique("tenants[].keys[].sha256", [k.sha256 for k in keys])
        roles = {r.name for r in self.roles}
        for i, tenant in enumerate(self.tenants):
            for j, key in enumerate(tenant.keys):
                yield from _known(f"tenants[{i}].keys[{j}].role", key.role, roles)
        embedding = {m.name for m in self.models if m.kind == "embedding"}
        names = {r.name for r in self.routes} | embedding
        for i, role in enumerate(self.roles):
            for j, route in enumerate(role.routes):
                if route != "*":
                    yield from _known(f"roles[{i}].routes[{j}]", route, names)
        for name in sorted({r.name for r in self.routes} & embedding):
            yield f"routes: '{name}' is also an embedding model; clients could not distinguish them"
        for i, route_spec in enumerate(self.routes):
            yield from self._route_problems(f"routes[{i}]", route_spec)
        tenants = {t.name for t in self.tenants}
        yield from _retired("tenants", self.retired.tenants, tenants)
        yield from _retired("knowledge_bases", self.retired.knowledge_bases, {k.name for k in self.knowledge_bases})
        for i, base in enumerate(self.knowledge_bases):
            for j, name in enumerate(base.tenants):
                if name != "*":
                    yield from _known(f"knowledge_bases[{i}].tenants[{j}]", name, tenants)
        for i, source in enumerate(self.sources):
            bases = {k.name for k in self.knowledge_bases}
            yield from _known(f"sources[{i}].knowledge_base", source.knowledge_base, bases)
        yield from self._split_problems()

    def _route_problems(self, path: str, route: Route) -> Iterator[str]:
        chat_models = {m.name for m in self.models if m.kind == "chat"}
        for j, model in enumerate(route.models):
            yield from _known(f"{path}.models[{j}]", model, chat_models, "chat model")
        currencies = {m.price.currency for m in self.models if m.name in route.models}
        if len(currencies) > 1:  # the cost of an answer may add up tokens of several models
            yield f"{path}.models: prices in several currencies: {', '.join(sorted(currencies))}"
        yield from _known(f"{path}.policy", route.policy, {p.name for p in self.policies})
        if route.knowledge_base is not None:
            yield from _known(f"{path}.knowledge_base", route.knowledge_base, {k.name for k in self.knowledge_bases})
        if route.prompt is not None:
            prompts = {p.name for p in self.prompts} | {p.reference for p in self.prompts}
            yield from _known(f"{path}.prompt", route.prompt, prompts)

    def _split_problems(self) -> Iterator[str]:
        for i, split in enumerate(self.splits):
            route = self.route(split.route)
            if route is None:
                yield from _known(f"splits[{i}].route", split.route, {r.name for r in self.routes})
                continue
            for j, arm in enumerate(split.arms):
                yield from self._arm_problems(f"splits[{i}].arms[{j}]", arm, route)

    def _arm_problems(self, path: str, arm: Arm, route: Route) -> Iterator[str]:
        applied = arm.applied(route)
        of_route = set(self._route_problems(path, route))  # reported with the route
        yield from (problem for problem in self._route_problems(path, applied) if problem not in of_route)
        if self.seeing(route) and not self.seeing(applied):
            yield f"{path}.models: none accepts images, which the route '{route.name}' does"
        policies = self.policy(route.policy), self.policy(applied.policy)
        if self.seeing(route) and [each.images for each in policies if each is not None] == ["allow", "block"]:
            yield f"{path}.policy: '{applied.policy}' blocks images, which the route '{route.name}' accepts"
        if arm.passages is not None and route.task != "rag":
            yield f"{path}.passages: the route '{route.name}' searches no documents"
        for i, name in enumerate(arm.tenants):
            yield from _known(f"{path}.tenants[{i}]", name, {t.name for t in self.tenants})

    def route(self, name: str) -> Route | None:
        """The route of this name."""
        return next((r for r in self.routes if r.name == name), None)

    def model(self, name: str) -> Model | None:
        """The model of this name."""
        return next((m for m in self.models if m.name == name), None)

    def seeing(self, route: Route) -> tuple[str, ...]:
        """The models of the route that accept images, in its order."""
        found = map(self.model, route.models)
        return tuple(model.name for model in found if model is not None and model.vision)

    def prompt(self, reference: str) -> Prompt | None:
        """The prompt of NAME (newest version) or NAME@VERSION."""
        name, _, version = reference.partition("@")
        found = [p for p in self.prompts if p.name == name and version in ("", str(p.version))]
        return max(found, key=lambda p: p.version, default=None)

    def knowledge_base(self, name: str, tenant: str) -> KnowledgeBase | None:
        """The knowledge base of this name, if the tenant may use it."""
        found = next((k for k in self.knowledge_bases if k.name == name), None)
        return found if found and ("*" in found.tenants or tenant in found.tenants) else None

    def source(self, name: str) -> AnySource | None:
        """The source of documents of this name."""
        return next((s for s in self.sources if s.name == name), None)

    def gate(self, name: str) -> Gate | None:
        """The gate of this name."""
        return next((g for g in self.gates if g.name == name), None)

    def split(self, route: str) -> Split | None:
        """The split of the route of this name."""
        return next((s for s in self.splits if s.route == route), None)

    def policy(self, name: str) -> Policy | None:
        """The guardrail policy of this name."""
        return next((p for p in self.policies if p.name == name), None)


def _unique(path: str, names: list[str]) -> Iterator[str]:
    for name, count in Counter(names).items():
        if count > 1:
            yield f"{path}: '{name}' appears twice"


def _retired(path: str, names: Sequence[str], used: Iterable[str]) -> Iterator[str]:
    for i, name in enumerate(names):
        if name in used:
            yield f"retired.{path}[{i}]: '{name}' is in {path}; take it out of one of them"


def _known(path: str, name: str, known: Iterable[str], what: str = "name") -> Iterator[str]:
    if name not in known:
        yield f"{path}: unknown {what} '{name}'; known: {', '.join(sorted(known)) or 'none'}"
