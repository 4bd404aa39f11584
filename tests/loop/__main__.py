"""`make pipeline`: the whole improvement loop on this machine, from questions on record to an adapter that answers."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from genaifactory_pipelines import retrain, summary
from genaifactory_pipelines.datasets import dataset
from genaifactory_pipelines.steps import curate, evaluate, gate, load, register
from tests.loop import held_out, live, month, stage
from tests.loop.stage import Stage

_SHOWN = 3
"""Questions that are asked before and after."""


async def _pipeline(folder: Path, documents: Sequence[Path], example: Path | None) -> int:
    began = time.monotonic()
    now = datetime.now(UTC)
    print("Starting the platform, with a small Llama on vLLM; then people ask it ...", flush=True)
    async with stage.running(folder, stage.last_month(now.date()), documents) as platform:
        asked = Counter(question.route for question in live.questions())
        print(f"On record: a generated month of {len(month.entries()):,} requests, and what was asked since over HTTP,")
        print(f"{' and '.join(f'{count:,} of the route {route}' for route, count in asked.items())};")
        print("with what people said of the answers.\n")
        await _show(platform)
        run = folder / "run"
        arguments = platform.arguments(run)
        print(f"\ngenaifactory {' '.join(arguments)}\n", flush=True)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "genaifactory_local", *arguments), env={**os.environ, **platform.environment()}
        )
        if (status := await process.wait()) != 0:
            return status
        adapter = load.load.of(run).name
        print(f"\nReleasing it: {stage.factory(folder)} names {adapter} before the base.\n")
        await platform.release(adapter)
        await _show(platform)
    _print_figures(run, time.monotonic() - began)
    if example is not None:
        page = summary.html(run, retrain.STEPS, linked=False)
        await asyncio.to_thread(example.write_text, page, encoding="utf-8")
    return 0


async def _show(platform: Stage) -> None:
    for question, right in held_out.shown(_SHOWN):
        answer, model = await platform.ask(question)
        print(f"{question}\n  {model}: {answer}\n  right: {right}")


def _print_figures(run: Path, seconds: float) -> None:
    metric = evaluate.evaluate.of(run).metrics["exact_match"]
    manifest, _ = dataset.read(run / curate.curate.name / curate.DATASET)
    print(f"\nDataset {manifest.version}, from {manifest.lineage()}")
    print(
        f"Exact match on {metric.items:,} questions in unseen words: {metric.production:.2f} before, "
        f"{metric.candidate:.2f} after; difference {metric.interval}"
    )
    for name, (items, before, after) in held_out.by_slice(run / evaluate.evaluate.name / evaluate.SCORES).items():
        print(f"  {name}, {items} questions: {before:.2f} before, {after:.2f} after")
    print(f"Gate: {'passed' if gate.gate.of(run).passed else 'not passed'}. The whole took {seconds:,.0f} s.")
    registered = register.register.of(run)
    print(f"MLflow: version {registered.version} of {registered.model}, run {registered.run_id}")
    print(f"Report of the run: {run / summary.FILE}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status is that of `genaifactory retrain`."""
    parser = argparse.ArgumentParser(prog="python -m tests.loop", description=__doc__)
    default = stage.ROOT / "build/pipeline" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    parser.add_argument("--folder", type=Path, default=default, help="For the platform's state and the run; new.")
    parser.add_argument("--documents", type=Path, action="append", default=[], help="Served beside the sample.")
    parser.add_argument("--example", type=Path, help="Write the run's report there too, without links.")
    given = parser.parse_args(arguments)
    if missing := [path for path in given.documents if not path.exists()]:
        parser.error(f"there are no documents at {missing[0]}: give DOCS a file or a folder that is there")
    folder = given.folder.resolve()
    folder.mkdir(parents=True)
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(_pipeline(folder, [path.resolve() for path in given.documents], given.example))
    return 130


if __name__ == "__main__":
    sys.exit(main())
