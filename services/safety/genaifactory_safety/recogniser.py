"""A recogniser of patterns that fails closed, with cheap conditions under which it need not run.

A pattern that runs out of time raises: skipping it would return a clean result for a text that was not scanned.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import regex  # type: ignore[import-untyped]

from genaifactory_safety.labels import Labels

REGEX_TIMEOUT_SECONDS = 0.5
"""For one pattern on one window of text; it normally takes microseconds."""
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
    """A match of a pattern whose labels are not considered yet."""

    recogniser: StrictRecogniser
    start: int
    end: int
    score: float


class StrictRecogniser:
    """Finds one entity type by patterns and a check.

    entity: its type. patterns: with scores for a match without a label. accept: whether a match is one; None: always.
    labels: folded phrases, one of which nearby raises the score to LABELLED_SCORE. doubtful: a nearby label of another
    kind (an order number) lowers it to OTHER_SCORE. min_digits, literals, hint: necessary for a match: so many digits
    and a match of the hint in the segment, and one of the literals (lower case) in it or its context. behind: how many
    characters before a segment a match may begin; the entity (the group "entity") begins in the segment.
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
        """Candidates that begin at or after `start`; the text before it is context. Raises TimeoutError."""
        for compiled, pattern in self._compiled:
            try:
                for match in compiled.finditer(text, max(start - self._behind, 0), timeout=REGEX_TIMEOUT_SECONDS):
                    # A pattern that also matches the text around the entity has a group of that name.
                    begin, end = match.span("entity") if "entity" in compiled.groupindex else match.span()
                    if begin >= start and (self._accept is None or self._accept(text[begin:end])):
                        yield Candidate(self, begin, end, pattern.score)
            except TimeoutError:
                raise TimeoutError(f"{self.entity}: the pattern '{pattern.name}' ran for too long.") from None
