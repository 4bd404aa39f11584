"""What a task is to the path of an answer, which knows none of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from genaifactory.types.v1 import types_pb2
from genaifactory_common import specs
from genaifactory_orchestrator.answers.events import Done
from genaifactory_orchestrator.answers.request import CheckedRequest
from genaifactory_orchestrator.answers.retrieval import RetrievedPassages
from genaifactory_orchestrator.answers.routes import Plan
from genaifactory_orchestrator.answers.writer import Writer


@dataclass(frozen=True)
class Findings:
    """What a task looked up before it answers. A task with more to remember extends it."""

    found: RetrievedPassages | None = None
    """The passages that the answer rests on, which the client is shown; None for a task that looks none up."""


FindingsT = TypeVar("FindingsT", bound=Findings)


class Task(Protocol[FindingsT]):
    """How the requests of one kind of route are answered; one object serves all of them at once.

    The path has the rest: the record, the route's timeout, the check of the input, the cache, the conversation. An
    answer is stored in the cache when its one model turn ended by itself; it is taken from there while `found` is the
    same.
    """

    async def look_up(
        self,
        plan: Plan,
        question: CheckedRequest,
        history: Sequence[types_pb2.Message],
        messages: Sequence[types_pb2.Message],
    ) -> FindingsT:
        """Looks up what the answer rests on, while the input is still being checked: asks no model and changes nothing.

        messages: the question's, which it must use in their place: where the check masks some text, `look_up` is called
        again with what may pass, and what it found before is dropped. Raises FactoryError.
        """
        ...

    async def answer(self, writer: Writer, findings: FindingsT) -> Done:
        """Answers through the writer, with as many model turns as it needs; raises FactoryError.

        What a task decides itself is added to the record: `writer.record.said_verdicts`.
        """
        ...


Tasks = Mapping[specs.TaskName, Task[Any]]
