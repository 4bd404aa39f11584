"""curate: a dataset that is safe to train on, out of collected interactions and given examples."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

from genaifactory_common import files
from genaifactory_common.errors import InvalidArgument
from genaifactory_common.specs import Factory
from genaifactory_pipelines import curation
from genaifactory_pipelines.curation import Curated
from genaifactory_pipelines.datasets import contract, dataset
from genaifactory_pipelines.datasets.contract import Example
from genaifactory_pipelines.reports import Report, bars
from genaifactory_pipelines.step import Context, Step
from genaifactory_pipelines.steps import collect
from genaifactory_pipelines.values import INPUT, Values

DATASET = "dataset"
REPORT = "report.html"
_EXAMPLES_SHOWN = 10


class Parameters(Values):
    """What goes into the dataset, and how."""

    options: curation.Options
    examples: Annotated[Path | None, INPUT] = None
    """A file of examples that are added to the recorded ones."""
    golden: Annotated[Path | None, INPUT] = None
    """The golden set, which is kept out."""


class Outputs(Values):
    """The dataset."""

    version: str
    train: int
    validation: int
    test: int
    preferences: int
    """Of the train split."""


async def _curate(parameters: Parameters, context: Context, folder: Path) -> Outputs:
    """Writes the dataset, with its card, and the report. Raises FactoryError."""
    recorded, left_out = await asyncio.to_thread(_recorded, context.run, parameters.options)
    given = await _read(parameters.examples)
    golden = await _read(parameters.golden)
    context.progress.line(f"curate: {len(recorded):,} recorded and {len(given):,} given examples")
    curated = await curation.curate(recorded, given, golden, context.gateway, parameters.options, left_out)
    manifest = await asyncio.to_thread(
        dataset.write,
        folder / DATASET,
        curated.splits,
        left_out=dict(sorted(curated.left_out.items())),
        made_from={
            "interactions": f"{len(recorded):,} of the collected ones",
            "given examples": f"{len(given):,}",
            "golden items that are kept out": f"{len(golden):,}",
            "policy": parameters.options.policy,
        },
    )
    await asyncio.to_thread(files.write, folder / REPORT, _report(manifest, curated).encode(), mode=0o644)
    counts = manifest.examples
    context.progress.line(f"curate: dataset {manifest.version[:19]}, {counts['train']:,} examples to train on")
    return Outputs(version=manifest.version, preferences=manifest.preferences, **counts)


def policy(factory: Factory, name: str) -> str:
    """The policy of factory.yaml that masks personal data; `name` empty: the only one. Raises InvalidArgument."""
    names = [each.name for each in factory.policies]
    if name in names or (not name and len(names) == 1):
        return name or names[0]
    problem = f"There is no policy '{name}'" if name else "Which policy masks personal data? Give one"
    raise InvalidArgument(f"{problem}; there are: {', '.join(names)}.", field="policy")


def _recorded(run: Path, options: curation.Options) -> tuple[list[Example], dict[str, int]]:
    path = run / collect.collect.name / collect.FILE
    return curation.candidates(curation.interactions(path), options.unrated)


async def _read(path: Path | None) -> list[Example]:
    return [] if path is None else await asyncio.to_thread(contract.read, path)


def _report(manifest: dataset.Manifest, curated: Curated) -> str:
    report = Report("Dataset", manifest.version)
    report.text(
        f"{sum(manifest.examples.values()):,} examples, {manifest.preferences:,} of them preferences, "
        f"on {manifest.topics:,} topics."
    )
    report.text(f"They come from {manifest.lineage()}")
    for heading, counts in manifest.tables().items():
        report.heading(heading)
        report.drawing(bars(counts))
    report.heading("Examples to train on")
    train = curated.splits.train[:_EXAMPLES_SHOWN]
    report.table(
        ("id", "question", "output", "why"), [(each.id, each.questions, each.output, each.label) for each in train]
    )
    report.heading("Near-duplicates that were left out")
    report.table(
        ("left out", "kept for it", "similarity"),
        [
            (left_out.questions, kept.questions, f"{similarity:.2f}")
            for left_out, kept, similarity in curated.duplicates[:_EXAMPLES_SHOWN]
        ],
    )
    report.heading("Examples that held a golden item")
    report.table(("example", "golden item"), [(each.id, item) for each, item in curated.contaminated[:_EXAMPLES_SHOWN]])
    return report.html()


curate = Step("curate", Parameters, Outputs, _curate, needs=(collect.collect,))
