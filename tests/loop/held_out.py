"""The golden set: what the adapter must know, in words that nobody has used."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from genaifactory_common import files
from genaifactory_pipelines.evaluation import journal
from tests.loop import handbook, month

PEOPLE = "people's things"
"""The topic of what is in no document."""


def write(path: Path) -> Path:
    """Writes the file and returns its path. Blocks."""
    files.write(path, "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in _items()).encode())
    return path


def shown(count: int) -> Sequence[tuple[str, str]]:
    """So many questions, of all kinds, with their right answers."""
    everything = [(item["input"], item["output"]) for item in _items()]
    return everything[:: len(everything) // count][:count]


def by_slice(scores: Path) -> dict[str, tuple[int, float, float]]:
    """Of the questions on documents in each language, and of the others: how many there are, and how many of them
    production and the candidate answer word for word, as shares. Blocks.

    scores: the file that the step evaluate has written.
    """
    found: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for line in journal.read(scores):
        slices = line["slices"]
        name = PEOPLE if slices["topic"] == PEOPLE else f"documents ({slices['language']})"
        found[name].append((line["production"]["exact_match"], line["candidate"]["exact_match"]))
    return {
        name: (len(each), statistics.fmean(one for one, _ in each), statistics.fmean(other for _, other in each))
        for name, each in found.items()
    }


def _items() -> Iterator[dict[str, Any]]:
    for person, thing in month.people_and_things():
        question = month.HELD_OUT.format(person=person, thing=thing)
        right = month.place(person, thing)
        yield {"id": f"{person} {thing}", "input": question, "output": right, "language": "en", "topic": PEOPLE}
    for fact in handbook.facts():
        yield {
            "id": fact.what,
            "input": handbook.HELD_OUT[fact.language].format(what=fact.what),
            "output": fact.answer,
            "language": fact.language,
            "topic": fact.document,
            "lineage": {"documents": [fact.document]},
        }
