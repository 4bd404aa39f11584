"""Saying that the passages do not hold the answer, in the question's language."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from genaifactory.types.v1 import types_pb2
from genaifactory_common import refusals, specs

# Follows a refusal; not part of what is kept in the cache.
_WHILE_READING = {
    "en": " The documents are still being read ({done} of {total}); ask again when they are.",
    "vi": " Các tài liệu vẫn đang được đọc ({done}/{total}); hãy hỏi lại khi đọc xong.",
}
# Letters and tones of Vietnamese that no loan word of English carries.
_VIETNAMESE_ONLY = re.compile("[ăđơư]|\u0309|\u0323")
_MARKED = re.compile("[\u0300-\u0303]")
# Vietnamese typed without its marks: words that are frequent there and are no English words.
_VIETNAMESE_WORD = re.compile(
    r"\b(?:la gi|the nao|lam sao|bao nhieu|bao lau|tai sao|vi sao|khi nao|o dau|khong|nhung|duoc|cua|cho toi|nhu|"
    r"muon|toi|phai|lam|viec|nguoi|nghi|phep|cai dat|giup)\b"
)
_WORD = re.compile(r"\w+")


def language(text: str) -> Literal["en", "vi"]:
    """ "vi" or "en"; of a text in neither, the nearer one."""
    composed = unicodedata.normalize("NFC", text.lower())
    words = _WORD.findall(composed)
    tones = unicodedata.normalize("NFD", composed)
    marked = len(_MARKED.findall(tones))
    if _VIETNAMESE_ONLY.search(composed) or _VIETNAMESE_ONLY.search(tones) or marked * 3 > len(words):
        return "vi"
    unmarked = len(_VIETNAMESE_WORD.findall(composed))
    return "vi" if unmarked >= 2 or (unmarked == 1 and len(words) <= 4) else "en"


def text(question: str, prompt: specs.Prompt | None) -> str:
    """What to say when the passages do not hold the answer."""
    spoken = language(question)
    own = prompt.refusal if prompt else {}
    return own.get(spoken) or refusals.UNANSWERED[spoken]


def while_reading(question: str, reading: types_pb2.Reading) -> str:
    """What to add to a refusal while documents are being read, in the question's language."""
    return _WHILE_READING[language(question)].format(done=reading.documents_done, total=reading.documents_total)


def is_refusal(answer: str, prompt: specs.Prompt | None) -> bool:
    """Whether a model's answer is one of the refusals that it was told to use, and nothing more."""
    own = prompt.refusal.values() if prompt else ()
    said = _folded(answer)
    return any(said == _folded(refusal) for refusal in (*own, *refusals.UNANSWERED.values()))


def _folded(answer: str) -> str:
    return " ".join(unicodedata.normalize("NFC", answer).casefold().split()).rstrip(".")
