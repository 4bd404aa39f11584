"""The workflows that there are."""

from __future__ import annotations

from typing import Any

from genaifactory_pipelines.workflows.drift_check import drift_check
from genaifactory_pipelines.workflows.evaluate import evaluate
from genaifactory_pipelines.workflows.protocol import Workflow
from genaifactory_pipelines.workflows.reindex import reindex
from genaifactory_pipelines.workflows.retrain import retrain
from genaifactory_pipelines.workflows.rollback import rollback
from genaifactory_pipelines.workflows.tidy import tidy

WORKFLOWS: dict[str, Workflow[Any]] = {
    each.name: each for each in (evaluate, drift_check, retrain, reindex, rollback, tidy)
}
"""By their names."""
