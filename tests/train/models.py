"""Models with the step's adapters, by transformers and PEFT alone: what they answer, and how likely an answer is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from genaifactory_pipelines.datasets.contract import Example


class Asked:
    """A model, with or without an adapter."""

    def __init__(self, base: Path, adapter: Path | None = None) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        self._model = AutoModelForCausalLM.from_pretrained(base)
        if adapter is not None:
            self._model = PeftModel.from_pretrained(self._model, adapter)
        self._model.eval()

    def prompt(self, example: Example) -> list[int]:
        """The tokens that the engine gets for the messages before the answer."""
        messages = [message.model_dump() for message in example.messages[:-1]]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.tokens(text)

    def tokens(self, text: str) -> list[int]:
        """Without special tokens, but those that the text holds."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def answer(self, example: Example) -> str:
        """Greedy, to the token that ends it."""
        prompt = torch.tensor([self.prompt(example)])
        written = self._model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, do_sample=False
        )
        return str(self._tokenizer.decode(written[0, prompt.shape[1] :], skip_special_tokens=True)).strip()

    def right(self, examples: Sequence[Example]) -> int:
        """How many are answered word for word."""
        return sum(self.answer(example) == example.output for example in examples)

    def losses(self, example: Example, output: str) -> Any:
        """Minus the log of the probability of each token of an output and its end, after the prompt."""
        prompt = self.prompt(example)
        answer = self.tokens(f" {output}</s>")
        with torch.no_grad():
            logits = self._model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        return torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="none")

    def loss(self, examples: Sequence[Example]) -> float:
        """Of a batch: the mean over all tokens of the answers."""
        return float(torch.cat([self.losses(example, example.output) for example in examples]).mean())

    def margin(self, examples: Sequence[Example]) -> float:
        """By how much an output is likelier than the rejected one: the mean of log p(output) - log p(rejected)."""
        margins = [
            float(self.losses(example, example.rejected).sum() - self.losses(example, example.output).sum())
            for example in examples
        ]
        return sum(margins) / len(margins)
