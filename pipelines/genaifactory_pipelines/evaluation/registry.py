"""All evaluators: a new one is a module in `evaluators`, and nothing else names it."""

from __future__ import annotations

from genaifactory_common.errors import InvalidArgument
from genaifactory_common.specs.gates import Gate
from genaifactory_pipelines import modules
from genaifactory_pipelines.evaluation import evaluators
from genaifactory_pipelines.evaluation.protocol import Evaluator


def make_evaluators() -> dict[str, Evaluator]:
    """Each evaluator by its name."""
    found: list[Evaluator] = list(modules.made(evaluators))
    return {evaluator.name: evaluator for evaluator in found}


def require_known(gate: Gate) -> None:
    """Raises InvalidArgument for a rule on a metric that no evaluator measures."""
    known = make_evaluators()
    for index, rule in enumerate(gate.rules):
        if rule.metric not in known:
            raise InvalidArgument(
                f"The gate '{gate.name}' has a rule on '{rule.metric}', which no evaluator measures; there are: "
                f"{', '.join(sorted(known))}.",
                field=f"gates[{gate.name}].rules[{index}].metric",
            )
