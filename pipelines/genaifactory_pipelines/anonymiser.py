"""Anonymisation by the platform's own guardrails: what they mask in traffic is masked in training data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

from genaifactory_common import conversation
from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines.datasets.contract import Example

# About 25,000 tokens of the tenant's limit for a minute.
_BATCH_CHARACTERS = 100_000

Direction = Literal["input", "output"]
"""Whose rules of a policy apply: those for what users write, or those for answers."""


class Checker(Protocol):
    """Checks texts by a guardrail policy."""

    async def check(self, texts: Sequence[str], policy: str, direction: Direction) -> list[str | None]:
        """Each text with its findings masked; None for one that the policy blocks. Raises FactoryError.

        texts: 1 to conversation.MAX_CHECKED_TEXTS, of conversation.MAX_CHARACTERS together.
        """
        ...


async def masked(examples: Sequence[Example], checker: Checker, policy: str) -> list[Example | None]:
    """The examples with masked texts; None for one with a text that the policy blocks.

    Raises FactoryError: InvalidArgument for an example in which a second check would mask or block something, since
    then personal data is left.
    """
    once = await _masked(examples, checker, policy)
    kept = [example for example in once if example is not None]
    for before, after in zip(kept, await _masked(kept, checker, policy), strict=True):
        if before != after:
            raise InvalidArgument(
                f"The example '{before.id}' still holds personal data after it was masked: a second check by the "
                f"policy '{policy}' finds more. Check the policy's rules, or leave the example out.",
                field="policy",
            )
    return once


async def _masked(examples: Sequence[Example], checker: Checker, policy: str) -> list[Example | None]:
    texts: dict[Direction, list[str]] = {"input": [], "output": []}
    for example in examples:
        for direction, text in _texts(example):
            texts[direction].append(text)
    clean: dict[Direction, Iterator[str | None]] = {
        direction: iter([each for batch in _batches(found) for each in await checker.check(batch, policy, direction)])
        for direction, found in texts.items()
    }
    return [_with_texts(example, [next(clean[direction]) for direction, _ in _texts(example)]) for example in examples]


def _texts(example: Example) -> Iterator[tuple[Direction, str]]:
    for message in example.messages:
        yield "output" if message.role == "assistant" else "input", message.content
    if example.rejected:
        yield "output", example.rejected


def _with_texts(example: Example, texts: Sequence[str | None]) -> Example | None:
    released = [text for text in texts if text is not None]
    if len(released) < len(texts):
        return None
    messages = [
        message.model_copy(update={"content": text}) for message, text in zip(example.messages, released, strict=False)
    ]
    rejected = released[-1] if example.rejected else ""
    return example.model_copy(update={"messages": tuple(messages), "rejected": rejected})


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        if batch and (len(batch) == conversation.MAX_CHECKED_TEXTS or characters + len(text) > _BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch
