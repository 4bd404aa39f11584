"""Two answers before a judge, in both orders."""

from __future__ import annotations

from collections.abc import Sequence

from genaifactory_pipelines.evaluation.protocol import Choice, Compare, Item

_WON: dict[Choice, float] = {"first": 1.0, "tie": 0.5, "second": 0.0}


async def wins(compare: Compare, item: Item, one: str, other: str) -> tuple[float, float]:
    """What the first text wins, standing first and standing second: 1, 0.5 for a tie, or 0. Raises FactoryError.

    Equal texts are a tie that no judge is asked about.
    """
    if one.strip() == other.strip():
        return 0.5, 0.5
    question = "\n".join(message.content for message in item.messages)
    return (
        _WON[await compare(question, item.expected, one, other)],
        1 - _WON[await compare(question, item.expected, other, one)],
    )


async def labels(compare: Compare, items: Sequence[Item]) -> tuple[list[Choice], list[Choice]]:
    """What people and the judge prefer, of the expected and the rejected answer in both orders; of the items with one.

    Raises FactoryError.
    """
    people: list[Choice] = []
    judge: list[Choice] = []
    for item in items:
        if item.rejected:
            first, second = await wins(compare, item, item.expected[0], item.rejected)
            people += ["first", "second"]
            judge += [_choice(first), _choice(1 - second)]
    return people, judge


def _choice(won: float) -> Choice:
    return next(choice for choice, value in _WON.items() if value == won)
