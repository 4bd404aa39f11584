"""Converts text to lexical terms: Vietnamese syllables with and without diacritics, English stems, neighbouring pairs.

Every word gives its folded form (no diacritics, English stem); a word with diacritics also gives its exact form. So
"khởi động" finds "khoi dong" and the other way round, and among passages that match both ways the exact one wins.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from zlib import crc32

import Stemmer

from genaifactory_common.english import FUNCTION_WORDS, irregular_forms

_WORD = re.compile(r"[^\W_]+")
_MARKS = re.compile("[\u0300-\u036f]")
_LONGEST_WORD = 64
# Old and new style of tone marks: "hoà" and "hòa" are one syllable. Only open syllables differ.
_TONE_STYLES = {
    **dict(zip(("oà", "oá", "oả", "oã", "oạ"), ("òa", "óa", "ỏa", "õa", "ọa"), strict=True)),
    **dict(zip(("oè", "oé", "oẻ", "oẽ", "oẹ"), ("òe", "óe", "ỏe", "õe", "ọe"), strict=True)),
    **dict(zip(("uỳ", "uý", "uỷ", "uỹ", "uỵ"), ("ùy", "úy", "ủy", "ũy", "ụy"), strict=True)),
}
_stemmers = threading.local()

# Stop words: question words and function words. Listed with diacritics, and matched without them, too.
_VIETNAMESE_STOP_WORDS = """
ai anh bao bị bởi các cách cái cần cho chị chưa có còn của cũng do đã đang đâu đây để đến đi được em gì giải thích hãy
hay hiện hoặc hỏi khi không là làm lại lên mà mình mô tả mỗi một muốn nào này nên nếu ngay nhé như nhưng những nhiêu ở
phải qua ra rằng rất sao sẽ sau tại tất cả thế thì theo tôi tới trên trong từ và vào vẫn vậy về vì việc với xin
"""
# "máy" and "vé" typed without diacritics are content words.
_STOP = (FUNCTION_WORDS - {"may", "ve"}).union(_VIETNAMESE_STOP_WORDS.split())
# Syllables that without diacritics are English words, and may be content words.
_ALSO_ENGLISH = frozenset(
    {"ban", "can", "dang", "do", "hang", "hay", "may", "me", "my", "no", "sang", "so", "ta", "tin", "to"}
)


@dataclass(frozen=True)
class Word:
    """One word of a text."""

    exact: str
    """Lower case, NFC, tone marks in one style."""
    folded: str
    """Without diacritics; an English word's stem."""

    @property
    def marked(self) -> bool:
        """Whether the word has diacritics."""
        return not self.exact.isascii()


def words(text: str) -> list[Word]:
    """The words of a text in order; numbers count, punctuation does not."""
    return [_word(token[:_LONGEST_WORD]) for token in _WORD.findall(unicodedata.normalize("NFC", text).lower())]


def is_stop(word: Word) -> bool:
    """Whether the word is a stop word."""
    return word.exact in _STOP or (not word.marked and word.exact in _bare_stop())


def informative(text: str) -> list[Word]:
    """The words of a query that are no stop words, in order."""
    return [word for word in words(text) if not is_stop(word)]


def terms(found: list[Word]) -> Counter[int]:
    """Term ids with their counts. A query and a passage share an id where they share a term."""
    counts: Counter[int] = Counter()
    for word in found:
        counts[folded_id(word)] += 1
        if word.marked:
            counts[exact_id(word)] += 1
    counts.update(pair_ids(found))
    return counts


def folded_id(word: Word) -> int:
    """The id of the word without diacritics."""
    return _id(f"f:{word.folded}")


def other_form_ids(word: Word) -> tuple[int, ...]:
    """The ids of an English word's irregular forms, which its stem does not match: of "lost" for "lose"."""
    return tuple(_id(f"f:{stem}") for stem in _irregular().get(word.folded, ()) if stem != word.folded)


def exact_id(word: Word) -> int:
    """The id of the word as written."""
    return _id(f"x:{word.exact}")


def pair_ids(found: list[Word]) -> list[int]:
    """The ids of neighbouring words, since most Vietnamese words have two syllables."""
    return [_id(f"p:{a.folded} {b.folded}") for a, b in pairwise(found)]


def fold(text: str) -> str:
    """The text without diacritics, đ as d."""
    return _MARKS.sub("", unicodedata.normalize("NFD", text)).replace("đ", "d").replace("Đ", "D")


@lru_cache(maxsize=65_536)
def _word(token: str) -> Word:
    if token.isascii():
        return Word(token, _stem(token) if token.isalpha() else token)
    exact = _TONE_STYLES.get(token[-2:])
    exact = token[:-2] + exact if exact and not token.startswith("qu") else token
    folded = unicodedata.normalize("NFC", fold(exact))
    return Word(exact, folded)


def _stem(word: str) -> str:
    # A stemmer keeps state between calls: one for each thread.
    stemmer = getattr(_stemmers, "english", None)
    if stemmer is None:
        stemmer = _stemmers.english = Stemmer.Stemmer("english")
    return str(stemmer.stemWord(word))


@lru_cache(maxsize=1)
def _irregular() -> dict[str, tuple[str, ...]]:
    return irregular_forms(_stem)


@lru_cache(maxsize=262_144)
def _id(term: str) -> int:
    return crc32(term.encode())


@lru_cache(maxsize=1)
def _bare_stop() -> frozenset[str]:
    return frozenset(folded for stop in _STOP if not stop.isascii() and (folded := fold(stop)) not in _ALSO_ENGLISH)
