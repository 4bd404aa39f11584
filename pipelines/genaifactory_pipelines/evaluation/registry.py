"""All evaluators: a new one is a module in `evaluators`, and nothing else names it."""

from __future__ import annotations

import importlib
import pkgutil

from genaifactory_pipelines.evaluation import evaluators
from genaifactory_pipelines.evaluation.protocol import Evaluator


def make_evaluators() -> dict[str, Evaluator]:
    """Each evaluator by its name."""
    found: dict[str, Evaluator] = {}
    for module in pkgutil.iter_modules(evaluators.__path__):
        evaluator: Evaluator = importlib.import_module(f"{evaluators.__name__}.{module.name}").make()
        found[evaluator.name] = evaluator
    return found
