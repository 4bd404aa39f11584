"""RecordFeedback: stored once, joined within the tenant, before or after its interaction."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_common import bounds, testing
from genaifactory_common.errors import Conflict, InvalidArgument, PermissionDenied, TooLarge
from genaifactory_common.testing import struct
from genaifactory_monitor.store import MAX_FEEDBACK_PER_INTERACTION
from tests.unit.monitor.conftest import Monitor, make_interaction

UP = monitor_pb2.RATING_UP


async def test_feedback_is_joined_whether_it_came_before_or_after_its_interaction(monitor: Monitor) -> None:
    testing.act_as()
    assert not await monitor.feedback(feedback_id="f1", request_id="a", rating=monitor_pb2.RATING_DOWN)
    await monitor.record(make_interaction("a"))
    assert await monitor.feedback(
        feedback_id="f2", request_id="a", correction="Hà Nội", comment="thiếu dấu", ground_truth=struct({"label": 1.0})
    )

    (line,) = await monitor.export()
    first, second = json.loads(line)["feedback"]
    assert (first["feedback_id"], first["rating"]) == ("f1", "down")
    assert second == {
        "feedback_id": "f2",
        "time": second["time"],
        "principal": "alice",
        "rating": "unspecified",
        "correction": "Hà Nội",
        "comment": "thiếu dấu",
        "ground_truth": {"label": 1.0},
    }


async def test_what_the_gateway_accepts_is_stored(monitor: Monitor) -> None:
    testing.act_as()
    await monitor.record(make_interaction("a"))
    longest = {"correction": bounds.MAX_CORRECTION_CHARACTERS, "comment": bounds.MAX_COMMENT_CHARACTERS}
    for name, characters in longest.items():
        assert await monitor.feedback(feedback_id=name, request_id="a", **{name: "ệ" * characters})
    (line,) = await monitor.export()
    stored = {each["feedback_id"]: each for each in json.loads(line)["feedback"]}
    assert {name: len(stored[name][name]) for name in longest} == longest


async def test_feedback_that_arrives_again_is_stored_once(monitor: Monitor) -> None:
    testing.act_as()
    await monitor.record(make_interaction("a"))
    for _ in range(3):
        assert await monitor.feedback(feedback_id="f", request_id="a", rating=UP, ground_truth=struct({"x": "y"}))
    (line,) = await monitor.export()
    assert len(json.loads(line)["feedback"]) == 1


async def test_an_id_that_stands_for_other_feedback_is_a_conflict_and_the_first_stays(monitor: Monitor) -> None:
    testing.act_as()
    await monitor.record(make_interaction("a"))
    await monitor.feedback(feedback_id="f", request_id="a", rating=UP)
    with pytest.raises(Conflict, match="needs a new id") as refused:
        await monitor.feedback(feedback_id="f", request_id="a", rating=monitor_pb2.RATING_DOWN)
    assert refused.value.field == "feedback_id"
    (line,) = await monitor.export()
    assert [given["rating"] for given in json.loads(line)["feedback"]] == ["up"]


async def test_feedback_of_another_tenant_is_never_joined_and_reveals_nothing(monitor: Monitor) -> None:
    await monitor.record(make_interaction("a"))
    testing.act_as(replace(testing.CALLER, tenant="rival"))
    assert not await monitor.feedback(feedback_id="f", request_id="a", rating=UP)

    testing.act_as()
    assert await monitor.feedback(feedback_id="f", request_id="a", rating=monitor_pb2.RATING_DOWN)
    (line,) = await monitor.export()
    assert [given["rating"] for given in json.loads(line)["feedback"]] == ["down"]


async def test_an_interaction_has_a_bound_of_feedback(sqlite_monitor: Monitor) -> None:
    testing.act_as()
    for i in range(MAX_FEEDBACK_PER_INTERACTION):
        await sqlite_monitor.feedback(feedback_id=f"f{i}", request_id="a", rating=UP)
    with pytest.raises(Conflict, match="no more are accepted") as refused:
        await sqlite_monitor.feedback(feedback_id="one-more", request_id="a", rating=UP)
    assert refused.value.field == "request_id"
    await sqlite_monitor.feedback(feedback_id="f0", request_id="a", rating=UP)  # what is stored is still known


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "no feedback_id": ({"feedback_id": ""}, "feedback_id", "it is empty"),
    "long feedback_id": ({"feedback_id": "f" * 129}, "feedback_id", "at most 128"),
    "no request_id": ({"request_id": ""}, "request_id", "it is empty"),
    "nothing in it": ({"rating": 0}, "rating", "needs a rating, correction, comment or ground_truth"),
    "no such rating": ({"rating": 5}, "rating", "RATING_UP or RATING_DOWN, not 5"),
    "long correction": ({"correction": "x" * (bounds.MAX_CORRECTION_CHARACTERS + 1)}, "correction", "at most 100000"),
    "long comment": ({"comment": "x" * (bounds.MAX_COMMENT_CHARACTERS + 1)}, "comment", "at most 10000"),
    "long ground truth": ({"ground_truth": struct({"x": "y" * 70_000})}, "ground_truth", "65536 bytes"),
    "ground truth that is no JSON": ({"ground_truth": struct({"x": float("nan")})}, "ground_truth", "NaN"),
    "infinite ground truth": ({"ground_truth": struct({"x": [float("inf")]})}, "ground_truth", "NaN"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_wrong_feedback_is_refused_with_its_field(case: str, sqlite_monitor: Monitor) -> None:
    testing.act_as()
    fields, field, message = WRONG[case]
    with pytest.raises(InvalidArgument, match=message) as refused:
        await sqlite_monitor.feedback(**({"feedback_id": "f", "request_id": "a", "rating": UP} | fields))
    assert refused.value.field == field
    assert isinstance(refused.value, TooLarge) == case.startswith("long")


async def test_feedback_needs_its_permission(sqlite_monitor: Monitor) -> None:
    testing.act_as(replace(testing.CALLER, permissions=("chat",)))
    with pytest.raises(PermissionDenied, match="'feedback'"):
        await sqlite_monitor.feedback(feedback_id="f", request_id="a", rating=UP)


async def test_ground_truth_with_nul_is_kept(monitor: Monitor) -> None:
    testing.act_as()
    await monitor.record(make_interaction("a"))
    await monitor.feedback(feedback_id="f", request_id="a", ground_truth=struct({"text": "a\0b"}))
    (line,) = await monitor.export()
    assert json.loads(line)["feedback"][0]["ground_truth"] == {"text": "a\0b"}
