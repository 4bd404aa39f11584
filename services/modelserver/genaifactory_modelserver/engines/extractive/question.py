"""What a question is about, and how well the words of a text match it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

from genaifactory_common import language
from genaifactory_common.language import Language
from genaifactory_common.masking import question_without_masks
from genaifactory_modelserver.engines.extractive import words
from genaifactory_modelserver.engines.extractive.words import Form

# The end of a very long message is where its question stands.
_MAX_QUESTION_CHARACTERS = 2_000
_MAX_TERMS = 48
# A shorter question may well be part of a sentence that answers it ("annual leave").
_WORDS_OF_A_REPETITION = 4
_CONTEXT_WEIGHT = 0.35
_GENERIC_WEIGHT = 0.4

# How well a word of a text matches a term: same word; same English stem; same letters, where one side was written
# without marks; same letters, where both have marks and so are two different syllables.
_EXACT, _STEM, _FOLDED, _OTHER_MARKS = 1.0, 0.95, 0.9, 0.2
# A Vietnamese syllable apart from its neighbour is mostly part of another word ("bảo" of "bảo vệ", not "bảo hành").
_LONE_SYLLABLE = 0.5
# "(143)" after a question; "printf(3)" is a name.
_ASIDE = re.compile(r"(?<!\S)[(\[]\s?(\d+)\s?[)\]](?!\w)")


@dataclass(frozen=True, slots=True)
class Term:
    """A word that the question is about."""

    form: Form
    weight: float
    from_context: bool
    """Out of an earlier turn."""
    telling: bool
    """A name, code or number."""
    number: bool
    """Digits alone."""
    aside: bool
    """A number that stands in brackets alone, so that the question may well not be about it."""
    paired: bool
    """A Vietnamese syllable with a neighbour in the question."""


@dataclass(frozen=True, slots=True)
class Match:
    """What a text holds of the question."""

    quality: dict[int, float]
    """By term: 0 to 1."""
    exact: frozenset[int]
    """Terms that stand there to the letter."""


class Question:
    """The last thing that the user asked, with what was asked before as weak context."""

    def __init__(self, turns: Sequence[str]) -> None:
        """turns: what the user said, oldest first; masks of guardrails in it are not read."""
        turns = [question_without_masks(turn) for turn in turns[-3:]]
        text = turns[-1][-_MAX_QUESTION_CHARACTERS:] if turns else ""
        earlier = [turn[-_MAX_QUESTION_CHARACTERS:] for turn in turns[-3:-1]]
        spoken = language.detect(text)
        self.spoken: Language | None = spoken or next(filter(None, map(language.detect, reversed(earlier))), None)
        """Its language; None when nothing tells."""
        self.wants_number = words.asks_for_number(text)
        self.wants_steps = words.asks_for_steps(text)
        own = words.content(text, self.spoken)
        leans = len(own) <= 2 or words.leans_on_context(text)
        context = [pair for turn in earlier for pair in words.content(turn, self.spoken)] if leans else []
        asides = frozenset(_ASIDE.findall(text)).difference(words.words(_ASIDE.sub(" ", text)))
        self.terms, self._pairs = _terms(own, context, self.spoken, asides)
        self._said = _spoken_words(text)
        self._marked = not unicodedata.normalize("NFC", text).isascii()
        self._by_exact = {term.form.exact: i for i, term in reversed(list(enumerate(self.terms)))}
        self._by_folded = {term.form.folded: i for i, term in reversed(list(enumerate(self.terms)))}
        self._by_stem = {term.form.stem: i for i, term in reversed(list(enumerate(self.terms)))}
        self._known: dict[tuple[str, bool], tuple[int, float] | None] = {}

    def is_repeated_in(self, text: str) -> bool:
        """Whether a text holds the question word for word, as a page of examples does: that answers nothing."""
        return self._said.count(" ") >= _WORDS_OF_A_REPETITION and self._said in _spoken_words(text)

    def match(self, text: str, *, marked: bool) -> Match | None:
        """How the text's words match; None when none does. marked: the document is written with marks."""
        quality: dict[int, float] = {}
        exact: set[int] = set()
        together: set[int] = set()
        last_term, last_place = -1, -2
        known, marks = self._known, marked and self._marked
        for place, word in enumerate(words.words(text)):
            key = (word, marks)
            try:
                found = known[key]
            except KeyError:
                found = known[key] = self._find(words.form(word), other_marks=_OTHER_MARKS if marks else _FOLDED)
            if found is None:
                continue
            term, how_well = found
            if how_well > quality.get(term, 0.0):
                quality[term] = how_well
            if how_well == _EXACT:
                exact.add(term)
            if last_place == place - 1 and (last_term, term) in self._pairs:
                together.update((last_term, term))
            last_term, last_place = term, place
        if not quality:
            return None
        for term, how_well in quality.items():
            if self.terms[term].paired and term not in together:
                quality[term] = how_well * _LONE_SYLLABLE
        return Match(quality, frozenset(exact))

    def _find(self, form: Form, *, other_marks: float) -> tuple[int, float] | None:
        if (term := self._by_exact.get(form.exact)) is not None:
            return term, _EXACT
        if (term := self._by_stem.get(form.stem)) is not None and form.folded == form.exact:
            return term, _STEM
        if (term := self._by_folded.get(form.folded)) is not None:
            return term, other_marks
        return None


def _spoken_words(text: str) -> str:
    return " ".join(words.words(unicodedata.normalize("NFC", text).lower()))


def _terms(
    own: list[tuple[str, bool]], context: list[tuple[str, bool]], spoken: Language | None, asides: frozenset[str]
) -> tuple[list[Term], frozenset[tuple[int, int]]]:
    """The terms, each once, and which of them follow one another."""
    terms: list[Term] = []
    places: dict[str, int] = {}
    pairs: set[tuple[int, int]] = set()
    for from_context, found in ((False, own), (bool(own), context)):
        previous = -1
        for number, (word, adjacent) in enumerate(found):
            form = words.form(word)
            place = places.get(form.exact)
            if place is None:
                if len(terms) == _MAX_TERMS:
                    break
                place = places[form.exact] = len(terms)
                telling = words.is_telling(word, begins=number == 0)
                weight = _GENERIC_WEIGHT if form.exact in words.GENERIC else 1.0
                weight = _CONTEXT_WEIGHT if from_context else weight
                terms.append(
                    Term(form, weight, from_context, telling, word.isdecimal(), aside=word in asides, paired=False)
                )
            if adjacent and previous >= 0:
                pairs.add((previous, place))
            previous = place
    if spoken == "vi":
        terms = _with_pairs(terms, pairs)
    return terms, frozenset(pairs)


def _with_pairs(terms: list[Term], pairs: set[tuple[int, int]]) -> list[Term]:
    paired = {i for pair in pairs for i in pair}
    generic = {
        i for a, b in pairs if (terms[a].form.folded, terms[b].form.folded) in words.GENERIC_PAIRS for i in (a, b)
    }
    return [
        replace(
            term,
            paired=i in paired and not term.telling,
            weight=min(term.weight, _GENERIC_WEIGHT) if i in generic else term.weight,
        )
        for i, term in enumerate(terms)
    ]
