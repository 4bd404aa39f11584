"""Contamination: examples that give away an item of the golden set, by which a model is judged."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from genaifactory_pipelines.datasets import duplicates
from genaifactory_pipelines.datasets.contract import Example

_CONTAINED = 0.8
"""The share of a golden question's shingles that an example must hold."""


@dataclass(frozen=True)
class Contamination:
    """An example that holds a golden item."""

    example: int
    """Position of the example."""
    golden: str
    """Id of the item."""
    share: float
    """Of the item's shingles, 0.8 to 1."""


def find(examples: Sequence[Example], golden: Iterable[Example]) -> list[Contamination]:
    """The examples that hold the question of a golden item, each with the item of which it holds most.

    Containment and not similarity: a question that is quoted within a longer text is as bad as a copy of it. Only the
    user's messages count: that two different questions have one answer is no contamination.
    """
    items = {item.id: duplicates.shingles(item.questions) for item in golden}
    holders: defaultdict[str, list[str]] = defaultdict(list)
    for name, shingles in items.items():
        for shingle in shingles:
            holders[shingle].append(name)
    found = []
    for position, example in enumerate(examples):
        best = max((_held(text, items, holders) for text in _questions(example)), key=lambda each: each[1])
        if best[1] >= _CONTAINED:
            found.append(Contamination(position, *best))
    return found


def _questions(example: Example) -> list[str]:
    return [message.content for message in example.messages if message.role == "user"]


def _held(text: str, items: dict[str, frozenset[str]], holders: defaultdict[str, list[str]]) -> tuple[str, float]:
    """The item of which a text holds most, and how much."""
    hits = Counter(name for shingle in duplicates.shingles(text) for name in holders.get(shingle, ()))
    return max(
        ((name, count / len(items[name])) for name, count in hits.items()), key=lambda each: each[1], default=("", 0.0)
    )
