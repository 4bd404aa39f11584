"""Answers a question with sentences of documents: reads, scores, chooses, and puts them into words.

A unit's score is the share of the question's terms that it holds, each weighted by how rare it is in the given
documents (inverse document frequency over units), with terms of the headings above it counting less; then come small
bonuses for place, language and, where the question asks for one, a number. Further units are chosen by maximal
marginal relevance (Carbonell and Goldstein, 1998), so that an answer does not say one thing twice.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from genaifactory_common import language, refusals
from genaifactory_common.language import Language
from genaifactory_modelserver.engines.extractive import words
from genaifactory_modelserver.engines.extractive.question import Match, Question
from genaifactory_modelserver.engines.extractive.sentences import Kind, Unit, units, windows
from genaifactory_modelserver.engines.protocol import GroundingPassage

MAX_QUOTES = 4

# Below this share of the question's terms, found in a unit, above it and around it, the documents do not answer.
_KNOWN_SHARE = 0.44
# A name or number that no document holds tells more than any other missing word.
_MISSING_NAME = 3.0
# Unless it is a number and one sentence matches so many other words, all of them this well: "days of annual leave 143".
_OTHER_WORDS = 3
_STRONG_MATCH = 0.9
_HEADING_EVIDENCE = 0.8
_PASSAGE_EVIDENCE = 0.5
# In the score a heading's term counts less than the unit's own; for a whole list its lead-in is what counts.
_HEADING_SCORE = 0.75
_LIST_ITEM_SCORE = 0.5
_LIST_HEADING_SCORE = 0.6
# A further quote must be this good against the best one, after what it repeats is taken off.
_WORTH_ADDING = 0.65
_OWN_WORTH_ADDING = 0.6
_REPETITION_COST = 0.5
_SAME_THING = 0.6
_SHORTLIST = 24
_LONG_WORDS = 60
_UNITS_A_SLICE = 16
_SCORES_A_SLICE = 64
_DETECTED_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Quote:
    """A unit of a document, word for word but for white space."""

    text: str
    number: int
    """Position of the document, from 1."""
    kind: Kind

    @property
    def marked(self) -> str:
        """With its source."""
        return f"{'- ' if self.kind is Kind.ITEM else ''}{self.text} [{self.number}]"


@dataclass(frozen=True, slots=True)
class Answer:
    """What to say. Without quotes: that the documents do not answer."""

    spoken: Language
    quotes: tuple[Quote, ...]
    lead_in: str = ""

    @property
    def text(self) -> str:
        """The whole answer."""
        return self.lead_in + _joined(self.quotes) if self.quotes else refusals.UNANSWERED[self.spoken]

    def after(self, begun: str) -> str:
        """What is still to be said when `begun` has been, by this engine or by any other model."""
        said = begun.rstrip()
        if self.text.startswith(said):
            rest = self.text[len(said) :]
            return rest if said == begun else rest.lstrip()
        normalised = _normalised(said)
        open_quote = next((q for q in self.quotes if _overlap(said, q.marked)), None)
        left = tuple(q for q in self.quotes if q is not open_quote and _normalised(q.text) not in normalised)
        is_finished = _FINISHED.search(said) is not None
        if open_quote is not None:
            finished = open_quote.marked[_overlap(said, open_quote.marked) :]
            return finished + (_separator((open_quote, *left)) + _joined(left) if left else "")
        if left:
            seam = "" if not said else _separator(left) if is_finished else "… "
            return (seam if said == begun else seam.lstrip()) + _joined(left)
        return "" if is_finished else f"… {_NOTHING_MORE[self.spoken]}"


def without_documents(spoken: Language | None) -> str:
    """What to say when there is nothing to quote from."""
    return _NO_DOCUMENTS[spoken or "en"]


@dataclass(slots=True)
class _Passage:
    """A document while it is read."""

    number: int
    """From 0."""
    marked: bool
    """Whether it is written with marks."""
    same_language: bool
    """As the question's."""
    titles: Match | None
    found: dict[int, float]
    """By term: how well anything in it matches."""
    context: str = ""
    above: Match | None = None
    """What the titles and the context match together."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    unit: Unit
    passage: _Passage
    part: int
    """Window of the document, from 0."""
    place: int
    """Number of the unit in its document, from 1."""
    match: Match | None
    above: Match | None


class Reader:
    """Reads documents for one question; `read` in small slices, then `answer`."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._units = 0
        self._frequency = [0] * len(question.terms)
        self._candidates: list[_Candidate] = []
        self._languages: list[Language] = []
        self._rarity: list[float] = []
        self._weights: list[float] = []
        self._scored: list[tuple[float, _Candidate]] = []

    def read(self, documents: Sequence[GroundingPassage]) -> Iterator[None]:
        """Reads and ranks all; yields after well below a millisecond of work, so that others get their turn."""
        for number, document in enumerate(documents):
            passage = self._opened(number, document)
            place = 0
            for part, text in enumerate(windows(document.text)):
                for unit in units(text, starts_inside=document.starts_inside or part > 0):
                    place += 1
                    self._consider(unit, passage, part, place)
                    if place % _UNITS_A_SLICE == 0:
                        yield
                yield
        yield from self._rank()

    def _opened(self, number: int, document: GroundingPassage) -> _Passage:
        written = _written_in(document)
        self._languages.append(written)
        marked = not document.text.isascii()
        titles = self._question.match(" . ".join((document.title, *document.headings)), marked=marked)
        found = dict(titles.quality) if titles is not None else {}
        return _Passage(number, marked, self._question.spoken in (None, written), titles, found, above=titles)

    def _consider(self, unit: Unit, passage: _Passage, part: int, place: int) -> None:
        if unit.context != passage.context:
            passage.context = unit.context
            passage.above = _better(passage.titles, self._question.match(unit.context, marked=passage.marked))
        match = self._question.match(unit.text, marked=passage.marked)
        if match is not None and self._question.is_repeated_in(unit.text):
            return
        self._units += 1
        if match is not None:
            for term, quality in match.quality.items():
                self._frequency[term] += 1
                passage.found[term] = max(quality, passage.found.get(term, 0.0))
        if match is not None or passage.above is not None:
            self._candidates.append(_Candidate(unit, passage, part, place, match, passage.above))

    def _rank(self) -> Iterator[None]:
        n = self._units
        # Inverse document frequency, 0 to 1.
        self._rarity = [
            math.log(1 + (n - df + 0.5) / (df + 0.5)) / math.log(1 + (n + 0.5) / 0.5) for df in self._frequency
        ]
        self._weights = [t.weight * (0.4 + 0.6 * r) for t, r in zip(self._question.terms, self._rarity, strict=True)]
        total = sum(self._weights)
        for start in range(0, len(self._candidates), _SCORES_A_SLICE):
            for candidate in self._candidates[start : start + _SCORES_A_SLICE]:
                self._scored.append((self._score(candidate, total), candidate))
            yield
        self._scored = heapq.nsmallest(
            _SHORTLIST, self._scored, key=lambda scored: (-scored[0], scored[1].passage.number, scored[1].place)
        )

    def answer(self) -> Answer:
        """What the documents that were read say."""
        spoken = self._question.spoken or _most_common(self._languages)
        known = [(score, candidate) for score, candidate in self._scored if self._is_known(candidate)]
        chosen = _diverse([*known[:1], *(each for each in known[1:] if self._adds_to(known[0][1], each[1]))])
        quotes = tuple(Quote(_quoted(c.unit), c.passage.number + 1, c.unit.kind) for c in _readable(chosen))
        foreign = bool(chosen) and not any(c.passage.same_language for c in chosen)
        return Answer(spoken, quotes, _FOREIGN[spoken] if foreign else "")

    def _adds_to(self, best: _Candidate, other: _Candidate) -> bool:
        """Whether a further quote itself speaks of the matter (a heading above it is not enough), in one language."""
        speaks = self._share(other.match) > _OWN_WORTH_ADDING * self._share(best.match)
        return speaks and other.passage.same_language == best.passage.same_language

    def _score(self, candidate: _Candidate, total: float) -> float:
        unit = candidate.unit
        own, above = 1.0, _HEADING_SCORE
        if unit.kind is Kind.LIST:
            leads = unit.led_in or self._question.wants_steps
            own, above = _LIST_ITEM_SCORE, 1.0 if leads else _LIST_HEADING_SCORE
        found: dict[int, float] = {}
        if candidate.above is not None:
            found = {term: above * quality for term, quality in candidate.above.quality.items()}
        if candidate.match is not None:
            for term, quality in candidate.match.quality.items():
                found[term] = max(own * quality, found.get(term, 0.0))
        score = sum(self._weights[term] * quality for term, quality in found.items()) / total
        score += 0.1 / (1 + candidate.passage.number) + 0.04 / candidate.place
        score += 0.15 * candidate.passage.same_language
        score += 0.12 * (self._question.wants_number and _DIGIT.search(unit.text) is not None)
        score += 0.2 * (self._question.wants_steps and unit.kind is Kind.LIST and candidate.above is not None)
        score -= 0.15 * (not unit.complete)
        score -= 0.1 * (unit.kind is Kind.SENTENCE and unit.text.count(" ") > _LONG_WORDS)
        return score

    def _share(self, match: Match | None) -> float:
        """What a text holds of the question, by rarity."""
        if match is None:
            return 0.0
        return sum(self._question.terms[i].weight * self._rarity[i] * quality for i, quality in match.quality.items())

    def _is_known(self, candidate: _Candidate) -> bool:
        """Whether the unit, with what stands above and around it, is about what was asked."""
        if not candidate.passage.same_language:
            return self._is_known_abroad(candidate)
        passage = candidate.passage.found
        all_but_numbers = self._holds_all_but_numbers(candidate)
        found = total = 0.0
        for i, term in enumerate(self._question.terms):
            if term.from_context:
                continue
            weight = term.weight * (0.6 + 0.4 * self._rarity[i])
            if term.telling and not self._frequency[i] and i not in passage:
                if term.aside or (term.number and all_but_numbers):
                    continue
                weight *= _MISSING_NAME
            total += weight
            found += weight * max(
                _quality(candidate.match, i),
                _HEADING_EVIDENCE * _quality(candidate.above, i),
                _PASSAGE_EVIDENCE * passage.get(i, 0.0),
            )
        return total > 0 and found / total >= _KNOWN_SHARE

    def _holds_all_but_numbers(self, candidate: _Candidate) -> bool:
        """Whether the unit itself holds every informative word of the question but for numbers, and they are enough."""
        size = 0.0
        for i, term in enumerate(self._question.terms):
            if term.from_context or term.number or term.weight < 1:
                continue
            if _quality(candidate.match, i) < _STRONG_MATCH:
                return False
            size += 0.5 if term.paired else 1.0  # a Vietnamese word is mostly two syllables
        return size >= _OTHER_WORDS

    def _is_known_abroad(self, candidate: _Candidate) -> bool:
        """The same for a document in another language, where only names, numbers and loan-words can match."""
        exact = (candidate.match.exact if candidate.match else frozenset()) | (
            candidate.above.exact if candidate.above else frozenset()
        )
        terms = self._question.terms
        shared = [i for i in exact if terms[i].telling or (len(terms[i].form.exact) > 3 and not terms[i].from_context)]
        telling = [
            i
            for i, term in enumerate(terms)
            if term.telling and not term.from_context and (self._frequency[i] or not term.aside)
        ]
        # Where there are documents in the question's language, they would have told of a name that is missing here.
        share = 1.0 if self._question.spoken in self._languages else 0.5
        return bool(shared) and sum(i in exact for i in telling) >= share * len(telling)


def _diverse(scored: list[tuple[float, _Candidate]]) -> list[_Candidate]:
    """The best, then whatever adds to it, best first."""
    chosen: list[tuple[_Candidate, frozenset[str]]] = []
    bags = [(score, c, frozenset(words.words(c.unit.text.lower()))) for score, c in scored]
    while bags and len(chosen) < MAX_QUOTES:
        ranked = [
            (score - _REPETITION_COST * max((_similarity(bag, b) for _, b in chosen), default=0.0), i)
            for i, (score, _, bag) in enumerate(bags)
        ]
        worth, best = max(ranked, key=lambda pair: (pair[0], -pair[1]))
        if chosen and worth < _WORTH_ADDING * scored[0][0]:
            break
        _, candidate, bag = bags.pop(best)
        if not any(_repeats(candidate, bag, other, b) for other, b in chosen):
            chosen.append((candidate, bag))
    return [candidate for candidate, _ in chosen]


def _repeats(one: _Candidate, bag: frozenset[str], other: _Candidate, other_bag: frozenset[str]) -> bool:
    same_part = one.passage is other.passage and one.part == other.part
    overlaps = same_part and one.unit.start < other.unit.end and other.unit.start < one.unit.end
    contained = len(bag & other_bag) >= 0.9 * min(len(bag), len(other_bag))
    return overlaps or contained or _similarity(bag, other_bag) > _SAME_THING


def _similarity(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other) if one or other else 1.0


def _readable(chosen: list[_Candidate]) -> list[_Candidate]:
    """Document by document, the best one's first, and in each in the order of its text."""
    order = list(dict.fromkeys(c.passage.number for c in chosen))
    return sorted(chosen, key=lambda c: (order.index(c.passage.number), c.part, c.unit.start))


def _quoted(unit: Unit) -> str:
    if unit.kind is not Kind.LIST:
        return " ".join(unit.text.split())
    lines = (" ".join(line.split()) for line in unit.text.splitlines())
    return "\n".join(line for line in lines if line)


def _joined(quotes: Sequence[Quote]) -> str:
    return _separator(quotes).join(quote.marked for quote in quotes)


def _separator(quotes: Sequence[Quote]) -> str:
    return " " if all(quote.kind is Kind.SENTENCE for quote in quotes) else "\n"


def _overlap(said: str, quote: str) -> int:
    """How many characters of the quote the text ends with, if it breaks off inside it after some words; else 0."""
    least = min(16, len(quote))
    return next((n for n in range(len(quote) - 1, least - 1, -1) if said.endswith(quote[:n])), 0)


def _normalised(text: str) -> str:
    return " ".join(text.split()).casefold()


def _quality(match: Match | None, term: int) -> float:
    return match.quality.get(term, 0.0) if match is not None else 0.0


def _better(one: Match | None, other: Match | None) -> Match | None:
    if one is None or other is None:
        return one or other
    quality = {i: max(_quality(one, i), _quality(other, i)) for i in one.quality.keys() | other.quality.keys()}
    return Match(quality, one.exact | other.exact)


def _written_in(document: GroundingPassage) -> Language:
    if document.language:
        return "vi" if document.language.lower().startswith("vi") else "en"
    return language.detect(document.text[:_DETECTED_CHARACTERS]) or "en"


def _most_common(languages: Sequence[Language]) -> Language:
    return "vi" if 2 * sum(language == "vi" for language in languages) > len(languages) else "en"


_DIGIT = re.compile(r"\d")
_FINISHED = re.compile(r"(?:[.!?…:]|\[\d+\])[\"'”’»)\]*_]*$")

_NOTHING_MORE: dict[Language, str] = {
    "vi": "Các tài liệu được cung cấp không cho biết thêm.",
    "en": "The given documents say no more about this.",
}
# True whatever the other documents are written in: it speaks of the quotes alone.
_FOREIGN: dict[Language, str] = {
    "vi": "Các đoạn liên quan, trích nguyên văn bằng ngôn ngữ của tài liệu:\n\n",
    "en": "The passages that bear on the question, word for word in the language of their document:\n\n",
}
_NO_DOCUMENTS: dict[Language, str] = {
    "vi": (
        "Xin chào! Tôi là bộ trả lời có sẵn, không có mô hình ngôn ngữ: tôi chỉ trả lời bằng cách trích dẫn các tài "
        "liệu được cung cấp, mà yêu cầu này không kèm tài liệu nào. Để trò chuyện tự do, hãy khai báo một mô hình "
        "trong mục models của factory.yaml (ví dụ type: openai với base_url của một máy chủ tương thích OpenAI) rồi "
        "thêm tên của nó vào models của tuyến này."
    ),
    "en": (
        "Hello! I am the built-in engine and have no language model: I only answer by quoting documents that come "
        "with the request, and this one has none. To chat freely, declare a model under models in factory.yaml (for "
        "example type: openai with the base_url of an OpenAI-compatible server) and name it in this route's models."
    ),
}
