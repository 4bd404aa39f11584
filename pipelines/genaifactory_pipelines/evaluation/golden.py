"""The golden set: questions with the right answers, in the form of a dataset, which no training may see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genaifactory.types.v1 import types_pb2
from genaifactory_common import language
from genaifactory_pipelines.datasets import contract
from genaifactory_pipelines.datasets.contract import Example
from genaifactory_pipelines.evaluation import sql
from genaifactory_pipelines.evaluation.protocol import Item

_SHORT_WORDS, _LONG_WORDS = 8, 30


def read(path: Path) -> list[Item]:
    """The items of a file. Blocks. Raises InvalidDataset with every bad line, and InvalidArgument without a file."""
    return items(contract.read(path))


def items(examples: Sequence[Example]) -> list[Item]:
    """The items of examples: their last message is the expected answer, `lineage.documents` hold it.

    Blocks. Raises InvalidArgument for one with tables on which its expected SELECT cannot be run.
    """
    return [
        Item(
            id=example.id,
            messages=[
                types_pb2.Message(role=types_pb2.Role.Value(f"ROLE_{message.role.upper()}"), content=message.content)
                for message in example.messages[:-1]
            ],
            expected=(example.output,),
            documents=example.lineage.documents,
            tables=_checked(example),
            rejected=example.rejected,
            forbidden=example.checks.forbidden,
            paraphrases=example.checks.paraphrases,
            slices={
                "language": example.language or language.nearest(example.messages[-2].content) or "",
                "topic": example.topic,
                "length": _length(example.messages[-2].content),
            },
        )
        for example in examples
    ]


def _checked(example: Example) -> str:
    """The tables of an example."""
    tables = example.checks.tables
    if tables:
        sql.expected(example.id, tables, example.output)
    return tables


def _length(question: str) -> str:
    words = len(question.split())
    if words <= _SHORT_WORDS:
        return "short"
    return "medium" if words <= _LONG_WORDS else "long"
