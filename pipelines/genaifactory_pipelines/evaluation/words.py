"""The words of a text, by which answers are compared."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from genaifactory_common import normalise

_CITATION = re.compile(r"\[\d+(?:[,;] ?\d+)*\]")
_WORD = re.compile(r"\w+")


def of(text: str) -> list[str]:
    """The words in normal form and lower case, without the marks of citations.

    English articles stay, other than in SQuAD's form: "a" and "an" are words of Vietnamese too.
    """
    return _WORD.findall(normalise.normalise(without_citations(text)).text.casefold())


def f1(found: Sequence[str], expected: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of words, 0 to 1 (Rajpurkar et al., "SQuAD: 100,000+ Questions for
    Machine Comprehension of Text", 2016)."""
    if not found or not expected:
        return float(found == expected)
    common = (Counter(found) & Counter(expected)).total()
    return 2 * common / (len(found) + len(expected))


def without_citations(text: str) -> str:
    """A text without the marks that name passages."""
    return _CITATION.sub(" ", text)
