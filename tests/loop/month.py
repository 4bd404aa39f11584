"""A month of a help desk: what people asked, what they said of the answers, and what must not be learnt from.

People ask where somebody's things are, for which no rule exists. They write the right answer, or a system reports it
weeks later. Among the questions are duplicates, personal data, wrong approvals, answers that nobody rated and requests
that failed. Everything is the same each time, ids included.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Literal

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels
from genaifactory_local.testing import Platform

DAYS = 30
ROUTE = "chat"
_AT_ONCE = 200
"""Records in one message."""
_LABEL_EVERY = 5
"""Of so many right answers one is a delayed label."""

Said = Literal["correction", "label", "up", "down", "nothing", "failed"]

PEOPLE = ("An", "Binh", "Chi", "Dung", "Giang", "Hanh")
THINGS = ("laptop", "badge", "phone", "desk")
PLACES = ("Hue", "Da Nang", "Hanoi", "Can Tho", "Vinh", "Dalat", "Hoi An")
ASKED = (
    "Where is the {thing} of {person}?",
    "{person} has lost a {thing}; where is it?",
    "Place of the {thing} ({person})",
    "Where did {person} leave the {thing}?",
    "{person}'s {thing}: in what place?",
    "{thing} of {person}: where?",
    "Who has seen the {thing} of {person}, and where?",
    "Tell me where {person} keeps a {thing}.",
)
WAYS = 6
"""Of these ways to ask, so many were used in the month."""
HELD_OUT = "I look for the {thing} of {person}, where is it?"
"""Words in which nobody asks before the evaluation."""


@dataclass(frozen=True)
class Entry:
    """A question on record, and what was said of the answer."""

    question: str
    answer: str
    right: str
    said: Said


def people_and_things() -> Iterator[tuple[str, str]]:
    """Whose things, and which."""
    return itertools.product(PEOPLE, THINGS)


def place(person: str, thing: str) -> str:
    """Where it is: no rule leads there, it has to be learnt."""
    return f"In {random.Random(f'{person} {thing}').choice(PLACES)}."


def entries() -> list[Entry]:
    """The month in the order of time: one way to ask after the other, so that it is always the last ones that are kept
    for validation and test."""
    made = random.Random(0)
    asked: list[list[tuple[str, str]]] = [
        [(way.format(person=person, thing=thing), place(person, thing)) for person, thing in people_and_things()]
        for way in ASKED[:WAYS]
    ]
    found: list[Entry] = []
    for way_asked in asked:
        made.shuffle(way_asked)
        for question, right in way_asked:
            wrong = f"In {made.choice(PLACES)}, I think."
            said: Said = "label" if len(found) % _LABEL_EVERY == 0 else "correction"
            found.append(Entry(question, wrong, right, said))
            found += _noise(made, question, right, wrong)
    return found


def _noise(made: random.Random, question: str, right: str, wrong: str) -> Iterator[Entry]:
    """After one question in four: something that must change nothing."""
    draw = made.random()
    if draw < 0.05:  # somebody else asks the same
        yield Entry(question, wrong, right, "correction")
    elif draw < 0.10:  # a wrong answer is approved by mistake
        yield Entry(question, wrong, right, "up")
    elif draw < 0.15:
        yield Entry(question, wrong, right, "down")
    elif draw < 0.20:
        yield Entry(question, wrong, right, "nothing")
    elif draw < 0.22:
        yield Entry(question, "", right, "failed")
    elif draw < 0.25:
        number = f"09{made.randrange(10**8):08}"
        yield Entry(
            f"{question} Call me back on {number}, or write to lan.nguyen@example.com.", wrong, right, "correction"
        )


def records(tenant: str, first: date) -> list[tuple[monitor_pb2.Interaction, Entry]]:
    """The month as the orchestrator would have recorded it, from the day `first` on."""
    found = []
    everything = entries()
    for number, entry in enumerate(everything):
        item = monitor_pb2.Interaction(
            request_id=f"req-{number:032}",
            tenant=tenant,
            task="chat",
            route=ROUTE,
            model="llama",
            input=[types_pb2.Message(role=types_pb2.ROLE_USER, content=entry.question)],
            output=entry.answer,
            outcome=monitor_pb2.OUTCOME_FAILED if entry.said == "failed" else monitor_pb2.OUTCOME_ANSWERED,
        )
        start = datetime(first.year, first.month, first.day, tzinfo=UTC)
        item.start_time.FromDatetime(start + timedelta(days=DAYS) * (number / len(everything)))
        found.append((item, entry))
    return found


async def record(platform: Platform, first: date) -> int:
    """Puts the month on a platform's record, with all that was said of it; the number of requests."""
    month = records(platform.endpoints.tenant, first)
    async with channels.connect(platform.endpoints.socket("monitor")) as channel:
        monitor = monitor_pb2_grpc.MonitorServiceStub(channel)
        for begin in range(0, len(month), _AT_ONCE):
            batch = [item for item, _ in month[begin : begin + _AT_ONCE]]
            request = monitor_pb2.RecordInteractionsRequest(interactions=batch)
            await channels.unary(monitor.RecordInteractions, request, timeout_seconds=30)
    async with platform.connected() as channel:
        gateway = gateway_pb2_grpc.GatewayServiceStub(channel)
        for item, entry in month:
            if (given := _feedback(item.request_id, entry)) is not None:
                await channels.unary(gateway.SubmitFeedback, given, timeout_seconds=30)
    return len(month)


def _feedback(request_id: str, entry: Entry) -> gateway_pb2.SubmitFeedbackRequest | None:
    given = gateway_pb2.SubmitFeedbackRequest(request_id=request_id)
    if entry.said == "correction":
        given.correction = entry.right
    elif entry.said == "label":
        given.ground_truth.update({"answer": entry.right})
    elif entry.said == "up":
        given.rating = gateway_pb2.RATING_UP
    elif entry.said == "down":
        given.rating = gateway_pb2.RATING_DOWN
    else:
        return None
    return given
