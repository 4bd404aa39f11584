"""Masks: what stands in a text in place of what a guardrail found, and what such a text still asks.

The guardrail writes them, the model sees them. Nothing is to be searched for by them: no document holds them.
"""

from __future__ import annotations

import re

# Every entity type that is masked has more than one word: "<HTML>" in a question is the asker's own.
_MASK = re.compile(r"<[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+>")
_CLAUSE_END = re.compile(r"(?<=[.,;:!?\n])\s+")
# So many words are a question without a question mark.
_WORDS_OF_A_QUESTION = 4


def mask(entity_type: str) -> str:
    """What stands for a found entity: "<EMAIL_ADDRESS>"."""
    return f"<{entity_type}>"


def question_without_masks(text: str) -> str:
    """The question without masks, and without clauses that only introduce one ("My mail is <EMAIL_ADDRESS>, …").

    A clause with a mask that is itself the question stays, as does one when nothing else is asked. May be empty.
    """
    if not _MASK.search(text):
        return text
    clauses = _CLAUSE_END.split(text)
    others = " ".join(clause for clause in clauses if clause.endswith("?") or not _MASK.search(clause))
    if "?" in others or len(others.split()) >= _WORDS_OF_A_QUESTION:
        text = others
    left = " ".join(_MASK.sub(" ", text).split())
    return left if any(character.isalnum() for character in left) else ""
