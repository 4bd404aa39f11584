"""reproduce: dataset and adapter of a recorded run are made again, and compared with what it has.

FOLDER/recorded     what MLflow has of the run: parameters, results, dataset, adapter
FOLDER/rebuilt      collect, curate and train, with the same parameters, on the platform as it is now
FOLDER/retrained    train on the recorded dataset, where the rebuilt one is another: the record changes, by retention
                    and by feedback that comes later
"""

from __future__ import annotations

import asyncio
import shutil
from functools import partial
from pathlib import Path

from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines import environment
from genaifactory_pipelines.datasets import dataset
from genaifactory_pipelines.step import Attempt, Context, Execute, digest, require_own
from genaifactory_pipelines.steps import collect, curate, record, train
from genaifactory_pipelines.training import metrics
from genaifactory_pipelines.training.options import HUB, Options, base_folder
from genaifactory_pipelines.values import Values

RECORDED, _REBUILT, _RETRAINED = "recorded", "rebuilt", "retrained"
NEEDED = (collect.collect.name, curate.curate.name, train.train.name, record.INPUTS)
"""Folders of the run's artifacts that it needs."""
TOLERANCE = 0.001
"""Relative; see Comparison.same."""


class Row(Values):
    """One thing that was compared."""

    what: str
    recorded: str
    now: str
    same: bool


class Comparison(Values):
    """What came of it."""

    same: bool
    """The dataset is bit-equal, and so are the adapter's weights; on another processor, or with other packages or
    threads, instead every metric of the training is the same within the tolerance."""
    rows: tuple[Row, ...]
    environment: tuple[str, ...]
    """How the training's environment differs: "torch 2.13.0, 2.14.0"."""


class Given(Values):
    """What may replace what the run names."""

    base: str = ""
    """The base model, where it is at another place than it was."""
    golden: Path | None = None
    examples: Path | None = None
    """Files, where the run was recorded without them and they are at another place."""
    tolerance: float = TOLERANCE


async def reproduce(folder: Path, given: Given, context: Context, execute: Execute) -> Comparison:
    """folder: has the run's artifacts in `recorded`. Raises FactoryError.

    context: of any run. execute: runs the step train where its libraries are.
    """
    recorded = folder / RECORDED
    collected, curated, options = await asyncio.to_thread(_parameters, recorded, given)
    rebuilt = _within(context, folder / _REBUILT)
    rows = await _rebuilt(recorded, collected, curated, rebuilt)
    training = rebuilt
    if not rows[-1].same:
        examples = dataset.file_of(recorded / curate.curate.name / curate.DATASET, "train")
        if not await asyncio.to_thread(examples.exists):
            return Comparison(same=False, rows=tuple(rows), environment=())
        context.progress.line("reproduce: the dataset is another one; the recorded one is trained on")
        training = _within(context, folder / _RETRAINED)
        await asyncio.to_thread(_copy, recorded / curate.curate.name, training.run / curate.curate.name)
    await execute(train.train, options, training)
    return await asyncio.to_thread(_compared, recorded, training.run, rows, given.tolerance)


def _parameters(recorded: Path, given: Given) -> tuple[collect.Parameters, curate.Parameters, Options]:
    collected, curated = collect.collect.attempt(recorded), curate.curate.attempt(recorded)
    options = Options.model_validate(train.train.attempt(recorded).parameters)
    base = given.base or options.base
    if not base.startswith(HUB):
        base_folder(Path(base))
    served_as = options.served_as or options.base  # it is in the adapter's metadata
    files = {name: _file(recorded, curated, name, getattr(given, name)) for name in curated.files}
    return (
        collect.Parameters.model_validate(collected.parameters),
        curate.Parameters.model_validate({**curated.parameters, **files}),
        options.model_copy(update={"base": base, "served_as": served_as}),
    )


def _file(recorded: Path, curated: Attempt, name: str, given: Path | None) -> Path:
    """The file of a parameter, with the content that it had: as it was recorded, as it is given, or where it was."""
    former = Path(curated.parameters[name])
    kept = recorded / record.INPUTS / f"{curated.step}.{name}" / former.name
    for path in (kept, given or former):
        if path.is_file() and digest(path) == curated.files[name]:
            return path
    raise InvalidArgument(
        f"The run was made with a file of SHA-256 {curated.files[name]}, which was not recorded, and {given or former} "
        f"is not it. Give it with --{name}.",
        field=f"--{name}",
    )


def _within(context: Context, run: Path) -> Context:
    return Context(run, context.gateway, context.progress)


async def _rebuilt(
    recorded: Path, collected: collect.Parameters, curated: curate.Parameters, rebuilt: Context
) -> list[Row]:
    """The interactions and the dataset; what cannot be made of the record as it is now has the reason as its value."""
    before, version = await asyncio.to_thread(
        lambda: (collect.collect.of(recorded), curate.curate.of(recorded).version)
    )
    interactions = partial(Row, what="interactions", recorded=_shown(before))
    made = partial(Row, what="dataset", recorded=version)
    try:
        now = await collect.collect.run(collected, rebuilt)
    except InvalidArgument as error:
        return [interactions(now=error.message, same=False), made(now="none, without interactions", same=False)]
    rows = [interactions(now=_shown(now), same=now.digest == before.digest)]
    try:
        found = (await curate.curate.run(curated, rebuilt)).version
    except InvalidArgument as error:
        return [*rows, made(now=error.message, same=False)]
    return [*rows, made(now=found, same=found == version)]


def _shown(found: collect.Outputs) -> str:
    return f"{found.interactions:,} ({found.digest[:19]})"


def _copy(source: Path, target: Path) -> None:
    """The step's folder, once its dataset was found to be what its version says."""
    dataset.read(source / curate.DATASET)
    require_own(target)
    new = target.with_name(f".{target.name}.new")
    for path in (new, target):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(source, new)
    new.rename(target)


def _compared(recorded: Path, run: Path, rows: list[Row], tolerance: float) -> Comparison:
    before, now = train.train.of(recorded), train.train.of(run)
    adapter = Row(what="adapter", recorded=before.sha256, now=now.sha256, same=before.sha256 == now.sha256)
    difference, count = _largest_difference(recorded, run)
    within = Row(
        what="metrics of the training",
        recorded=f"{count:,} values",
        now=f"largest relative difference {difference:.2g}, allowed are {tolerance:g}",
        same=difference <= tolerance,
    )
    former, present = (environment.of_step(each / train.train.name) for each in (recorded, run))
    where = tuple(former.differences(present))
    same = rows[-1].same and (adapter.same or (bool(where) and within.same))
    return Comparison(same=same, rows=(*rows, adapter, within), environment=where)


def _largest_difference(recorded: Path, run: Path) -> tuple[float, int]:
    """Of a metric at a step, relative to the larger of the two values; infinite when one of the runs lacks it."""
    before, now = (
        {(point.name, point.step): point.value for point in metrics.read(each / train.train.name / metrics.FILE)}
        for each in (recorded, run)
    )
    if before.keys() != now.keys():
        return float("inf"), len(before)
    pairs = [(one, now[key]) for key, one in before.items()]
    return max((abs(one - two) / max(abs(one), abs(two), 1e-12) for one, two in pairs), default=0.0), len(pairs)


def threads(recorded: Path) -> str:
    """OMP_NUM_THREADS of the recorded training; another number of threads gives other weights. Blocks."""
    return environment.of_step(recorded / train.train.name).threads
