"""Every task by its name in factory.yaml."""

from __future__ import annotations

from genaifactory_common.telemetry import Telemetry
from genaifactory_orchestrator.answers.retrieval import Retrieval
from genaifactory_orchestrator.answers.tasks.chat import Chat
from genaifactory_orchestrator.answers.tasks.protocol import Tasks
from genaifactory_orchestrator.answers.tasks.rag import Rag


def make_tasks(retriever: Retrieval, telemetry: Telemetry) -> Tasks:
    """One object for each task."""
    return {"chat": Chat(), "rag": Rag(retriever, telemetry)}
