"""Splits without leakage: what belongs together stays together, and what is newest is tested on."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines.datasets import duplicates
from genaifactory_pipelines.datasets.contract import Example
from genaifactory_pipelines.datasets.duplicates import Groups

LEAK_SIMILARITY = 0.6
"""Questions this similar are in one split: the answer to one gives away that to the other."""

_NO_TIME = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Splits:
    """Disjoint parts of a dataset."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]


def split(examples: Sequence[Example], *, validation: float, test: float) -> Splits:
    """Splits by conversation, by similarity of the questions and by time: the newest groups are the test split.

    validation, test: least shares of the examples, above 0; together below 1. The result does not depend on the order
    of the examples. Raises InvalidArgument when a split would be empty.
    """
    ordered = sorted(examples, key=lambda example: example.id)
    by_group: defaultdict[int, list[Example]] = defaultdict(list)
    groups = _groups(ordered)
    for position, example in enumerate(ordered):
        by_group[groups.of(position)].append(example)
    newest_first = sorted(by_group.values(), key=_age, reverse=True)
    parts: tuple[list[Example], list[Example], list[Example]] = ([], [], [])
    wanted = (math.ceil(test * len(ordered)), math.ceil(validation * len(ordered)), len(ordered))
    at = 0
    for group in newest_first:
        while len(parts[at]) >= wanted[at]:
            at += 1
        parts[at].extend(group)
    for name, part in zip(("test", "validation", "train"), parts, strict=True):
        if not part:
            raise InvalidArgument(
                f"The {name} split is empty: {len(ordered)} examples are {len(by_group)} groups (of one conversation, "
                "or with questions that are nearly the same), which stay together. Collect more, or ask for less.",
                field=name,
            )
    return Splits(*(tuple(sorted(part, key=lambda example: example.id)) for part in reversed(parts)))


def balanced(examples: Iterable[Example], *, most_times_median: float) -> tuple[list[Example], list[Example]]:
    """What is kept and what is left out, so that no language and topic has more than so many times the median's count.

    Which examples of a cell are left out is a matter of their ids alone, so that it is the same each time.
    """
    cells: defaultdict[tuple[str, str], list[Example]] = defaultdict(list)
    for example in examples:
        cells[example.language, example.topic].append(example)
    if not cells:
        return [], []
    most = max(1, math.ceil(most_times_median * statistics.median(len(cell) for cell in cells.values())))
    kept, left_out = [], []
    for cell in cells.values():
        shuffled = sorted(cell, key=lambda example: hashlib.sha256(example.id.encode()).digest())
        kept += shuffled[:most]
        left_out += shuffled[most:]
    return sorted(kept, key=lambda example: example.id), left_out


def leaks(splits: Splits) -> list[str]:
    """What two splits share, one line each; empty for a split that is safe to train on."""
    named = [(name, example) for name in ("train", "validation", "test") for example in getattr(splits, name)]
    groups = _groups([example for _, example in named])
    places: defaultdict[int, dict[str, Example]] = defaultdict(dict)
    for position, (name, example) in enumerate(named):
        places[groups.of(position)].setdefault(name, example)
    return [
        " and ".join(f"'{example.id}' in {name}" for name, example in found.items()) + " belong together"
        for found in places.values()
        if len(found) > 1
    ]


def _groups(examples: Sequence[Example]) -> Groups:
    groups = Groups(len(examples))
    first: dict[str, int] = {}
    for position, example in enumerate(examples):
        if example.group:
            groups.join(position, first.setdefault(example.group, position))
    for later, earlier, _ in duplicates.pairs([example.questions for example in examples], LEAK_SIMILARITY):
        groups.join(later, earlier)
    return groups


def _age(group: Sequence[Example]) -> tuple[datetime, bytes]:
    """Sorts groups by their newest question; those without a time by their ids, in no order that means anything."""
    newest = max(example.time or _NO_TIME for example in group)
    return newest, hashlib.sha256(group[0].id.encode()).digest()
