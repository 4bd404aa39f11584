"""`make pipeline`: the whole improvement loop on this machine, from a generated month to an adapter that answers."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from genaifactory_pipelines import retrain, summary
from genaifactory_pipelines.steps import curate, evaluate, gate, load, register
from tests.loop import month, stage
from tests.loop.stage import Stage

_SHOWN = 3
"""Questions that are asked before and after."""


async def _pipeline(folder: Path, example: Path | None) -> int:
    began = time.monotonic()
    now = datetime.now(UTC)
    print("Starting the platform, with a small Llama on vLLM ...", flush=True)
    async with stage.running(folder, stage.last_month(now.date())) as platform:
        print(f"A month is on record: {len(month.entries()):,} requests, with what people said of the answers.\n")
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
    for question, right in month.questions(_SHOWN):
        answer, model = await platform.ask(question)
        print(f"{question}\n  {model}: {answer}\n  right: {right}")


def _print_figures(run: Path, seconds: float) -> None:
    metric = evaluate.evaluate.of(run).metrics["exact_match"]
    print(f"\nDataset {curate.curate.of(run).version}")
    print(
        f"Exact match on {metric.items:,} questions in unseen words: {metric.production:.2f} before, "
        f"{metric.candidate:.2f} after; difference {metric.interval}"
    )
    print(f"Gate: {'passed' if gate.gate.of(run).passed else 'not passed'}. The whole took {seconds:,.0f} s.")
    registered = register.register.of(run)
    print(f"MLflow: version {registered.version} of {registered.model}, run {registered.run_id}")
    print(f"Report of the run: {run / summary.FILE}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status is that of `genaifactory retrain`."""
    parser = argparse.ArgumentParser(prog="python -m tests.loop", description=__doc__)
    default = stage.ROOT / "build/pipeline" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    parser.add_argument("--folder", type=Path, default=default, help="For the platform's state and the run; new.")
    parser.add_argument("--example", type=Path, help="Write the run's report there too, without links.")
    given = parser.parse_args(arguments)
    folder = given.folder.resolve()
    folder.mkdir(parents=True)
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(_pipeline(folder, given.example))
    return 130


if __name__ == "__main__":
    sys.exit(main())
