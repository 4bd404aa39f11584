"""Labels: the words around a number that name its kind: "số tài khoản 0123456789", "0123456789 (STK)".

A label is a phrase of one or more syllables. It is matched without case and diacritics, because people write
"so tai khoan" as often as "số tài khoản".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from enum import Enum, auto

BEFORE_CHARACTERS = 96
"""The greatest distance of a label before its number."""
AFTER_CHARACTERS = 48
"""The greatest distance after it."""

_OTHER = (
    "don hang", "ma don", "ma van don", "van don", "hoa don", "giao dich", "phien ban", "ma san pham", "so luong",
    "ma vach", "so hieu", "seri", "hop dong", "order", "invoice", "transaction", "tracking", "shipment", "ticket",
    "version", "release", "build", "sku", "serial", "isbn", "barcode", "part number", "product code", "contract",
    "case number", "timestamp",
)  # fmt: skip

_TO_ASCII = {
    ord(character): unicodedata.normalize("NFD", character)[0].lower()
    for character in map(chr, (*range(0xC0, 0x250), *range(0x1E00, 0x1F00)))
    if unicodedata.normalize("NFD", character)[0].isascii()
} | {ord("đ"): "d", ord("Đ"): "d"}


def fold(text: str) -> str:
    """The text without case and diacritics, character for character."""
    return text.translate(_TO_ASCII).lower()


class Standing(Enum):
    """What the labels around a candidate name."""

    UNKNOWN = auto()
    NAMED = auto()
    LISTED = auto()
    """This kind, with another number in between: it may be the next of a list, or something else."""
    OTHER = auto()
    """Another kind: an order number, a version."""


class Labels:
    """The phrases that name one kind of number."""

    def __init__(self, phrases: Iterable[str]) -> None:
        """phrases: folded."""
        self._named = _phrases(phrases)

    def before(self, folded: str) -> Standing:
        """By the text up to a candidate; the nearest label decides."""
        named = _last(self._named, folded)
        other = _last(_OTHER_PATTERN, folded)
        if named > other:
            return _standing_across(folded[named:])
        # A label of another kind clears a number of suspicion, so it has to stand directly before it.
        if other >= 0 and not _APART.search(folded, other):
            return Standing.OTHER
        return _standing_across(folded[named:]) if named >= 0 else Standing.UNKNOWN

    def after(self, folded: str) -> Standing:
        """By the text from a candidate on."""
        named = self._named.search(_own_part(folded))
        return Standing.NAMED if named else Standing.UNKNOWN


def _standing_across(between: str) -> Standing:
    """How a label counts for a number that this text separates from it."""
    number = _NUMBER.search(between)
    if number is None:
        return Standing.NAMED
    return Standing.UNKNOWN if _SENTENCE_END.search(between, number.end()) else Standing.LISTED


def _own_part(folded: str) -> str:
    """The part that may label the number before it: to the sentence's end, without the label of the next number."""
    stop = re.search(r"[.;!?]\s|\n|\d", folded)
    if stop is None:
        return folded
    return folded[: max(stop.start() - 8, 0) if stop.group().isdigit() else stop.start()]


def _last(pattern: re.Pattern[str], folded: str) -> int:
    return max((match.end() for match in pattern.finditer(folded)), default=-1)


def _phrases(phrases: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(phrases, key=len, reverse=True)
    alternatives = "|".join(re.escape(phrase).replace(r"\ ", r"[\s_-]+") for phrase in longest_first)
    return re.compile(rf"(?<![a-z0-9])(?:{alternatives})(?![a-z])")


_OTHER_PATTERN = _phrases(_OTHER)
_NUMBER = re.compile(r"\d{4}")
_SENTENCE_END = re.compile(r"[.!?]\s")
_APART = re.compile(r"\d|[;!?\n]|(?<!no)\.\s")
