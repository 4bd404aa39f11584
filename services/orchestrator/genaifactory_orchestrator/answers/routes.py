"""Plans: a route with its models, prompt and policy, resolved once for each factory.yaml."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from genaifactory.types.v1 import types_pb2
from genaifactory_common import images, specs
from genaifactory_common.engine_specs import Spec
from genaifactory_common.errors import InvalidArgument, NotFound, Reason
from genaifactory_orchestrator.answers.prompts import Template


@dataclass(frozen=True)
class Plan:
    """A resolved route."""

    route: specs.Route
    policy: specs.Policy
    template: Template | None
    seeing: tuple[str, ...]
    """The route's models that accept images, in its order."""
    digest: str
    """Digest of the content of route, models, prompt and policy."""

    @property
    def prompt_version(self) -> str:
        """ "rag@3"; empty without a prompt."""
        return self.template.version if self.template else ""

    @property
    def prompt(self) -> specs.Prompt | None:
        """The prompt, if the route has one."""
        return self.template.prompt if self.template else None

    def chain(self, messages: Sequence[types_pb2.Message]) -> tuple[str, ...]:
        """The models that may answer, in order; with images, those that accept them. Raises InvalidArgument if none."""
        field = images.first(messages)
        if field is None:
            return self.route.models
        if not self.seeing:
            raise InvalidArgument(f"No model of the route '{self.route.name}' accepts images.", field=field)
        return self.seeing


class Plans:
    """The plans of the factory.yaml in force."""

    def __init__(self, source: specs.Source) -> None:
        self._source = source
        self._plans = source.derive(lambda factory: {route.name: _made(factory, route) for route in factory.routes})

    def resolve(self, name: str, tenant: str) -> Plan:
        """The plan of a route. Raises NotFound for an unknown route, or one whose documents the tenant may not use."""
        plan = self._plans.current.get(name)
        if plan is None:
            raise _unknown(name)
        base = plan.route.knowledge_base
        if base is not None and self._source.current.knowledge_base(base, tenant) is None:
            raise _unknown(name)
        return plan


def _made(factory: specs.Factory, route: specs.Route) -> Plan:
    policy = factory.policy(route.policy)
    if policy is None:
        raise InvalidArgument(f"The policy '{route.policy}' of the route '{route.name}' is missing in factory.yaml.")
    prompt = factory.prompt(route.prompt) if route.prompt else None
    parts: list[Spec] = [route, policy, *filter(None, (prompt, *map(factory.model, route.models)))]
    digest = hashlib.sha256("\n".join(part.model_dump_json() for part in parts).encode()).hexdigest()
    return Plan(route, policy, Template(prompt) if prompt else None, factory.seeing(route), digest)


def _unknown(name: str) -> NotFound:
    return NotFound(
        f"The model '{name}' does not exist or you do not have access to it.",
        field="model",
        reason=Reason.MODEL_NOT_FOUND,
    )
