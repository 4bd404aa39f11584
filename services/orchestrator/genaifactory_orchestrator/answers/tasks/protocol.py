"""The protocol of tasks, through which the path of an answer uses them."""

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
    """The result of a task's look-up. Tasks with further results extend it."""

    found: RetrievedPassages | None = None
    """The passages for the answer, which are sent to the client; None for a task that looks none up."""


FindingsT = TypeVar("FindingsT", bound=Findings)


class Task(Protocol[FindingsT]):
    """Answers the requests of one kind of route; one object serves all requests concurrently.

    The path does the rest: the record, the route's timeout, the input check, the cache, the conversation. An answer is
    cached when it is one model turn that ended by itself; it is reused while `found` is the same.
    """

    async def look_up(
        self,
        plan: Plan,
        question: CheckedRequest,
        history: Sequence[types_pb2.Message],
        messages: Sequence[types_pb2.Message],
    ) -> FindingsT:
        """Looks up the facts for the answer while the input is still being checked: calls no model, changes nothing.

        messages: to be used instead of the question's: where the check masks some text, `look_up` is called again with
        the masked messages, and its earlier result is dropped. Raises FactoryError.
        """
        ...

    async def answer(self, writer: Writer, findings: FindingsT) -> Done:
        """Answers through the writer, with as many model turns as needed; raises FactoryError.

        A task's own verdicts are added to the record: `writer.record.said_verdicts`.
        """
        ...


Tasks = Mapping[specs.TaskName, Task[Any]]
