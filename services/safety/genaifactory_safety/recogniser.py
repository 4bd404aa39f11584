"""A recogniser of patterns that fails closed and says cheaply when it has nothing to look for.

A pattern that runs out of time raises: to skip it would return a clean result for a text that was not scanned.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import regex  # type: ignore[import-untyped]

from genaifactory_safety.labels import Labels

REGEX_TIMEOUT_SECONDS = 0.5
"""For one pattern on one window of text; a pattern needs microseconds."""
LABELLED_SCORE = 0.9
LISTED_SCORE = 0.55
OTHER_SCORE = 0.3


@dataclass(frozen=True)
class Pattern:
    """One form in which an entity is written."""

    name: str
    """Of the form; an error names it."""
    regex: str
    score: float
    """Of a match without a label, from 0 to 1."""


@dataclass(frozen=True)
class Candidate:
    """Something that looks like an entity; labels have not spoken yet."""

    recogniser: StrictRecogniser
    start: int
    end: int
    score: float


class StrictRecogniser:
    """Finds one entity type by patterns and a check.

    entity: its type. patterns: scores without a label. accept: says whether a match is one; None takes all.
    labels: phrases, folded, one of which nearby raises the score to LABELLED_SCORE. doubtful: a label of something
    else nearby (an order number) lowers it to OTHER_SCORE. min_digits, literals, hint: the segment holds that many
    digits and a match of the hint, and it or its context one of the literals (lower case), or nothing can match.
    behind: how many characters before a segment the match may begin; the entity, the group of that name, begins in
    the segment.
    """

    def __init__(
        self,
        entity: str,
        patterns: list[Pattern],
        *,
        accept: Callable[[str], bool] | None = None,
        labels: tuple[str, ...] = (),
        doubtful: bool = False,
        min_digits: int = 0,
        literals: tuple[str, ...] = (),
        hint: str = "",
        languages: tuple[str, ...] = ("vi", "en"),
        behind: int = 0,
    ) -> None:
        self.entity = entity
        self.languages = languages
        self.labels = Labels(labels) if labels else None
        self.doubtful = doubtful
        self.min_digits = min_digits
        self.literals = literals
        self.hint = re.compile(hint) if hint else None
        self._accept = accept
        self._behind = behind
        self._compiled = [(regex.compile(pattern.regex), pattern) for pattern in patterns]

    def find(self, text: str, start: int = 0) -> Iterator[Candidate]:
        """Candidates that begin at or after `start`; what stands before is seen. Raises TimeoutError."""
        for compiled, pattern in self._compiled:
            try:
                for match in compiled.finditer(text, max(start - self._behind, 0), timeout=REGEX_TIMEOUT_SECONDS):
                    # The entity is the group named so, where a pattern also needs what stands around it.
                    begin, end = match.span("entity") if "entity" in compiled.groupindex else match.span()
                    if begin >= start and (self._accept is None or self._accept(text[begin:end])):
                        yield Candidate(self, begin, end, pattern.score)
            except TimeoutError:
                raise TimeoutError(f"{self.entity}: the pattern '{pattern.name}' ran for too long.") from None
