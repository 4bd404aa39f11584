"""The words of a text, by which answers are compared."""

from __future__ import annotations

import re

from genaifactory_common import normalise

_CITATION = re.compile(r"\[\d+(?:[,;] ?\d+)*\]")
_WORD = re.compile(r"\w+")


def of(text: str) -> list[str]:
    """The words in normal form and lower case, without the marks of citations.

    English articles stay, other than in SQuAD's form: "a" and "an" are words of Vietnamese too.
    """
    return _WORD.findall(normalise.normalise(without_citations(text)).text.casefold())


def without_citations(text: str) -> str:
    """A text without the marks that name passages."""
    return _CITATION.sub(" ", text)
