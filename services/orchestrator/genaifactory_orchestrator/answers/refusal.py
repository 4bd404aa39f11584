"""Refusals, for questions that the passages do not answer, in the question's language."""

from __future__ import annotations

import unicodedata

from genaifactory.types.v1 import types_pb2
from genaifactory_common import language, refusals, specs

# Follows a refusal; not stored in the cache.
_WHILE_READING = {
    "en": " The documents are still being read ({done} of {total}); ask again when they are.",
    "vi": " Các tài liệu vẫn đang được đọc ({done}/{total}); hãy hỏi lại khi đọc xong.",
}


def text(question: str, prompt: specs.Prompt | None) -> str:
    """The refusal of a question that the passages do not answer."""
    spoken = language.of_reply(question)
    own = prompt.refusal if prompt else {}
    return own.get(spoken) or refusals.UNANSWERED[spoken]


def while_reading(question: str, reading: types_pb2.Reading) -> str:
    """The addition to a refusal while documents are being read, in the question's language."""
    return _WHILE_READING[language.of_reply(question)].format(
        done=reading.documents_done, total=reading.documents_total
    )


def is_refusal(answer: str, prompt: specs.Prompt | None) -> bool:
    """Whether a model's answer is one of the refusals of its prompt or of the platform, and nothing more."""
    own = prompt.refusal.values() if prompt else ()
    said = _folded(answer)
    return any(said == _folded(refusal) for refusal in (*own, *refusals.UNANSWERED.values()))


def _folded(answer: str) -> str:
    return " ".join(unicodedata.normalize("NFC", answer).casefold().split()).rstrip(".")
