"""What of the answers in an evaluation MLflow gets: each as a trace, with its texts or without any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from genaifactory.types.v1 import types_pb2
from genaifactory_pipelines.evaluation.answered import Answered
from genaifactory_pipelines.evaluation.protocol import PRODUCTION, Answer, Candidate, Item
from genaifactory_pipelines.tracking.traces import Trace

_LONGEST_TAG = 250
_LONGEST_TEXT = 10_000
"""Characters of one text."""


def traces(
    items: Sequence[Answered], asked: Mapping[str, Item] | None, candidate: Candidate, started: int
) -> Iterator[Trace]:
    """The traces of all answers to items.

    asked: the items by their ids; None: no trace holds a text. started: when the evaluation was, in milliseconds since
    1970; when each question was asked is not on record.
    """
    who_answered = {"candidate": candidate, "production": PRODUCTION}
    for each in items:
        for who, answer in each.answers.items():
            tags = {
                "genaifactory.item": each.item,
                "genaifactory.answered_by": str(who_answered[who]),
                "genaifactory.outcome": answer.error or ("blocked" if answer.blocked else "answered"),
                **{f"genaifactory.slice.{name}": value for name, value in each.slices.items() if value},
            }
            yield Trace(
                who=who,
                item=each.item,
                started=started,
                seconds=answer.seconds,
                first_text_seconds=answer.first_token_seconds,
                error=answer.error,
                scores=dict(each.scores[who]),
                tags={name: _storable(value)[:_LONGEST_TAG] for name, value in tags.items()},
                **(_counted(each.item, answer) if asked is None else _told(asked[each.item], answer)),
            )


def _counted(item: str, answer: Answer) -> Mapping[str, Any]:
    length = f"{len(answer.text):,} characters"
    return {
        "request": f"Item {item}",
        "response": length if answer.text else answer.shown,
        "inputs": {"item": item},
        "outputs": length if answer.text else answer.shown,
        "passages": f"{len(answer.passages)} passages" if answer.passages else None,
    }


def _told(item: Item, answer: Answer) -> Mapping[str, Any]:
    return {
        "request": _storable(item.question),
        "response": _storable(answer.shown),
        "inputs": {
            "messages": [{"role": _role(each), "content": _cut(each.content)} for each in item.messages],
        },
        "outputs": _cut(answer.shown),
        "passages": [{"page_content": _cut(each), "metadata": {}} for each in answer.passages] or None,
        "expected": tuple(map(_cut, item.expected)),
    }


def _role(message: types_pb2.Message) -> str:
    return types_pb2.Role.Name(message.role).removeprefix("ROLE_").lower()


def _storable(text: str) -> str:
    """PostgreSQL refuses NUL in a text that is not JSON."""
    return text.replace("\0", "")


def _cut(text: str) -> str:
    more = len(text) - _LONGEST_TEXT
    return text if more <= 0 else f"{text[:_LONGEST_TEXT]} ({more:,} more characters)"
