"""The engine without weights: answers in the question's language with sentences quoted from the given documents.

It is the embedded default and the last fallback. A token of this engine is a run of characters other than white
space, in the prompt (messages, documents with their titles) as in the answer; the mark "[1]" is one token.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Iterator, Sequence

from genaifactory_common.engine_specs import Extractive as ExtractiveSpec
from genaifactory_common.errors import ContextTooLong, InvalidArgument
from genaifactory_modelserver.engines.extractive import answering
from genaifactory_modelserver.engines.extractive.question import Question
from genaifactory_modelserver.engines.protocol import FinishReason, Generation, Model, Role, Step, Usage

TOKENS_PER_STEP = 12
"""Tokens of one streamed piece. All are ready at once, and each costs every service on its way a message."""

# A word of any language is shorter on average: what is longer than this need not be counted to be refused.
_MAX_CHARACTERS_PER_TOKEN = 16
_COUNTED_CHARACTERS = 32_768
_PIECE = re.compile(rf"(?:\s*\S+){{1,{TOKENS_PER_STEP}}}\s*")


class Extractive:
    """Quotes documents. Decodes greedily by its nature: temperature, seed and the like change nothing."""

    name = "extractive"
    activity = "It is being loaded."

    def __init__(self, spec: ExtractiveSpec) -> None:
        self._model = Model(spec.model, context_tokens=spec.context_tokens)

    async def open(self) -> None:
        """Nothing to load."""

    async def close(self) -> None:
        """Nothing to let go of."""

    def ready(self) -> bool:
        """Always."""
        return True

    def alive(self) -> bool:
        """Always."""
        return True

    def models(self) -> Sequence[Model]:
        """The one model."""
        return (self._model,)

    def serves(self, name: str) -> bool:
        """The one model."""
        return name == self._model.name

    def generate(self, request: Generation) -> AsyncGenerator[Step, None]:
        """Generates. Raises InvalidArgument for what needs a language model; ContextTooLong while iterating."""
        _refuse_what_needs_a_model(request)
        return self._generate(request)

    async def _generate(self, request: Generation) -> AsyncGenerator[Step, None]:
        prompt_tokens = 0
        for count in self._count(request):
            prompt_tokens += count
            if prompt_tokens > self._model.context_tokens:
                raise self._too_long(f"more than {self._model.context_tokens} words")
            await asyncio.sleep(0)
        begun = request.messages[-1].content if request.continue_final_message else ""
        question = Question(_turns(request))
        if any(document.text.strip() for document in request.documents):
            reader = answering.Reader(question)
            for _ in reader.read(request.documents):
                await asyncio.sleep(0)
            answer = reader.answer().after(begun)
        else:
            answer = answering.without_documents(question.spoken)
            answer = answer[len(begun) :] if answer.startswith(begun) else f"\n\n{answer}"
        answer, finish_reason = _limited(answer, request.sampling.stop, request.sampling.max_tokens)
        completion_tokens = 0
        for piece in _PIECE.findall(answer):
            completion_tokens += len(piece.split())
            yield Step(piece)
            # The next piece is made when this one is on its way; a client that went away is noticed here.
            await asyncio.sleep(0)
        yield Step(finish_reason=finish_reason, usage=Usage(prompt_tokens, completion_tokens))

    def _count(self, request: Generation) -> Iterator[int]:
        """Tokens of the prompt, in counts of about a tenth of a millisecond. Raises ContextTooLong."""
        texts = [message.content for message in request.messages] + [request.prompt or ""]
        for document in request.documents:
            texts += (document.title, *document.headings, document.text)
        characters = sum(map(len, texts))
        if characters > self._model.context_tokens * _MAX_CHARACTERS_PER_TOKEN:
            raise self._too_long(f"{characters} characters")
        count = read = 0
        for text in texts:
            for start in range(0, len(text), _COUNTED_CHARACTERS):
                end = start + _COUNTED_CHARACTERS
                count += len(text[start:end].split())
                if end < len(text) and not text[end - 1].isspace() and not text[end].isspace():
                    count -= 1  # a word that the cut goes through is counted with the next slice
                read += min(len(text), end) - start
                if read >= _COUNTED_CHARACTERS:
                    yield count
                    count = read = 0
        yield count

    def _too_long(self, size: str) -> ContextTooLong:
        return ContextTooLong(
            f"The messages and documents have {size}; the model '{self._model.name}' reads "
            f"{self._model.context_tokens} words, each of {_MAX_CHARACTERS_PER_TOKEN} characters at most on average.",
            field="messages",
        )


def _refuse_what_needs_a_model(request: Generation) -> None:
    def refuse(field: str, what: str) -> InvalidArgument:
        return InvalidArgument(f"The extractive engine only quotes documents: {what}.", field=field)

    if request.sampling.n > 1:
        raise refuse("sampling.n", "it has one answer, so n must be 1")
    if request.sampling.logprobs:
        raise refuse("sampling.logprobs", "it has no token probabilities")
    if request.output_format.kind != "text":
        raise refuse("output_format", "it writes free text alone")
    if request.tools and request.tool_choice.mode != "none":
        raise refuse("tools", "it calls no tools; leave them away or choose none")
    if request.messages and not any(message.role is Role.USER for message in request.messages):
        raise refuse("messages", "it needs a user's message to answer")


def _turns(request: Generation) -> list[str]:
    if request.prompt is not None:
        return [request.prompt]
    return [message.content for message in request.messages if message.role is Role.USER]


def _limited(answer: str, stops: Sequence[str], max_tokens: int | None) -> tuple[str, FinishReason]:
    """The answer up to the first stop text or to the last token allowed, whichever comes first."""
    found = [at for stop in stops if (at := answer.find(stop)) >= 0]
    answer = answer[: min(found)] if found else answer
    if max_tokens is not None and len(tokens := list(re.finditer(r"\s*\S+", answer))) > max_tokens:
        return answer[: tokens[max_tokens - 1].end()], FinishReason.LENGTH
    return answer, FinishReason.STOP
