"""evaluate: a candidate and production answer the golden set through the platform, and evaluators score both."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, StringConstraints, model_serializer

from genaifactory_common import conversation, files, specs
from genaifactory_common.concurrency import task_group
from genaifactory_common.specs.routes import Prompt
from genaifactory_pipelines.evaluation import answered, golden, orders, page, tools
from genaifactory_pipelines.evaluation.asking import ask
from genaifactory_pipelines.evaluation.judging import Judge
from genaifactory_pipelines.evaluation.protocol import PRODUCTION, Answer, Candidate, Evidence, Item, Setup
from genaifactory_pipelines.evaluation.registry import make_evaluators, with_suites
from genaifactory_pipelines.evaluation.scoring import Metric, Scored, Scores, metrics, score
from genaifactory_pipelines.evaluation.statistics import kappa
from genaifactory_pipelines.step import Context, Step
from genaifactory_pipelines.values import INPUT, PRIVATE, Values

SCORES = "scores.jsonl"
REPORT = "report.html"
VERDICTS = "judge.jsonl"


class Parameters(Values):
    """What is evaluated, and by what."""

    name: Annotated[str, StringConstraints(pattern=conversation.CONVERSATION_ID)]
    """Of the evaluation, in records."""
    route: str
    golden: Annotated[Path, INPUT]
    candidate: Candidate = PRODUCTION
    """With an empty one, production alone is evaluated."""
    suites: tuple[str, ...] = ()
    """More questions that both are asked, for the metrics on them: "safety"."""
    hidden: Annotated[tuple[str, ...], PRIVATE] = ()
    """Templates of system prompts, which no answer may repeat."""
    judge: str = ""
    """A route whose model compares the answers of both, and claims with passages; empty: none."""
    policy: str = ""
    """A guardrail policy by which answers are checked for private data, beside the route's own; empty: none."""
    embedding_model: str = ""
    """Of the platform, by which claims are compared with passages beside their words; empty: by words alone."""
    at_once: int = Field(default=4, ge=1, le=64)
    """Questions at a time, of each of the two."""
    prompt_sha256: str = ""
    """The digest of the candidate's prompt, with its refusals, by `digest_of`; empty: the candidate has none."""

    @model_serializer(mode="wrap")
    def _without_default(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """An evaluation without a prompt that was begun before there was the field goes on."""
        found: dict[str, Any] = serialize(self)
        if not self.prompt_sha256:
            found.pop("prompt_sha256", None)
        return found


class Outputs(Values):
    """What was measured."""

    items: int
    """Of the golden set."""
    metrics: dict[str, Metric]
    judge_kappa: float | None = None
    """Cohen's kappa of the judge and people; None without a judge, or without rejected answers to agree on."""


def setup(factory: specs.Factory, route: str, *, compared: bool, judge: str = "", hidden: Sequence[str] = ()) -> Setup:
    """What decides which items can be judged, before anything is asked. compared: whether there is a candidate."""
    found = factory.route(route)
    searched = found is not None and found.task == "rag"
    return Setup(compared=compared, judge=bool(judge), searched=searched, hidden=bool(hidden))


def digest_of(prompt: Prompt | None) -> str:
    """SHA-256, hex, of everything that a prompt is; empty for none."""
    if prompt is None:
        return ""
    return hashlib.sha256(json.dumps(prompt.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


async def _evaluate(parameters: Parameters, context: Context, folder: Path) -> Outputs:
    """Writes the answers, the scores of each item, and the report. Raises FactoryError."""
    own = await asyncio.to_thread(golden.read, parameters.golden)
    items = with_suites(own, parameters.suites)
    answers = await _answers(parameters, context, folder, items)
    evaluators = make_evaluators()
    evidence = await asyncio.to_thread(_evidence, parameters, context, folder, answers)
    with context.progress.counting("evaluate: scores") as report:
        candidate, production = [
            None
            if found is None
            else Scored(
                found,
                await score(
                    evaluators,
                    items,
                    found,
                    replace(evidence, answers=found, others=others),
                    at_once=parameters.at_once,
                    report=report,
                ),
            )
            for found, others in zip(answers, reversed(answers), strict=True)
        ]
    assert candidate is not None, "who is evaluated always answers"
    measured = metrics(evaluators, candidate.scores, production.scores if production is not None else None)
    await asyncio.to_thread(_write, folder / SCORES, items, candidate, production)
    agreed = None
    if evidence.compare is not None:
        people, judge = await orders.labels(evidence.compare, own)
        agreed = kappa(people, judge) if people else None
    html = page.html(parameters.route, str(parameters.candidate), items, measured, candidate, production, agreed)
    await asyncio.to_thread(files.write, folder / REPORT, html.encode(), mode=0o644)
    return Outputs(items=len(own), metrics=measured, judge_kappa=agreed)


async def _answers(
    parameters: Parameters, context: Context, folder: Path, items: Sequence[Item]
) -> tuple[dict[str, Answer], dict[str, Answer] | None]:
    """Of the candidate and of production, asked at the same time so that both meet the same load; of production alone,
    and None, where there is no candidate."""
    asked = {"candidate": parameters.candidate, "production": PRODUCTION}
    if parameters.candidate == PRODUCTION:
        del asked["candidate"]
    done: dict[str, int] = {}

    async def ask_as(who: str) -> dict[str, Answer]:
        def count(answered: int) -> None:
            done[who] = answered
            report(sum(done.values()))

        return await ask(
            context.gateway,
            items,
            parameters.route,
            folder / answered.file_of(who),
            run=parameters.name,
            candidate=asked[who],
            at_once=parameters.at_once,
            report=count,
        )

    with context.progress.counting("evaluate: answers", len(items) * len(asked)) as report:
        async with task_group() as group:
            tasks = [group.create_task(ask_as(who)) for who in asked]
    first, *others = (task.result() for task in tasks)
    return first, others[0] if others else None


def _evidence(
    parameters: Parameters,
    context: Context,
    folder: Path,
    answers: tuple[dict[str, Answer], dict[str, Answer] | None],
) -> Evidence:
    judge = None
    if parameters.judge:
        judge = Judge(context.gateway, parameters.judge, folder / VERDICTS, run=parameters.name)
    return Evidence(
        searched=any(answer.passages for found in answers if found is not None for answer in found.values()),
        compare=judge.compare if judge is not None else None,
        support=judge.support if judge is not None else None,
        find=tools.finding(context.gateway),
        policy=parameters.policy,
        hidden=parameters.hidden,
        embed=tools.embedding(context.gateway, parameters.embedding_model) if parameters.embedding_model else None,
    )


def _write(path: Path, items: Sequence[Item], candidate: Scored, production: Scored | None) -> None:
    lines = (
        {
            "item": item.id,
            "slices": dict(item.slices),
            "candidate": _of(candidate.scores, item),
            "production": None if production is None else _of(production.scores, item),
        }
        for item in items
    )
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    files.write(path, text.encode())


def _of(scores: Scores, item: Item) -> dict[str, float]:
    return {name: values[item.id] for name, values in scores.items() if item.id in values}


evaluate = Step("evaluate", Parameters, Outputs, _evaluate)
