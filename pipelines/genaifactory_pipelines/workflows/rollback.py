"""rollback: the index version that served before serves again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

from pydantic import Field

from genaifactory_common import files
from genaifactory_pipelines.indexes import findings
from genaifactory_pipelines.step import Context
from genaifactory_pipelines.values import Values
from genaifactory_pipelines.workflows.protocol import Surroundings, Task, Workflow

_FILE = "rollback.json"


class Parameters(Values):
    """What goes back."""

    what: Literal["index"] = Field(default="index", description="What goes back to the version before.")
    knowledge_base: str = Field(default="documents", description="The knowledge base whose index goes back.")


class Outputs(Values):
    """What serves now."""

    active: str
    before: str
    """What served until then, which is kept."""


async def _rollback(given: Parameters, around: Surroundings, context: Context) -> Outputs:
    """What is to serve is stored before the swap: done again, it would swap back. Raises FactoryError."""
    path = around.run / _FILE
    base = given.knowledge_base
    indexes = await context.gateway.indexes(base)
    active = findings.active(indexes).version
    if await asyncio.to_thread(path.exists):
        wanted = Outputs.model_validate_json(await asyncio.to_thread(path.read_bytes))
    else:
        previous = findings.previous(indexes, base, field="knowledge_base")
        wanted = Outputs(active=previous.version, before=active)
        await asyncio.to_thread(_store, path, wanted)
    if active != wanted.active:
        await context.gateway.swap_index(base, wanted.active)
    context.progress.line(f"{wanted.active} serves; {wanted.before} is kept")
    return wanted


def _store(path: Path, wanted: Outputs) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write(path, wanted.model_dump_json().encode() + b"\n")


rollback = Workflow(
    name="rollback",
    title="Roll back",
    about="Lets the index version serve that served before. Both hold the same documents, since everything is written "
    "into both. Another run returns to the newer one.",
    parameters=Parameters,
    tasks=(Task("rollback", "The version before serves again.", _rollback, outputs=("active", "before")),),
    alone_by=("knowledge_base",),
    deadline_seconds=3600,
)
