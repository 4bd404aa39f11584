"""Tells Vietnamese from English, with or without diacritics."""

from __future__ import annotations

import re
import unicodedata

_WORD = re.compile(r"[^\W\d_]+")
# Letters and tone marks that no other language in Latin letters uses together: ă đ ơ ư, hook above, dot below.
_VIETNAMESE = re.compile("[ăđơư\u0309\u0323]|[\u0302\u0306\u031b][\u0300\u0301\u0303]")
_MARKS = re.compile("[\u0300\u0301\u0302\u0303\u0306\u0309\u031b\u0323]")
# Function syllables as they are typed without diacritics, none of them an English word.
_BARE_VIETNAMESE_WORDS = """
khong cua duoc nhung la va cac mot cho nay trong nhu voi khi thi neu phai lam sao nao gi bang tren toi muon biet dung
tai theo vao dau truoc nguoi viec thong tinh cach den tu khoi dong cai dat phan vung may ban can hay
"""
_BARE_VIETNAMESE = frozenset(_BARE_VIETNAMESE_WORDS.split())
_ENGLISH_WORDS = """
the of and to in is you that it for on are with as this be at have from or by not but what all were when we there an
your which their if will how do should does why where who use used using must has was its any
"""
_ENGLISH = frozenset(_ENGLISH_WORDS.split())
_SAMPLE_CHARACTERS = 4000


def detect(text: str) -> str:
    """'vi', 'en', or '' when the text gives no ground for either."""
    words = _WORD.findall(unicodedata.normalize("NFC", text[:_SAMPLE_CHARACTERS]).lower())
    if not words:
        return ""
    sure = sum(1 for word in words if _is_vietnamese(word))
    marked = sure + (sum(1 for word in words if _may_be_vietnamese(word)) if sure or len(words) <= 4 else 0)
    if marked / len(words) >= 0.12:
        return "vi"
    english = sum(1 for word in words if word in _ENGLISH)
    bare = sum(1 for word in words if word in _BARE_VIETNAMESE)
    if bare > english and bare / len(words) >= 0.25:
        return "vi"
    if english and english / len(words) >= 0.08:
        return "en"
    ascii_words = sum(1 for word in words if word.isascii())
    # Headings and key words have no function words; what is left in plain ASCII is English far more often than not.
    return "en" if ascii_words == len(words) and not bare else ""


def _is_vietnamese(word: str) -> bool:
    if word.isascii():
        return False
    return bool(_VIETNAMESE.search(word) or _VIETNAMESE.search(unicodedata.normalize("NFD", word)))


def _may_be_vietnamese(word: str) -> bool:
    """Short syllables with one plain mark (là, có, và, thì), which French and others have, too."""
    if word.isascii() or len(word) > 4 or _is_vietnamese(word):
        return False
    return len(_MARKS.findall(unicodedata.normalize("NFD", word))) == 1
