"""Masks: the placeholders that replace a guardrail's findings in a text, and the question without them.

Guardrails write them and models read them; searches leave them out, since no document holds them.
"""

from __future__ import annotations

import re

# Every entity type that is masked has more than one word: "<HTML>" in a question is no mask.
_MASK = re.compile(r"<[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+>")
_CLAUSE_END = re.compile(r"(?<=[.,;:!?\n])\s+")
# At least so many words count as a question without a question mark.
_WORDS_OF_A_QUESTION = 4


def mask(entity_type: str) -> str:
    """The placeholder of an entity: "<EMAIL_ADDRESS>"."""
    return f"<{entity_type}>"


def question_without_masks(text: str) -> str:
    """The question without masks, and without clauses that only introduce one ("My mail is <EMAIL_ADDRESS>, …").

    A clause with a mask stays when it is the question itself, or when nothing else is asked. May be empty.
    """
    if not _MASK.search(text):
        return text
    clauses = _CLAUSE_END.split(text)
    others = " ".join(clause for clause in clauses if clause.endswith("?") or not _MASK.search(clause))
    if "?" in others or len(others.split()) >= _WORDS_OF_A_QUESTION:
        text = others
    left = " ".join(_MASK.sub(" ", text).split())
    return left if any(character.isalnum() for character in left) else ""
