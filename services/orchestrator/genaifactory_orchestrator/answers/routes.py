"""Plans: a route, or an arm of its split, with its models, prompt and policy, resolved once for each factory.yaml."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from genaifactory.types.v1 import types_pb2
from genaifactory_common import images, specs
from genaifactory_common.engine_specs import Spec
from genaifactory_common.errors import InvalidArgument, NotFound, Reason
from genaifactory_orchestrator.answers import splits
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
    adapter: str = ""
    """Answers in place of the model's own; only in an evaluation."""
    index_version: str = ""
    """To search; empty: the active one."""
    split: str = ""
    """Of the route; empty without one, and in an evaluation."""
    arm: str = ""
    """Of the split."""
    arm_chosen: bool = False
    """Whether a tester chose the arm."""

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


@dataclass(frozen=True)
class _Planned:
    """A route that is resolved."""

    plan: Plan
    """Of the route as it stands."""
    split: specs.Split | None
    arms: Mapping[str, Plan]
    """By name, with the stable one; empty without a split."""


class Plans:
    """The plans of the factory.yaml in force."""

    def __init__(self, source: specs.Source) -> None:
        self._source = source
        self._routes = source.derive(lambda factory: {route.name: _planned(factory, route) for route in factory.routes})

    def resolve(
        self,
        name: str,
        tenant: str,
        unit: splits.Unit,
        *,
        arm: str = "",
        evaluation: types_pb2.Evaluation | None = None,
    ) -> Plan:
        """The plan of a route: of the arm that its split assigns to the unit, of `arm`, or what an evaluation wants.

        Raises NotFound for an unknown route, or one whose documents the tenant may not use; InvalidArgument for an
        unknown arm, and for what the evaluation names.
        """
        planned = self._routes.current.get(name)
        if planned is None:
            raise _unknown(name)
        base = planned.plan.route.knowledge_base
        if base is not None and self._source.current.knowledge_base(base, tenant) is None:
            raise _unknown(name)
        if evaluation is not None:
            return _evaluated(self._source.current, planned.plan, evaluation)
        if arm:
            return _chosen(planned, arm)
        if planned.split is None:
            return planned.plan
        return planned.arms[splits.assigned(planned.split, tenant, unit)]


def _planned(factory: specs.Factory, route: specs.Route) -> _Planned:
    plan, split = _made(factory, route), factory.split(route.name)
    if split is None:
        return _Planned(plan, None, {})
    arms = {specs.STABLE: _of_arm(plan, split, specs.STABLE)}
    arms |= {arm.name: _of_arm(_made(factory, arm.applied(route)), split, arm.name) for arm in split.arms}
    return _Planned(plan, split, arms)


def _of_arm(made: Plan, split: specs.Split, name: str) -> Plan:
    # Each arm has a cache of its own, also the stable one, and one that changes nothing (A/A): answers that the route
    # had cached before the split began would make an arm look faster than it is.
    digest = hashlib.sha256(f"{made.digest}\n{split.name}\n{name}".encode()).hexdigest()
    return replace(made, digest=digest, split=split.name, arm=name)


def _chosen(planned: _Planned, arm: str) -> Plan:
    plan = planned.arms.get(arm)
    if plan is None:
        route = planned.plan.route.name
        has = f"its arms are: {', '.join(planned.arms)}" if planned.arms else "it has no split"
        raise InvalidArgument(f"The route '{route}' has no arm '{arm}'; {has}.", field="arm")
    return replace(plan, arm_chosen=True)


def _made(factory: specs.Factory, route: specs.Route) -> Plan:
    policy = factory.policy(route.policy)
    if policy is None:
        raise InvalidArgument(f"The policy '{route.policy}' of the route '{route.name}' is missing in factory.yaml.")
    prompt = factory.prompt(route.prompt) if route.prompt else None
    parts: list[Spec] = [route, policy, *filter(None, (prompt, *map(factory.model, route.models)))]
    digest = hashlib.sha256("\n".join(part.model_dump_json() for part in parts).encode()).hexdigest()
    return Plan(route, policy, Template(prompt) if prompt else None, factory.seeing(route), digest)


def _evaluated(factory: specs.Factory, plan: Plan, wanted: types_pb2.Evaluation) -> Plan:
    """Without fallbacks: another model's answers would be taken for the evaluated one's."""
    if wanted.index_version and plan.route.knowledge_base is None:
        raise InvalidArgument(
            f"The model '{plan.route.name}' searches no documents; leave 'evaluation.index_version' out.",
            field="evaluation.index_version",
        )
    changes: dict[str, object] = {"models": (_evaluated_model(factory, plan.route, wanted),)}
    if wanted.prompt:
        changes["prompt"] = _evaluated_prompt(factory, plan, wanted.prompt)
    made = _made(factory, plan.route.model_copy(update=changes))
    return replace(made, adapter=wanted.adapter, index_version=wanted.index_version)


def _evaluated_model(factory: specs.Factory, route: specs.Route, wanted: types_pb2.Evaluation) -> str:
    chat = [model for model in factory.models if model.kind == "chat"]
    at_model_server = {model.name for model in chat if model.backend.type == "modelserver"}
    if wanted.model:
        if wanted.model not in {model.name for model in chat}:
            raise InvalidArgument(f"There is no chat model '{wanted.model}' in factory.yaml.", field="evaluation.model")
        if wanted.adapter and wanted.model not in at_model_server:
            raise InvalidArgument(
                f"The model '{wanted.model}' is not at the model server, which alone has adapters.",
                field="evaluation.adapter",
            )
        return wanted.model
    if not wanted.adapter:
        return route.models[0]
    found = next((name for name in route.models if name in at_model_server), None)
    if found is None:
        raise InvalidArgument(
            f"No model of the route '{route.name}' is at the model server, which alone has adapters; name one in "
            "'evaluation.model'.",
            field="evaluation.adapter",
        )
    return found


def _evaluated_prompt(factory: specs.Factory, plan: Plan, reference: str) -> str:
    """Only another version of the route's own prompt: one of another route may not be for the caller."""
    name = plan.prompt.name if plan.prompt is not None else None
    versions = sorted(prompt.version for prompt in factory.prompts if prompt.name == name)
    if reference not in {f"{name}@{version}" for version in versions}:
        known = ", ".join(f"{name}@{version}" for version in versions) or "none"
        raise InvalidArgument(
            f"'evaluation.prompt' must be a version of the prompt of the route '{plan.route.name}': {known}.",
            field="evaluation.prompt",
        )
    return reference


def _unknown(name: str) -> NotFound:
    return NotFound(
        f"The model '{name}' does not exist or you do not have access to it.",
        field="model",
        reason=Reason.MODEL_NOT_FOUND,
    )
