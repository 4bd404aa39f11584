"""Items of an evaluation one by one, as its folder has them: those without an answer and those that failed first."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from genaifactory_pipelines.evaluation import asking, journal
from genaifactory_pipelines.evaluation.protocol import Answer

WHO = ("candidate", "production")


def file_of(who: str) -> str:
    """Of the answers, in the step's folder."""
    return f"{who}.jsonl"


@dataclass(frozen=True)
class Answered:
    """An item with what each of the two has answered."""

    item: str
    slices: Mapping[str, str]
    answers: Mapping[str, Answer]
    """By who answered; "production" alone where there was no candidate."""
    scores: Mapping[str, Mapping[str, float]]
    """By who answered and the metric."""
    failed: bool
    """Whether what was evaluated has no answer, or the worst score of a metric that counts and is a share of 1."""


def read(folder: Path, scores: str, better: Mapping[str, str]) -> list[Answered]:
    """The items: those without an answer, other failed ones, the rest; each in an order that follows from their ids
    alone, so that the first ones are a sample.

    folder: of the step. scores: its file of them. better: "higher" or "lower", by the metrics of which the worst score
    is a failure. Blocks. Raises OSError.
    """
    answers = {who: asking.read(file) for who in WHO if (file := folder / file_of(who)).exists()}
    found = []
    for line in journal.read(folder / scores):
        # The scores of production that was evaluated alone stand where those of a candidate do.
        given = zip(answers, (line[who] for who in WHO), strict=False)
        found.append((line, dict(given)))
    worst = _worst(better, [scored for _, by in found for scored in by.values()])
    items = [
        Answered(
            item=line["item"],
            slices=line["slices"],
            answers={who: each[line["item"]] for who, each in answers.items()},
            scores=by,
            failed=_failed(answers, by, line["item"], worst),
        )
        for line, by in found
    ]
    return sorted(items, key=_place)


def _place(item: Answered) -> tuple[bool, bool, bytes]:
    evaluated = next(iter(item.answers.values()))
    return not evaluated.error, not item.failed, hashlib.sha256(item.item.encode()).digest()


def _worst(better: Mapping[str, str], scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The worst value of each metric whose values are all between 0 and 1; seconds and costs have none."""
    return {
        name: 0.0 if which == "higher" else 1.0
        for name, which in better.items()
        if all(0 <= each[name] <= 1 for each in scores if name in each)
    }


def _failed(
    answers: Mapping[str, Mapping[str, Answer]],
    scores: Mapping[str, Mapping[str, float]],
    item: str,
    worst: Mapping[str, float],
) -> bool:
    who = next(iter(answers))
    return bool(answers[who][item].error) or any(value == worst.get(name) for name, value in scores[who].items())
