"""The refusals for questions that the documents do not answer, unless a prompt has its own."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from genaifactory_common.language import Language

UNANSWERED: Mapping[Language, str] = MappingProxyType(
    {
        "en": "I do not know. The documents do not answer this question.",
        "vi": "Tôi không biết. Các tài liệu không trả lời được câu hỏi này.",
    }
)
"""By language. The extractive engine writes them, and the orchestrator recognises them."""
