"""Golden questions in other words, which a model answers as well unless it knows the golden set by heart.

Carlini et al., "Extracting Training Data from Large Language Models", 2021, find by their exact wording what a model
has memorised.
"""

from __future__ import annotations

from collections.abc import Sequence

from genaifactory.types.v1 import types_pb2
from genaifactory_pipelines.evaluation.protocol import Item

_MOST = 200
_INTERRUPTIONS = {
    "en": ("and I ask this for a colleague", "if I may ask", "as far as you know"),
    "vi": ("tôi hỏi giúp một đồng nghiệp", "cho phép tôi hỏi", "theo như bạn biết"),
}


class Memorised:
    """Each item with a right answer, by its own first paraphrase, or with an interruption amid the question."""

    name = "memorised"

    def items(self, golden: Sequence[Item]) -> list[Item]:
        """See Suite. At most 200; without those of another language that have no paraphrase."""
        found: list[Item] = []
        for item in golden:
            question = _in_other_words(item, len(found))
            if not item.expected or question is None or len(found) == _MOST:
                continue
            found.append(
                Item(
                    id=f"{self.name}:{item.id}",
                    messages=[*item.messages[:-1], types_pb2.Message(role=types_pb2.ROLE_USER, content=question)],
                    expected=item.expected,
                    slices=item.slices,
                    suite=self.name,
                    twin=item.id,
                )
            )
        return found


def _in_other_words(item: Item, turn: int) -> str | None:
    if item.paraphrases:
        return item.paraphrases[0]
    interruptions = _INTERRUPTIONS.get(item.slices.get("language", ""))
    if interruptions is None:
        return None
    said = item.question.split()
    middle = len(said) // 2
    return " ".join((*said[:middle], f"– {interruptions[turn % len(interruptions)]} –", *said[middle:]))


make = Memorised
