"""The answer's text against the expected ones: exact match and token F1.

As for SQuAD (Rajpurkar et al., 2016), without the removal of English articles, which are words of Vietnamese too.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Literal

from genaifactory_common import normalise
from genaifactory_pipelines.evaluation.protocol import Answer, Item

_CITATION = re.compile(r"\[\d+\]")
_WORD = re.compile(r"\w+")


class ExactMatch:
    """1 where the words are those of an expected answer, else 0."""

    name = "exact_match"
    better: Literal["higher"] = "higher"

    async def score(self, item: Item, answer: Answer) -> float | None:
        """See Evaluator; None for an item without an expected answer."""
        if not item.expected:
            return None
        return float(words(answer.text) in [words(text) for text in item.expected])


class TokenF1:
    """The harmonic mean of precision and recall of the words, of the expected answer that fits best; 0 to 1."""

    name = "token_f1"
    better: Literal["higher"] = "higher"

    async def score(self, item: Item, answer: Answer) -> float | None:
        """See Evaluator; None for an item without an expected answer."""
        if not item.expected:
            return None
        found = words(answer.text)
        return max(f1(found, words(text)) for text in item.expected)


def words(text: str) -> list[str]:
    """The words of a text in normal form and lower case, without the marks of citations."""
    return _WORD.findall(normalise.normalise(_CITATION.sub(" ", text)).text.casefold())


def f1(found: list[str], expected: list[str]) -> float:
    """0 to 1; 1 where both are empty."""
    if not found or not expected:
        return float(found == expected)
    common = (Counter(found) & Counter(expected)).total()
    return 2 * common / (len(found) + len(expected))
