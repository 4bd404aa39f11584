"""tidy: the folders of old runs are removed from the volume, but for those whose adapter factory.yaml names."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import Field

from genaifactory_common import specs
from genaifactory_common.errors import InvalidArgument, Unimplemented
from genaifactory_pipelines.step import RESULT, Context
from genaifactory_pipelines.steps import load
from genaifactory_pipelines.values import Values
from genaifactory_pipelines.workflows.protocol import Surroundings, Task, Workflow

LEAST_DAYS = 30
"""Longer than a run takes that failed, was retried on the last day on which Argo has it, and waits for an approval."""
_REMOVED = ".removed-"
_LOADED = f"{load.load.name}/{RESULT}"


class Parameters(Values):
    """Which runs are old."""

    keep_days: int = Field(
        default=90,
        ge=LEAST_DAYS,
        le=3650,
        description="Folders of runs are removed in which nothing was written for so many days, and whose adapter "
        "factory.yaml has not named for as long; at least 30.",
    )


class Outputs(Values):
    """What was done."""

    removed: int
    """Folders."""
    kept: int
    """Old ones, which factory.yaml names, or of which it is not known what they have loaded."""


async def _tidy(given: Parameters, around: Surroundings, context: Context) -> Outputs:
    """Done again, it removes what is left. A run that factory.yaml names counts as written now: what replaced its
    adapter may be rolled back tomorrow. Raises FactoryError, and then removes nothing more."""
    until = around.created - timedelta(days=given.keep_days)
    factory = await asyncio.to_thread(around.factory)
    old, recent = await asyncio.to_thread(_by_age, around.run.parent, until)
    loaded = await asyncio.to_thread(_adapters, [*old, *recent])
    _require_known(recent, loaded)
    named = {folder for folder, adapter in loaded.items() if _named(factory, folder, adapter or "")}
    await asyncio.to_thread(_mark, named)
    wanted = {loaded[folder] for folder in recent}
    removed = kept = 0
    for folder in old:
        adapter = loaded[folder]
        if folder in named or adapter is None:
            why = "factory.yaml names its adapter" if folder in named else f"its {_LOADED} cannot be read"
            context.progress.line(f"{folder.name} stays: {why}")
            kept += 1
            continue
        if adapter and adapter not in wanted:
            await _unload(context, adapter)
        await asyncio.to_thread(_remove, folder)
        context.progress.line(f"{folder.name} is removed")
        removed += 1
    return Outputs(removed=removed, kept=kept)


async def _unload(context: Context, adapter: str) -> None:
    """A model server that is started anew would not find its files. Raises FactoryError."""
    try:
        await context.gateway.unload_adapter(adapter)
    except Unimplemented:  # there is no model server
        return


def _by_age(runs: Path, until: datetime) -> tuple[list[Path], list[Path]]:
    """The folders of runs in which nothing was written since `until`, and the others. Removes what a killed attempt has
    left of those that it was removing."""
    old: list[Path] = []
    recent: list[Path] = []
    for folder in sorted(runs.iterdir()) if runs.is_dir() else ():
        if folder.is_symlink() or not folder.is_dir():
            continue
        if folder.name.startswith(_REMOVED):
            shutil.rmtree(folder)
        else:
            (old if _written(folder) < until else recent).append(folder)
    return old, recent


def _written(folder: Path) -> datetime:
    """When something in a folder was changed last; the end of time while it is worked on."""
    times = [folder.stat().st_mtime]
    try:
        for parent, folders, names in os.walk(folder):
            times += [(Path(parent) / name).lstat().st_mtime for name in (*folders, *names)]
    except FileNotFoundError:
        return datetime.max.replace(tzinfo=UTC)
    return datetime.fromtimestamp(max(times), UTC)


def _adapters(folders: Iterable[Path]) -> dict[Path, str | None]:
    return {folder: _adapter(folder) for folder in folders}


def _adapter(folder: Path) -> str | None:
    """The name under which a run has loaded its adapter; "" where it has loaded none, None where that is unknown."""
    try:
        (folder / _LOADED).stat()
        return load.load.of(folder).name
    except FileNotFoundError:
        return ""
    except (OSError, InvalidArgument):
        return None


def _require_known(recent: Iterable[Path], loaded: Mapping[Path, str | None]) -> None:
    """Raises InvalidArgument: an old run may have loaded the same adapter."""
    unknown = [folder.name for folder in recent if loaded[folder] is None]
    if unknown:
        raise InvalidArgument(
            f"Run {unknown[0]} has a {_LOADED} that cannot be read, so that it is not known which adapter it has "
            "loaded, and nothing is removed. Restore the file, or remove the run's folder.",
            field="runs",
        )


def _named(factory: specs.Factory, folder: Path, adapter: str) -> bool:
    """Whether factory.yaml names the adapter, or a path with the folder's name: at the model server the volume, or a
    part of it, may be mounted anywhere."""
    text = json.dumps(factory.model_dump(mode="json"), ensure_ascii=False)
    path = f"/{folder.name}"
    return (bool(adapter) and load.named(factory, adapter)) or f"{path}/" in text or f'{path}"' in text


def _mark(named: Iterable[Path]) -> None:
    """From now on they are as old as if they had been written now. With a time of its own, only the owner of a folder
    may do so."""
    for folder in named:
        os.utime(folder)


def _remove(folder: Path) -> None:
    """Under another name first: to remove a part makes the rest look as if it had been written now."""
    renamed = folder.with_name(f"{_REMOVED}{folder.name}")
    folder.rename(renamed)
    shutil.rmtree(renamed)


tidy = Workflow(
    name="tidy",
    title="Remove old runs",
    about="Removes the folders of runs in which nothing was written for keep_days, and unloads the adapters that they "
    "have loaded. A run stays while factory.yaml names its adapter, and for as long after. Inputs are never removed.",
    parameters=Parameters,
    tasks=(Task("tidy", "The folders of old runs are removed.", _tidy, outputs=("removed", "kept")),),
    alone_by=(),
    deadline_seconds=3 * 3600,
    schedule="41 4 * * *",
)
