"""The claims of an answer, and how far a passage supports one: its content words, numbers and names.

Every sentence is a claim, after Es et al., "RAGAS: Automated Evaluation of Retrieval Augmented Generation", 2024, which
has a model take the claims apart. What is compared is written, so a claim that negates a passage in its own words looks
supported.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from genaifactory_common.english import FUNCTION_WORDS
from genaifactory_pipelines.evaluation import words

_SENTENCE = re.compile(r"(?<=[.!?…;])\s+|\n+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_THOUSANDS = re.compile(r"\d{1,3}([.,])\d{3}(?:\1\d{3})*")
_NUMERALS = {
    numeral: str(value)
    for value, numerals in enumerate(
        (
            "two second hai",
            "three third ba",
            "four fourth bốn tư",
            "five fifth năm",
            "six sixth sáu",
            "seven seventh bảy",
            "eight eighth tám",
            "nine ninth chín",
            "ten tenth mười",
            "eleven",
            "twelve",
        ),
        start=2,
    )
    for numeral in numerals.split()
}
"""Without "one" and "một", which are articles too."""
_AMBIGUOUS = frozenset({"năm", "tư", "second"})
"""Also "year", "private" and a unit of time: a passage with one may mean the number, a claim need not."""
_FUNCTION_WORDS = FUNCTION_WORDS | frozenset(
    """
    và là của có được các những một này đó thì mà ở trong với cho khi nếu phải bạn tôi chúng không đã sẽ đang cũng như
    từ đến trên dưới ra vào vì nên hay hoặc mỗi mọi bị bởi rằng theo tại về còn rất để
    """.split()  # noqa: SIM905  # a list of words reads as a text
)
_WEIGHT_OF_MEANING = 0.4

Alike = Callable[[str, str], float]
"""The similarity of two texts' meaning, at most 1."""

SUPPORTED = 0.65
"""The least support of a claim that counts as supported; chosen on tests/data/claims.jsonl (docs/evaluation.md)."""


@dataclass(frozen=True)
class Claim:
    """A sentence, and what has to be found of it."""

    text: str
    content: frozenset[str]
    numbers: frozenset[str]
    names: frozenset[str]


def of(answer: str) -> list[Claim]:
    """The claims of an answer: its sentences that state something. Questions and sentences of function words do not."""
    found = [_claim(text) for text in sentences(answer) if not text.endswith("?")]
    return [claim for claim in found if claim.content]


def sentences(text: str) -> list[str]:
    """The sentences of a text, without marks of citations; a line break ends one."""
    return [part for part in map(str.strip, _SENTENCE.split(words.without_citations(text))) if part]


def windows(passage: str) -> list[str]:
    """What a claim may rest on: each sentence of a passage, and each with the one after it."""
    found = sentences(passage)
    return [*found, *(f"{one} {other}" for one, other in itertools.pairwise(found))]


def support(claim: Claim, evidence: Sequence[str], alike: Alike | None = None, *, known: str = "") -> float:
    """How far the best of the windows supports a claim, 0 to 1; 0 where a number or a name of it is not there.

    alike: None: words alone count. known: a text whose names the claim may use: the question.
    """
    everything = frozenset(word for window in evidence for word in words.of(window))
    if claim.names - everything - frozenset(words.of(known)):
        return 0.0
    return max((_support(claim, window, alike) for window in evidence), default=0.0)


def _support(claim: Claim, window: str, alike: Alike | None) -> float:
    if claim.numbers - _numbers(window, of_claim=False):
        return 0.0
    written = len(claim.content & frozenset(_content(window))) / len(claim.content)
    if alike is None:
        return written
    return (1 - _WEIGHT_OF_MEANING) * written + _WEIGHT_OF_MEANING * max(0.0, alike(claim.text, window))


def _claim(text: str) -> Claim:
    _, *later = text.split()  # the first word begins with a capital in any case
    names = frozenset(word for part in later if part[0].isupper() for word in words.of(part))
    return Claim(text, frozenset(_content(text)), _numbers(text, of_claim=True), names)


def _content(text: str) -> Iterable[str]:
    """The words that name something; numbers are compared by themselves."""
    return (word for word in words.of(text) if word not in _FUNCTION_WORDS and not word[0].isdigit())


def _numbers(text: str, *, of_claim: bool) -> frozenset[str]:
    written = {_plain(number) for number in _NUMBER.findall(text)}
    numerals = {word for word in words.of(text) if word in _NUMERALS and not (of_claim and word in _AMBIGUOUS)}
    return frozenset(written | {_NUMERALS[word] for word in numerals})


def _plain(number: str) -> str:
    """Without separators of thousands, and with a point before decimals."""
    if _THOUSANDS.fullmatch(number):
        return re.sub("[.,]", "", number)
    return number.replace(",", ".")
