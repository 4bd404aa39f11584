"""Splits: who gets which arm, what the arm changes, and what is recorded of it."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import yaml

from genaifactory.types.v1 import types_pb2
from genaifactory_common import specs
from genaifactory_common.errors import InvalidArgument, PermissionDenied
from genaifactory_common.testing import CALLER, act_as
from genaifactory_orchestrator.answers import splits
from tests.unit.orchestrator.conftest import FACTORY, MakeWorld, World

ROOT = Path(__file__).parents[3]
TESTER = replace(CALLER, permissions=(*CALLER.permissions, "evaluate"))
UNITS = 100_000
SPLIT = """
splits:
- name: trial
  route: rag
  arms:
  - {name: spare, share: 0, models: [spare], prompt: rag@1, passages: 2, tenants: [other]}
  - {name: strict, share: 0, policy: strict}
  - {name: same, share: 0}
"""
SEVERAL = (
    FACTORY.replace("prompts:\n", "prompts:\n  - {name: rag, version: 1, system: The first version.}\n")
    .replace("{name: docs}", "{name: docs, tenants: [acme, other]}")
    .replace(
        "rules: [{entities: [PII]}]}]",
        "rules: [{entities: [PII]}]}, {name: strict, rules: [{entities: [PII], input: block}]}]",
    )
    + SPLIT
)


@pytest.fixture
async def world(make_world: MakeWorld) -> AsyncIterator[World]:
    async with make_world(SEVERAL) as made:
        yield made


def split(*shares: float, name: str = "trial", unit: str = "user", **of_first: Any) -> specs.Split:
    arms = [{"name": f"arm-{number}", "share": share} for number, share in enumerate(shares)]
    return specs.Split.model_validate(
        {"name": name, "route": "rag", "unit": unit, "arms": [arms[0] | of_first, *arms[1:]]}
    )


def arms(given: specs.Split, count: int = UNITS, tenant: str = "acme") -> list[str]:
    return [splits.assigned(given, tenant, splits.Unit(f"user-{n}", "", f"req-{n}")) for n in range(count)]


def to(share: str, text: str = SEVERAL) -> specs.Factory:
    """The document in which the arm of this name has all units."""
    return specs.parse(text.replace(f"name: {share}, share: 0", f"name: {share}, share: 1"))


def test_each_arm_gets_its_share_of_the_units() -> None:
    found = Counter(arms(split(0.01, 0.2, 0.5)))
    for name, share in (("arm-0", 0.01), ("arm-1", 0.2), ("arm-2", 0.5), ("stable", 0.29)):
        deviation = math.sqrt(share * (1 - share) / UNITS)
        assert found[name] / UNITS == pytest.approx(share, abs=4 * deviation), name


def test_no_unit_gets_an_arm_without_a_share_and_all_get_one_with_the_whole() -> None:
    assert set(arms(split(0, 0), 1000)) == {"stable"}
    assert set(arms(split(0, 1), 1000)) == {"arm-1"}
    assert set(arms(split(*[0.1] * 10), 1000)) == {f"arm-{n}" for n in range(10)}


def test_an_arm_that_grows_keeps_its_units_and_takes_them_from_the_stable_one_alone() -> None:
    before = arms(split(0.2, 0.1), 20_000)
    for share in (0.15, 0.4, 0.8):
        after = arms(split(0.2, share), 20_000)
        moved = {(old, new) for old, new in zip(before, after, strict=True) if old != new}
        assert moved == {("stable", "arm-1")}
        before = after


def test_two_splits_and_two_tenants_are_independent() -> None:
    first = arms(split(0.5), 20_000)
    for other in (arms(split(0.5, name="other"), 20_000), arms(split(0.5), 20_000, tenant="other")):
        same = sum(one == two for one, two in zip(first, other, strict=True)) / 20_000
        assert same == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / 20_000))


def test_the_assignment_stays_the_same_in_every_process_and_release() -> None:
    given = split(0.6, 0.2, name="prompt-3")
    named = {user: splits.assigned(given, "acme", splits.Unit(user, "", "r")) for user in ("u1", "u2", "anna")}
    assert named == {"u1": "arm-1", "u2": "stable", "anna": "arm-0"}


@pytest.mark.parametrize("unit", ["user", "conversation"])
def test_the_unit_decides_and_without_it_the_other_one_and_then_the_request(unit: str) -> None:
    def found(**fields: str) -> list[str]:
        given = {"user": "", "conversation_id": "", **fields}
        return [
            splits.assigned(split(0.5, unit=unit), "acme", splits.Unit(**{**given, varied: f"{varied}-{n}"}))
            for n in range(200)
        ]

    own, other = ("user", "conversation_id") if unit == "user" else ("conversation_id", "user")
    for varied in (other, "request_id"):
        fixed = {"user": "", "conversation_id": "", "request_id": "r", own: "kept"}
        assert (
            len(
                {
                    splits.assigned(split(0.5, unit=unit), "acme", splits.Unit(**fixed | {varied: str(n)}))
                    for n in range(99)
                }
            )
            == 1
        )
    for varied, fixed in ((own, {other: "b", "request_id": "r"}), (other, {"request_id": "r"}), ("request_id", {})):
        assert len(set(found(**fixed))) == 2, varied


def test_a_tenant_that_an_arm_lists_always_gets_it() -> None:
    given = split(0, 1, tenants=["listed"])
    assert set(arms(given, 100, tenant="listed")) == {"arm-0"}
    assert set(arms(given, 100)) == {"arm-1"}


async def test_an_arm_answers_with_its_models_prompt_and_passages_and_is_recorded(world: World) -> None:
    world.source.replace(to("spare"))
    request = world.request(user="anna")
    (route,) = [event.route for event in (await world.send(request)).events if event.HasField("route")]
    assert (route.split, route.arm, route.model, route.prompt_version) == ("trial", "spare", "spare", "rag@1")
    (sent,) = world.modelserver.requests
    assert sent.model == "spare"
    assert sent.conversation.messages[0].content.startswith("The first version.")
    assert [search.limit for search in world.retriever.searches] == [2]
    record = await world.recorded(request.request_id)
    assert (record.split, record.arm, record.arm_chosen) == ("trial", "spare", False)
    assert (record.model, record.prompt_version) == ("spare", "rag@1")


async def test_the_stable_arm_and_a_route_without_a_split_are_recorded_as_such(world: World) -> None:
    for fields, expected in (({}, ("trial", "stable")), ({"route": "chat"}, ("", ""))):
        request = world.request(**fields)
        await world.send(request)
        record = await world.recorded(request.request_id)
        assert (record.split, record.arm) == expected


async def test_a_request_that_fails_names_its_arm(world: World) -> None:
    world.source.replace(to("strict"))
    world.safety.block = ("leave",)
    _, record = await world.failure()
    assert (record.split, record.arm) == ("trial", "strict")


@pytest.mark.parametrize("arm", ["strict", "same"])
async def test_no_arm_is_answered_from_the_cache_of_another(world: World, arm: str) -> None:
    for _ in range(2):
        stable = await world.ask()
    assert stable.done.cached
    world.source.replace(to(arm))
    assert not (await world.ask()).done.cached
    again = await world.ask()
    assert again.done.cached
    assert {verdict.policy for verdict in again.verdicts} == {"strict" if arm == "strict" else "default"}


async def test_the_stable_arm_is_not_answered_from_what_the_route_cached_before_the_split(world: World) -> None:
    split = world.source.current
    world.source.replace(split.model_copy(update={"splits": ()}))
    for _ in range(2):
        before = await world.ask()
    assert before.done.cached
    world.source.replace(split)
    assert not (await world.ask()).done.cached
    assert (await world.ask()).done.cached


async def test_a_tester_chooses_the_arm_and_the_record_says_so(world: World) -> None:
    act_as(TESTER)
    for arm, model in (("spare", "spare"), ("stable", "small")):
        request = world.request(arm=arm)
        assert (await world.send(request)).done.model == model
        record = await world.recorded(request.request_id)
        assert (record.split, record.arm, record.arm_chosen) == ("trial", arm, True)


async def test_a_caller_without_the_permission_cannot_choose_an_arm(world: World) -> None:
    for arm in ("spare", "nowhere"):
        with pytest.raises(PermissionDenied, match="'evaluate'"):
            await world.ask(arm=arm)
    assert not world.modelserver.requests


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"arm": "nowhere"}, "has no arm 'nowhere'; its arms are: stable, spare, strict, same."),
        ({"arm": "spare", "route": "chat"}, "The route 'chat' has no arm 'spare'; it has no split."),
        ({"arm": "x" * 200}, "'arm' must be the name of an arm"),
        ({"arm": "spare", "evaluation": types_pb2.Evaluation(run="e")}, "'arm' is not allowed in an evaluation"),
    ],
)
async def test_a_wrong_arm_is_refused(world: World, fields: dict[str, Any], problem: str) -> None:
    act_as(TESTER)
    with pytest.raises(InvalidArgument) as raised:
        await world.ask(**fields)
    assert problem in raised.value.message
    assert raised.value.field == "arm"
    assert not world.modelserver.requests


async def test_an_evaluation_asks_the_route_as_it_stands(world: World) -> None:
    act_as(TESTER)
    world.source.replace(to("spare"))
    request = world.request(evaluation=types_pb2.Evaluation(run="e"))
    assert (await world.send(request)).done.model == "small"
    record = await world.recorded(request.request_id)
    assert (record.split, record.arm, record.prompt_version) == ("", "", "rag@2")


async def test_answers_are_counted_by_arm_and_those_of_testers_nowhere(world: World) -> None:
    async def counted() -> list[float]:
        rag = {"route": "rag", "outcome": "answered"}
        arms = [{"split": "trial", "arm": arm, "outcome": "answered"} for arm in ("stable", "same")]
        found = [("genaifactory_answers_total", rag), *(("genaifactory_arm_answers_total", arm) for arm in arms)]
        values = [await asyncio.to_thread(prometheus_client.REGISTRY.get_sample_value, *each) for each in found]
        return [value or 0.0 for value in values]

    before = await counted()
    act_as(TESTER)
    await world.ask(arm="same")
    assert await counted() == before
    await world.ask()
    world.source.replace(to("same"))
    for _ in range(2):
        await world.ask()
    assert [now - then for now, then in zip(await counted(), before, strict=True)] == [3, 1, 2]
    await world.ask(route="chat")
    assert [now - then for now, then in zip(await counted(), before, strict=True)] == [3, 1, 2]


def test_the_documented_split_can_be_added_to_the_default_document() -> None:
    (example,) = [block for block in (ROOT / "docs/splits.md").read_text().split("```") if block.startswith("yaml\n")]
    default = (ROOT / "services/local/genaifactory_local/factory.yaml").read_text()
    factory = specs.parse(default + example.removeprefix("yaml\n"))
    (given,) = factory.splits
    route = factory.route(given.route)
    assert route is not None
    assert [arm.applied(route).passages for arm in given.arms] == [8]
    assert yaml.safe_load(example.removeprefix("yaml\n"))["splits"][0]["name"] == given.name
