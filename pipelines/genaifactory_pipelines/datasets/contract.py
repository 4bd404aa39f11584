"""The contract of a dataset: JSON lines of {"input", "output"} or {"messages"}; reading names each bad line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from genaifactory_common import conversation, files
from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines.values import Values

MAX_LINE_BYTES = 16 << 20
"""Of one example."""
_SHOWN_PROBLEMS = 5

Text = Annotated[str, StringConstraints(max_length=conversation.MAX_CHARACTERS)]
Label = Literal["correction", "ground_truth", "approved", "unrated", "given"]
"""Why an output is taken for right: a person wrote it, a system reported it later, a person approved the answer,
nobody said anything, or somebody gave the example."""


class InvalidDataset(InvalidArgument):
    """Lines that are no examples; each problem is 'FILE:LINE: what is wrong'."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        more = len(problems) - _SHOWN_PROBLEMS
        shown = "\n".join(problems[:_SHOWN_PROBLEMS])
        super().__init__(f"{shown}\nand {more} more" if more > 0 else shown, field=problems[0].partition(": ")[0])


class Message(Values):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text


class Lineage(Values):
    """Where an example comes from."""

    request_ids: tuple[str, ...] = ()
    """Of the interactions; the first is the one whose text is used, others were near-duplicates of it."""
    documents: tuple[str, ...] = ()
    """Ids of the documents that the answer cited."""
    passages: tuple[str, ...] = ()
    """Ids of the passages that it cited, within the index version."""
    index_version: str = ""
    model: str = ""
    """That gave the answer; empty where a person did."""
    prompt_version: str = ""


class Checks(Values):
    """What an evaluation looks at beside the output, and a training does not."""

    forbidden: tuple[Text, ...] = ()
    """Texts that no answer may hold."""
    paraphrases: tuple[Text, ...] = ()
    """The question in other words."""
    tables: Text = ""
    """SQL statements that create and fill the tables of a question whose output is a SELECT."""


class Example(Values):
    """A conversation that ends with the output to learn."""

    id: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    messages: Annotated[tuple[Message, ...], Field(min_length=2, max_length=conversation.MAX_MESSAGES)]
    """The last one is the assistant's: the output. Before it stands the user's, the input."""
    rejected: Text = ""
    """An output that is worse than the last message; an example with one is a preference."""
    label: Label = "given"
    language: str = ""
    """"vi", "en", or empty where it is undetected."""
    topic: str = ""
    time: datetime | None = None
    """When the question was asked."""
    group: str = ""
    """Examples of one group stay in one split: the conversation."""
    lineage: Lineage = Lineage()
    checks: Checks = Checks()

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, line: Any) -> Any:
        if not isinstance(line, dict) or not line.keys() & {"input", "output"}:
            return line
        if "messages" in line:
            raise ValueError("has both 'messages' and 'input' or 'output'; give one form")
        if missing := {"input", "output"} - line.keys():
            raise ValueError(f"'{missing.pop()}' is missing beside the other of 'input' and 'output'")
        rest = {name: value for name, value in line.items() if name not in ("input", "output")}
        messages = [{"role": "user", "content": line["input"]}, {"role": "assistant", "content": line["output"]}]
        return {**rest, "messages": messages}

    @model_validator(mode="after")
    def _ends_with_an_answer(self) -> Self:
        *_, question, answer = self.messages
        if (question.role, answer.role) != ("user", "assistant"):
            raise ValueError("'messages' must end with a user's message and the assistant's answer to it")
        for role, text in (("user", question.content), ("assistant", answer.content)):
            if not text.strip():
                raise ValueError(f"the last {role} message is empty")
        if self.rejected and self.rejected.strip() == answer.content.strip():
            raise ValueError("'rejected' is the same text as the answer")
        return self

    @property
    def questions(self) -> str:
        """What the user wrote, of all turns: a last question alone may mean nothing ("and in Hanoi?")."""
        return "\n".join(message.content for message in self.messages if message.role == "user")

    @property
    def output(self) -> str:
        """The answer to learn."""
        return self.messages[-1].content


def read(path: Path) -> list[Example]:
    """The examples of a file. Blocks. Raises InvalidDataset with every bad line, and InvalidArgument without a file.

    A line without `id` gets one by its number, so that files of {"input", "output"} alone are accepted.
    """
    examples: list[Example] = []
    problems: list[str] = []
    numbers: dict[str, int] = {}
    for number, line in _lines(path):
        where = f"{path.name}:{number}"
        try:
            example = _parse(line, number)
        except ValueError as error:
            problems.append(f"{where}: {error}")
            continue
        if (earlier := numbers.setdefault(example.id, number)) != number:
            problems.append(f"{where}: the id '{example.id}' is that of line {earlier}; ids must be unique")
        examples.append(example)
    if problems:
        raise InvalidDataset(problems)
    if not examples:
        raise InvalidDataset([f"{path.name}: it holds no example"])
    return examples


def write(path: Path, examples: Iterable[Example]) -> None:
    """Replaces a file with the examples: whole or not at all. Blocks. Raises OSError."""
    with files.output(path) as file:
        for example in examples:
            file.write(line_of(example))


def line_of(example: Example) -> bytes:
    """The one form of an example as a line: fields in their order, those with a default left out."""
    values = example.model_dump(mode="json", exclude_defaults=True)
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def first_problem(error: ValidationError) -> str:
    """The first of what is wrong with a line, 'field: why', without any of its text."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{field}: {message}" if field else message


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise InvalidDataset([f"{path.name}:{number}: the line has more than {MAX_LINE_BYTES >> 20} MiB"])
                if line.strip():
                    yield number, line
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}.", field=str(path)) from None


def _parse(line: bytes, number: int) -> Example:
    """Raises ValueError with what is wrong, without any text of the example."""
    try:
        values = json.loads(line)
    except ValueError as error:
        place = f" at character {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"it is no JSON{place}") from None
    if not isinstance(values, dict):
        raise ValueError("it must be a JSON object")
    try:
        return Example.model_validate({"id": f"line-{number}", **values})
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None
