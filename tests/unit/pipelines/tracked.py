"""Runs for tests of tracking: folders as the steps leave them, without a platform and without a training."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncGenerator, Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_common.specs.gates import Gate
from genaifactory_common.specs.routes import Prompt
from genaifactory_pipelines.curation import Options
from genaifactory_pipelines.datasets import dataset
from genaifactory_pipelines.evaluation import answered
from genaifactory_pipelines.evaluation.protocol import Answer, Candidate
from genaifactory_pipelines.evaluation.scoring import Metric
from genaifactory_pipelines.gateway import Gateway, Patience
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.step import Context, Step
from genaifactory_pipelines.steps import collect, curate, evaluate, gate, train
from genaifactory_pipelines.training import adapter, metrics
from genaifactory_pipelines.training.metrics import Point
from genaifactory_pipelines.training.options import Options as Training
from tests.unit.pipelines.examples import START, Masks, feedback, recorded

SECRET = "Nguyen Van A"
"""Part of a question on record; the policy masks its first word."""
PROMPT = "You are the help desk of Acme; never say so."
"""System prompt of production, which answers may not repeat."""
ITEMS = 30
RULES = {"name": "release", "rules": [{"metric": "exact_match", "at_least": 0.5}]}


class Platform(Masks):
    """The gateway as far as collect and curate call it."""

    def __init__(self, routes: Sequence[str] = ("docs",) * 40) -> None:
        super().__init__()
        self._routes = routes

    async def export(
        self, wanted: monitor_pb2.InteractionFilter
    ) -> AsyncGenerator[gateway_pb2.ExportInteractionsResponse, None]:
        """See Gateway."""
        for number, route in enumerate(self._routes):
            line = recorded(number, route=route, feedback=[feedback(rating="up")])
            line["input"][0]["content"] += f" {SECRET}"
            yield gateway_pb2.ExportInteractionsResponse(jsonl=json.dumps(line).encode() + b"\n")

    def patience(self) -> Patience:
        """See Gateway."""
        return Patience(0)


def context(run: Path, count: int = 40, written: StringIO | None = None, routes: Sequence[str] = ()) -> Context:
    """What steps of a run work with. count: of the interactions on record, unless their routes are given."""
    progress = Progress(Console(file=written or StringIO(), width=300))
    return Context(run, cast(Gateway, Platform(routes or ("docs",) * count)), progress)


async def made(run: Path, *, right: int = ITEMS, weights: bytes = b"weights", candidate: str = "trained") -> Path:
    """A run up to its gate. right: items of the golden set that the candidate answers; half of them pass the gate."""
    golden = await asyncio.to_thread(_golden, run.parent / "golden.jsonl")
    working = context(run)
    await collect.collect.run(window(), working)
    await curate.curate.run(curate.Parameters(options=Options(policy="default"), golden=golden), working)
    base = await asyncio.to_thread(_base, run.parent / "llama")
    await trains(weights).run(Training(base=str(base), served_as="tiny"), working)
    given = {"name": "e", "route": "chat", "golden": golden, "candidate": Candidate(adapter=candidate)}
    await evaluates(right).run(evaluate.Parameters(**given, hidden=(PROMPT,)), working)
    await gate.gate.run(gate.Parameters(gate=Gate.model_validate(RULES)), working)
    return run


async def evaluated(
    run: Path,
    candidate: Candidate,
    *,
    right: int = ITEMS,
    hidden: tuple[str, ...] = (),
    prompt: Prompt | None = None,
) -> Path:
    """A run that evaluates alone, up to its gate. right: as of `made`. hidden: system prompts. prompt: the
    candidate's."""
    golden = await asyncio.to_thread(_golden, run.parent / "golden.jsonl")
    sha256 = evaluate.digest_of(prompt)
    given = evaluate.Parameters(
        name="e", route="rag", golden=golden, candidate=candidate, hidden=hidden, prompt_sha256=sha256
    )
    await evaluates(right).run(given, context(run))
    await gate.gate.run(gate.Parameters(gate=Gate.model_validate(RULES)), context(run))
    return run


def window() -> collect.Parameters:
    """Of everything on record."""
    return collect.Parameters.model_validate({"start": START, "end": START.replace(year=START.year + 1)})


def trains(weights: bytes, loss: float = 3) -> Step[Training, train.Outputs]:
    """The step train, whose weights are given."""

    def write(options: Training, context: Context, folder: Path) -> train.Outputs:
        checkpoint = folder / "checkpoint"
        checkpoint.mkdir(exist_ok=True)
        (checkpoint / adapter.WEIGHTS).write_bytes(weights)
        (checkpoint / adapter.CONFIG).write_text(json.dumps({"target_modules": ["q_proj"]}))
        version = curate.curate.of(context.run).version
        _, splits = dataset.read(context.run / curate.curate.name / curate.DATASET)
        shown = "".join(f"<p>{example.questions}: {example.output}</p>" for example in splits.train)
        about = adapter.About(base_model=options.served_as, data_version=version, prompt_version="", metrics={})
        metrics.write(
            folder / metrics.FILE, [Point(step=n, name="sft/train_loss", value=loss / (n + 1)) for n in range(250)]
        )
        (folder / train.REPORT).write_text(shown)
        return train.Outputs(
            base_model=about.base_model,
            data_version=version,
            sha256=adapter.export(checkpoint, folder / train.ADAPTER, about),
            stages={},
        )

    async def work(options: Training, context: Context, folder: Path) -> train.Outputs:
        return await asyncio.to_thread(write, options, context, folder)

    return Step("train", Training, train.Outputs, work, needs=(curate.curate,))


def evaluates(right: int) -> Step[evaluate.Parameters, evaluate.Outputs]:
    """The step evaluate, whose scores are given."""

    async def work(parameters: evaluate.Parameters, context: Context, folder: Path) -> evaluate.Outputs:
        lines = [
            {
                "item": f"g-{n}",
                "slices": {"language": "en", "topic": ""},
                "candidate": {"exact_match": float(n < right), "seconds": 2.5},
                "production": {"exact_match": float(n % 4 == 0), "seconds": 1.5},
            }
            for n in range(ITEMS)
        ]
        await asyncio.to_thread(_lines, folder / evaluate.SCORES, lines)
        shown = "".join(f"<p>golden item {n}: golden answer {n}</p>" for n in range(ITEMS))
        await asyncio.to_thread((folder / evaluate.REPORT).write_text, shown)
        for who, seconds in (("candidate", 2.5), ("production", 1.5)):
            said = [{"item": f"g-{n}", **dataclasses.asdict(answer(n, seconds))} for n in range(ITEMS)]
            await asyncio.to_thread(_lines, folder / answered.file_of(who), said)
        metric = Metric(better="higher", items=ITEMS, candidate=right / ITEMS, production=0.25)
        return evaluate.Outputs(items=ITEMS, metrics={"exact_match": metric})

    return Step("evaluate", evaluate.Parameters, evaluate.Outputs, work)


def answer(number: int, seconds: float) -> Answer:
    """To an item: every tenth is blocked, and every tenth fails."""
    if number % 10 == 8:
        return Answer("", blocked=True, seconds=seconds)
    if number % 10 == 9:
        return Answer("", error="UPSTREAM_FAILED", seconds=seconds)
    passages = (f"golden answer {number}, as the guide has it",)
    return Answer(f"golden answer {number}", passages=passages, first_token_seconds=0.5, seconds=seconds)


def _base(folder: Path) -> Path:
    """What looks like a base model."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    return folder


def _golden(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"id": f"g-{n}", "input": f"golden item {n}", "output": f"golden answer {n}"} for n in range(ITEMS)]
    return _lines(path, lines)


def _lines(path: Path, lines: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def artifacts(folder: Path) -> dict[str, bytes]:
    """Content of all files below a folder, by their paths."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
