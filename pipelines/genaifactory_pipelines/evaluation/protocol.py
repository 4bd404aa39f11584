"""What evaluators judge, and what an evaluator does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from genaifactory.types.v1 import types_pb2
from genaifactory_pipelines.values import Values

GOLDEN = "golden"
"""The suite of the golden set's own items."""


@dataclass(frozen=True)
class Item:
    """An item of the golden set, or of a suite."""

    id: str
    messages: Sequence[types_pb2.Message]
    """The conversation, whose last message is the question."""
    expected: Sequence[str]
    """Right answers, of which one is enough; empty where there is none to compare with."""
    documents: Sequence[str] = ()
    """Ids of the documents that hold the answer; empty where it is not known."""
    slices: Mapping[str, str] = field(default_factory=dict)
    """What it counts for: language, topic, length."""
    suite: str = GOLDEN
    forbidden: Sequence[str] = ()
    """Texts that no answer may hold."""
    rejected: str = ""
    """An answer that a person found worse than the expected one; empty: none."""
    paraphrases: Sequence[str] = ()
    """The question in other words."""
    tables: str = ""
    """SQL statements that create and fill what the expected SELECT reads; empty: the answer is no SQL."""
    twin: str = ""
    """Id of the item whose answer this one's is compared with; empty: none."""
    differing: Sequence[str] = ()
    """Words in which it and its twin differ."""

    @property
    def question(self) -> str:
        """The last message."""
        return self.messages[-1].content


class Candidate(Values):
    """What answers in place of what the route says; empty: as the route says."""

    model: str = ""
    """A chat model of factory.yaml."""
    adapter: str = ""
    """Name of an adapter that the model server has loaded."""
    prompt: str = ""
    """NAME@VERSION, of the route's prompt."""
    index_version: str = ""

    def __str__(self) -> str:
        given = self.model_dump(exclude_defaults=True)
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in given.items()) or "production"


PRODUCTION = Candidate()


@dataclass(frozen=True)
class Answer:
    """What a model answered to an item, through the platform."""

    text: str
    request_id: str = ""
    """Of its record; empty for one that was blocked or failed."""
    documents: Sequence[str] = ()
    """Documents of the passages that were found, in the order of the search; one may be there more than once."""
    passages: Sequence[str] = ()
    """Texts of these passages, with their titles and headings."""
    entities: Sequence[str] = ()
    """Types of the personal data and secrets that the guardrail found in it, also where it masked them."""
    policy: str = ""
    """The guardrail's, which found them."""
    refused: bool = False
    blocked: bool = False
    error: str = ""
    """Reason code; an answer with one has no text."""
    first_token_seconds: float = 0.0
    seconds: float = 0.0
    cost_micros: int = 0

    @property
    def shown(self) -> str:
        """For people: its text, or in brackets why there is none."""
        return self.text or ("(blocked)" if self.blocked else f"({self.error or 'empty'})")


Embed = Callable[[Sequence[str]], Awaitable[Sequence[Sequence[float]]]]
"""A vector of unit length for each text. Raises FactoryError."""

Find = Callable[[Sequence[str], str], Awaitable[list[frozenset[str]]]]
"""The types of entities that a guardrail policy finds in each text. Raises FactoryError."""

Choice = Literal["first", "second", "tie"]
Compare = Callable[[str, Sequence[str], str, str], Awaitable[Choice]]
"""The better of two answers to a question, which has these right answers. Raises FactoryError."""

Support = Callable[[Sequence[str], Sequence[str]], Awaitable[Sequence[bool]]]
"""Whether passages, the second texts, support each of the claims, the first ones. Raises FactoryError."""


@dataclass(frozen=True)
class Setup:
    """What decides which items an evaluation can judge, and is known before anything is asked."""

    compared: bool = False
    """Whether there is a candidate beside production."""
    judge: bool = False
    """Whether a judge was named."""
    searched: bool = False
    """Whether the route searches documents."""
    hidden: bool = False
    """Whether system prompts are known, which no answer may repeat."""

    @property
    def without_verdict(self) -> str:
        """What a judge's comparison of both answers lacks, as of Evaluator.excludes."""
        if not self.judge:
            return "need a judge"
        return "" if self.compared else "need a candidate"


@dataclass(frozen=True)
class Evidence:
    """What an evaluator may look at beside an item and its answer."""

    answers: Mapping[str, Answer] = field(default_factory=dict)
    """All answers of the same model, by the item's id."""
    others: Mapping[str, Answer] | None = None
    """The other model's answers; None where production alone is evaluated."""
    searched: bool = False
    """Whether any answer rests on passages: without any, the route searches no documents."""
    embed: Embed | None = None
    """None where no embedding model was named."""
    compare: Compare | None = None
    """A judge; None where none was named."""
    support: Support | None = None
    """As `compare`."""
    find: Find | None = None
    policy: str = ""
    """By which answers are checked beside the route's own policy; empty: none."""
    hidden: Sequence[str] = ()
    """Templates of system prompts, which no answer may repeat."""

    @property
    def setup(self) -> Setup:
        """What it has."""
        return Setup(
            compared=self.others is not None,
            judge=self.compare is not None,
            searched=self.searched,
            hidden=bool(self.hidden),
        )


NO_EVIDENCE = Evidence()


class Evaluator(Protocol):
    """Gives an answer a score."""

    @property
    def name(self) -> str:
        """In rules of a gate, metrics and reports: lower case with underscores."""
        ...

    @property
    def suite(self) -> str:
        """The suite whose items it judges."""
        ...

    @property
    def better(self) -> Literal["higher", "lower"]:
        """Which scores are better."""
        ...

    def excludes(self, item: Item, setup: Setup) -> str:
        """Why an item of the suite gets no score, whatever the answers are; empty where it gets one.

        The reason goes on after "others": "have no checks.tables", "need a judge".
        """
        ...

    async def score(self, item: Item, answer: Answer, evidence: Evidence) -> float:
        """The score of an answer to an item that is not excluded. Raises FactoryError."""
        ...


class Suite(Protocol):
    """Questions that are asked beside the golden set, for the evaluators that judge them."""

    @property
    def name(self) -> str:
        """In parameters and as the prefix of its items' ids: lower case with underscores."""
        ...

    def items(self, golden: Sequence[Item]) -> list[Item]:
        """Its items, which may be made of the golden set's."""
        ...
