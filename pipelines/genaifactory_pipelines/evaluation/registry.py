"""All evaluators and suites: a new one is a module in `evaluators` or `suites`, and nothing else names it."""

from __future__ import annotations

from collections.abc import Sequence

from genaifactory_common.errors import InvalidArgument
from genaifactory_common.specs.gates import Gate
from genaifactory_pipelines import modules
from genaifactory_pipelines.evaluation import evaluators, suites
from genaifactory_pipelines.evaluation.protocol import GOLDEN, Evaluator, Item, Suite


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


def make_suites() -> dict[str, Suite]:
    """Each suite by its name."""
    found: list[Suite] = list(modules.made(suites))
    return {suite.name: suite for suite in found}


def needed(gate: Gate) -> tuple[str, ...]:
    """The suites on whose metrics a gate has rules, which require_known has accepted."""
    known = make_evaluators()
    return tuple(sorted({known[rule.metric].suite for rule in gate.rules} - {GOLDEN}))


def with_suites(golden: Sequence[Item], names: Sequence[str]) -> list[Item]:
    """The items of the golden set, and those of the suites. Raises InvalidArgument for a name that no suite has."""
    known = make_suites()
    for name in names:
        if name not in known:
            raise InvalidArgument(f"There is no suite '{name}'; there are: {', '.join(sorted(known))}.", field="suites")
    found = [*golden, *(item for name in dict.fromkeys(names) for item in known[name].items(golden))]
    if twice := {item.id for item in golden} & {item.id for item in found[len(golden) :]}:
        raise InvalidArgument(
            f"The id '{min(twice)}' is that of an item of a suite; give the golden item another.", field="golden"
        )
    return found
