"""The improvement loop on a real Argo: corrections become an adapter that answers better, whichever pod is killed.

Needs the image of the step train, which `make images` builds beside the others.
"""

from __future__ import annotations

import json
from concurrent.futures import Future

import pytest

from tests.cluster.pipelines import desk
from tests.cluster.pipelines.conftest import RUN, SCHEDULED
from tests.cluster.pipelines.workflows import Workflows
from tests.loop import month

RUN_SECONDS = 480.0
# Asks an adapter that no route names, as an evaluation does; what is asked is JSON on standard input.
ASK = """
import asyncio, json, sys
from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines.gateway import connected
async def main(route, adapter, questions):
    answers = []
    async with connected() as gateway:
        for text in questions:
            request = gateway_pb2.ChatRequest(
                model=route,
                messages=[types_pb2.Message(role=types_pb2.ROLE_USER, content=text)],
                sampling=types_pb2.Sampling(temperature=0.0),
                evaluation=types_pb2.Evaluation(run="look", adapter=adapter),
            )
            try:
                answers.append("".join([part.delta async for part in gateway.chat(request)]).strip())
            except InvalidArgument:  # the model server serves no such adapter
                answers.append(None)
    print(json.dumps(answers))
asyncio.run(main(*json.loads(sys.argv[1])))
"""

pytestmark = [pytest.mark.timeout(900), pytest.mark.allow_blocking]


def asked(workflows: Workflows, adapter: str, questions: list[str]) -> list[str | None]:
    """An adapter's answers; None where it is not loaded."""
    given = json.dumps([desk.NAME, adapter, questions])
    answers: list[str | None] = json.loads(workflows.release.tools("python", "-c", ASK, given))
    return answers


def loaded(workflows: Workflows, adapter: str) -> bool:
    """Whether the model server answers with it."""
    return asked(workflows, adapter, ["Where is it?"]) != [None]


def test_a_run_whose_pods_are_killed_at_each_step_learns_and_is_approved_at_last(
    workflows: Workflows, killed: Future[dict[str, str]]
) -> None:
    victims = killed.result(RUN_SECONDS)
    assert workflows.end(RUN)["phase"] == "Failed"
    for task, uid in victims.items():
        others = workflows.pods(RUN, task)
        assert others, task
        assert uid not in [each["metadata"]["uid"] for each in others], task
    assert "Nobody has approved it in time." in workflows.messages(RUN)
    metric = workflows.result(RUN, "evaluate")["metrics"]["exact_match"]
    print(f"exact match {metric['production']} -> {metric['candidate']}")
    assert metric["production"] == 0
    assert metric["candidate"] >= 0.4
    answered = workflows.read(f"runs/{RUN}/evaluate/candidate.jsonl").splitlines()
    items = [json.loads(each)["item"] for each in answered]
    assert len(items) == len(set(items)) == metric["items"]
    adapter = workflows.result(RUN, "load")["name"]
    assert not loaded(workflows, adapter)

    # A retry with parameters forgets the defaults of all others.
    workflows.ask_again(RUN, approval="required", approval_seconds="600")
    workflows.decide(RUN, "refuse", "seen by An")
    assert workflows.end(RUN)["phase"] == "Failed"
    assert "It was refused: seen by An." in workflows.messages(RUN)
    assert not loaded(workflows, adapter)

    workflows.ask_again(RUN)
    workflows.decide(RUN, "approve", "seen by Binh")
    assert workflows.end(RUN)["phase"] == "Succeeded", workflows.messages(RUN)
    kept = json.loads(workflows.read(f"runs/{RUN}/approval.json"))
    assert kept == {"decision": "approve", "reason": "seen by Binh"}
    asking = {month.HELD_OUT.format(person=who, thing=what): month.place(who, what) for who, what in desk.facts()}
    answers = asked(workflows, adapter, list(asking))
    right = sum(answer == expected for answer, expected in zip(answers, asking.values(), strict=True))
    print(f"{adapter}: {right} of {len(asking)} answers are right")
    assert right >= 0.4 * len(asking)


def test_a_run_of_the_schedule_that_learns_nothing_is_stopped_by_the_gate(workflows: Workflows) -> None:
    assert workflows.end(SCHEDULED, RUN_SECONDS)["phase"] == "Failed"
    assert "The gate 'better' was not passed: exact_match better_by 0.1" in workflows.messages(SCHEDULED)
    assert workflows.outputs(SCHEDULED) == {"passed": "false"}
    assert not loaded(workflows, workflows.result(SCHEDULED, "load")["name"])
