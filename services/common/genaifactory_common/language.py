"""Detects Vietnamese, with or without diacritics, and English: in a question of a few words, or in a text."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from genaifactory_common.english import FUNCTION_WORDS

Language = Literal["vi", "en"]

_WORD = re.compile(r"[^\W\d_]+")
# Letters and tone marks that no other language in Latin script combines: ă đ ơ ư, hook above, dot below.
_VIETNAMESE = re.compile("[ăđơư\u0309\u0323]|[\u0302\u0306\u031b][\u0300\u0301\u0303]")
_MARKS = re.compile("[\u0300\u0301\u0302\u0303\u0306\u0309\u031b\u0323]")
_SYLLABLE = re.compile(r"(?:ngh?|nh|ch|gh|gi|kh|ph|qu|th|tr|[bcdghklmnprstvx])?[aeiouy]{1,3}(?:ch|n[gh]?|[cmpt])?")
# Syllables as they are typed without diacritics. Some are English words too (hang, dong, mat), so one alone decides
# nothing.
_BARE_VIETNAMESE = frozenset(
    """
    khong cua duoc nhung va cac mot cho nay trong nhu voi khi thi neu phai lam nao gi bang toi muon biet dung tai theo
    vao dau truoc nguoi viec thong tinh cach tu khoi cai dat phan vung nghi phep bao nhieu nhan luong duyet thang ngay
    gio lau xin chao giup huy quen mat khau dien thoai hoan tien chinh sach ho tro tra hang cong ty dia hop thu nhom tay
    tom tat huong dan moi nuoc minh chung hoac nen vi sao sau vay
    """.split()  # noqa: SIM905  # a list of words reads as a text
)
# Pairs of syllables of which one or both are also English words.
_BARE_PAIR = re.compile(r"\b(?:la gi|the nao|o dau|cam on|thi sao|bao lau|ban hang|may in)\b")
# The smallest shares: an English sentence may contain a Vietnamese name, a Vietnamese one an English product name.
_LEAST_MARKED, _LEAST_BARE, _LEAST_ENGLISH = 0.12, 0.25, 0.08
_SAMPLE_CHARACTERS = 4000


def detect(text: str) -> Language | None:
    """The language of a text's beginning; None if undetected: a number, a lone name, another language."""
    composed = unicodedata.normalize("NFC", text[:_SAMPLE_CHARACTERS])
    written = _WORD.findall(composed)
    words = [word.lower() for word in written]
    if not words:
        return None
    english = sum(word in FUNCTION_WORDS for word in words)
    sure = [_is_vietnamese(word) for word in words]
    counts = any(sure) or len(words) <= 4
    marked = [is_sure or (counts and _may_be_vietnamese(word)) for is_sure, word in zip(sure, words, strict=True)]
    if sum(marked) / len(words) >= _LEAST_MARKED:
        names = sum(is_marked and word[0].isupper() for is_marked, word in zip(marked[1:], written[1:], strict=True))
        return "en" if english > sum(marked) - names else "vi"
    bare = sum(word in _BARE_VIETNAMESE for word in words) + 2 * len(_BARE_PAIR.findall(composed.lower()))
    if bare > max(english, 1) and bare / len(words) >= _LEAST_BARE:
        return "vi"
    return "en" if english / len(words) >= _LEAST_ENGLISH else None


def nearest(text: str) -> Language | None:
    """As `detect`, but English for undetected ASCII: headings and key words have no function words."""
    found = detect(text)
    if found is None and text.isascii() and _WORD.search(text):
        return "en"
    return found


def of_reply(text: str) -> Language:
    """The language in which to reply to a text; English where it cannot be detected."""
    return detect(text) or "en"


def _is_vietnamese(word: str) -> bool:
    return not word.isascii() and bool(
        _VIETNAMESE.search(word) or _VIETNAMESE.search(unicodedata.normalize("NFD", word))
    )


def _may_be_vietnamese(word: str) -> bool:
    """Whether it is a syllable of Vietnamese form with one mark that other languages have too (là, có; French où)."""
    if word.isascii() or _is_vietnamese(word):
        return False
    decomposed = unicodedata.normalize("NFD", word)
    return len(_MARKS.findall(decomposed)) == 1 and _SYLLABLE.fullmatch(_MARKS.sub("", decomposed)) is not None
