"""Examples as tokens, as the model server writes conversations: the prompt by the chat template, then the answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines.datasets.contract import Example, Message

IGNORED = -100
"""The label of a token that is not learnt (torch's ignore_index)."""


@dataclass(frozen=True)
class Encoded:
    """An example as tokens."""

    prompt: list[int]
    """As the engine gets it: up to where the answer begins."""
    answer: list[int]
    """Up to the token that ends it."""
    rejected: list[int]
    """Likewise; empty without a rejected output."""

    @property
    def tokens(self) -> int:
        """Of the prompt and the longer output."""
        return len(self.prompt) + max(len(self.answer), len(self.rejected))


class Encoder:
    """Encodes examples for one base."""

    def __init__(self, tokenizer: Any, ends: frozenset[int]) -> None:
        """ends: the tokens at which generation stops."""
        self._tokenizer = tokenizer
        self._ends = ends

    def encode(self, example: Example) -> Encoded:
        """Raises InvalidArgument when the chat template refuses the messages, or writes answers in no usable way."""
        *before, answer = example.messages
        try:
            prompt = self._text(before, add_generation_prompt=True)
            answers = [
                self._text([*before, answer.model_copy(update={"content": text})], add_generation_prompt=False)
                for text in (example.output, example.rejected)
                if text
            ]
        except (jinja2.TemplateError, ValueError, TypeError) as error:
            raise InvalidArgument(
                f"The base's chat template refuses the messages of the example '{example.id}' "
                f"({type(error).__name__}). Leave it out, or take a base whose template has its roles.",
                field="base",
            ) from None
        if not all(text.startswith(prompt) for text in answers):
            raise InvalidArgument(
                "The base's chat template writes a question otherwise when its answer follows, so what is learnt "
                "would not be what is asked for when it is served. Take a base without such a template.",
                field="base",
            )
        encoded = [self._answer(text.removeprefix(prompt)) for text in answers]
        return Encoded(self._tokens(prompt), encoded[0], encoded[1] if example.rejected else [])

    def _text(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                [{"role": message.role, "content": message.content} for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        )

    def _answer(self, text: str) -> list[int]:
        """Ends where generation does: at the template's own end token, else at one that is put there."""
        tokens = self._tokens(text)
        ends = [position for position, token in enumerate(tokens) if token in self._ends]
        if ends:
            return tokens[: ends[-1] + 1]
        return [*self._tokens(text.rstrip()), self._tokenizer.eos_token_id]

    def _tokens(self, text: str) -> list[int]:
        # The template has written the special tokens.
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def that_fit(encoded: Iterable[Encoded], most_tokens: int) -> tuple[list[Encoded], int]:
    """Those of at most so many tokens, and how many are longer."""
    everything = list(encoded)
    kept = [each for each in everything if each.tokens <= most_tokens]
    return kept, len(everything) - len(kept)


def to_imitate(encoded: Iterable[Encoded]) -> list[dict[str, list[int]]]:
    """Rows for supervised training: only the answer has labels."""
    return [
        {"input_ids": each.prompt + each.answer, "labels": [IGNORED] * len(each.prompt) + each.answer}
        for each in encoded
    ]


def to_prefer(encoded: Iterable[Encoded]) -> list[dict[str, list[int]]]:
    """Rows for DPO."""
    return [{"prompt_ids": each.prompt, "chosen_ids": each.answer, "rejected_ids": each.rejected} for each in encoded]
