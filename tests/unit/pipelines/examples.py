"""Examples and records for tests of the pipelines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from genaifactory_pipelines.anonymiser import Direction
from genaifactory_pipelines.datasets.contract import Example

START = datetime(2026, 11, 1, tzinfo=UTC)

# Words without common shingles, so that questions made of them are no near-duplicates.
WORDS = """
partition kernel mirror keyboard wireless firmware bootloader password timezone package encrypted volume debug floppy
serial network domain gateway printer monitor sensor battery cluster archive calendar invoice holiday travel salary
laptop badge parking insurance vendor contract warehouse customer refund delivery ticket
""".split()  # noqa: SIM905  # a list of words reads as a text


def question(number: int) -> str:
    """A question that shares few shingles with the others."""
    size = len(WORDS)
    picked = (WORDS[number % size], WORDS[(number * 7 + 3) % size], WORDS[(number * 13 + number // size + 11) % size])
    return f"{picked[0]} {picked[1]} {picked[2]} {number}"


def example(number: int, **values: Any) -> Example:
    """The n-th example, an hour after the one before."""
    fields = {
        "id": f"req-{number:05}",
        "input": question(number),
        "output": f"answer {number}",
        "time": START + timedelta(hours=number),
        "group": f"c-{number}",
    }
    return Example.model_validate({**fields, **values})


def examples(count: int, **values: Any) -> list[Example]:
    """The first examples."""
    return [example(number, **values) for number in range(count)]


def golden_of(path: Path, count: int) -> Path:
    """Writes a golden set of so many questions, and returns its path."""
    items = ({"id": f"q-{number}", "input": f"Where is it ({number})?", "output": "In Hue."} for number in range(count))
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


class Masks:
    """A checker that masks one word and blocks texts with another; with `forgets` the first check finds nothing."""

    def __init__(self, *, forgets: bool = False) -> None:
        self.calls: list[tuple[str, Direction, int]] = []
        self._forgets = forgets

    async def check(self, texts: Sequence[str], policy: str, direction: Direction) -> list[str | None]:
        """See Checker."""
        self.calls.append((policy, direction, len(texts)))
        if self._forgets and self.calls.count(self.calls[-1]) == 1:
            return list(texts)
        return [None if "hunter2" in text else text.replace("Nguyen", "<PERSON>") for text in texts]


def recorded(number: int, **values: Any) -> dict[str, Any]:
    """A line of an export."""
    fields = {
        "schema_version": 1,
        "request_id": f"req-{number:05}",
        "start_time": (START + timedelta(hours=number)).isoformat(),
        "task": "rag",
        "route": "docs",
        "model": "tiny",
        "prompt_version": "rag@1",
        "index_version": "v1",
        "passages": [{"passage_id": f"p{number}", "document_id": f"guide/{number % 3}.md", "score": 0.5}],
        "citations": [{"passage_id": f"p{number}", "document_id": f"guide/{number % 3}.md"}],
        "input": [{"role": "user", "content": question(number), "tool_calls": [], "images": []}],
        "output": f"answer {number}",
        "outcome": "answered",
        "refused": False,
        "conversation_id": "",
        "feedback": [],
        "a_later_field": 1,
    }
    return {**fields, **values}


def feedback(**values: Any) -> dict[str, Any]:
    """Feedback in a line of an export."""
    fields = {"time": START.isoformat(), "rating": "unspecified", "correction": "", "ground_truth": None}
    return {**fields, **values}
