"""The normal form of text for all scanners: lookalikes become digits or letters, invisible characters are removed.

Zero-width characters, fullwidth and other styled characters, foreign digits, decomposed Vietnamese and stray
combining marks must not hide anything. Every character of the result has its offset in the original, so that a mask
covers the original.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

IGNORABLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff"
)
"""Invisible characters, as the inside of a character class."""

UNSPACED = "\u0e00-\u0e7f\u2e80-\u2fdf\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3"
"""Characters of scripts without blanks: no entity holds one, so they separate words as blanks do."""

_MAX_MARKS = 8  # on one character; further ones are ignored
_DASHES = dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d", "-")
_QUOTES = {"‘": "'", "’": "'", "“": '"', "”": '"', "´": "'"}
_BLANKS = dict.fromkeys("\t\u00a0\u2002\u2003\u2009\u202f", " ")
_SINGLE = _DASHES | _QUOTES | {"…": "."}
_TRANSLATED = str.maketrans(_SINGLE | _BLANKS)
# Characters that stay unchanged, with single blanks between them: nearly all text, which needs no work.
_STABLE = re.compile(
    "[ \n]?(?:[!-~\u00a1-\u00a7\u00a9\u00ab\u00ac\u00ae\u00b0\u00b1\u00b6\u00b7\u00bb\u00bf-\u0131"
    "\u0134-\u013e\u0141-\u0148\u014a-\u017e\u0180-\u01c3\u1e00-\u1e99\u1ea0-\u1ef9\u2022\u2190-\u21ff\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff"
    "\uac00-\ud7a3]++[ \n]?)*+"
)
_IGNORED = re.compile(rf"[{IGNORABLE}]")
_NEWLINES = frozenset("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")


@dataclass(frozen=True)
class Normalised:
    """A text in normal form."""

    text: str
    offsets: Sequence[int]
    """For each character of `text`, and for its end, the offset in the original, in code points."""

    def original(self, start: int, end: int) -> tuple[int, int]:
        """The original span of text[start:end], with all that was removed within it."""
        return self.offsets[start], self.offsets[end]


def normalise(text: str) -> Normalised:
    """The normal form of a text. Runs of blanks become one; runs with a line break become one line break."""
    if _STABLE.fullmatch(text):
        return Normalised(text, range(len(text) + 1))
    translated = text.translate(_TRANSLATED)
    if _STABLE.fullmatch(translated):
        return Normalised(translated, range(len(text) + 1))
    characters: list[str] = []
    offsets: list[int] = []
    position = 0
    while position < len(text):
        end = position + 1
        while end < len(text) and _continues(text[end]):
            end += 1
        plain = _plain(text[position:end])
        if plain.isspace() and characters and characters[-1].isspace():
            if plain == "\n":
                characters[-1] = "\n"
        else:
            characters.extend(plain)
            offsets.extend([position] * len(plain))
        position = end
    offsets.append(len(text))
    return Normalised("".join(characters), offsets)


def _continues(character: str) -> bool:
    return unicodedata.combining(character) != 0 or unicodedata.category(character) == "Me"


def _plain(cluster: str) -> str:
    """The normal form of one character with its marks: nothing, itself, or a few characters."""
    base = cluster[0]
    if _IGNORED.match(base):
        return ""
    if base in _NEWLINES:
        return "\n"
    if base.isspace():
        return " "
    if base in _SINGLE:
        return _SINGLE[base]
    digit = unicodedata.decimal(base, None)
    if digit is not None:
        return str(digit)
    composed = unicodedata.normalize("NFKC", cluster[: 1 + _MAX_MARKS])
    # A mark that does not compose is decoration: "4̲1̲1̲1̲" becomes 4111.
    return "".join(c for c in composed if not _continues(c))
