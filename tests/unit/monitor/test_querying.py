"""QueryInteractions: a tenant's own interactions, newest first, page by page."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import timestamp_pb2
from hypothesis import given
from hypothesis import strategies as st

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import testing
from genaifactory_common.errors import InvalidArgument, PermissionDenied
from genaifactory_monitor import paging
from genaifactory_monitor.records import Filter, Position
from tests.unit.monitor.conftest import Monitor, make_interaction, moment

OPERATOR = replace(testing.CALLER, tenant="platform", permissions=("export", "usage", "operate"))


def ids(response: monitor_pb2.QueryInteractionsResponse) -> list[str]:
    return [item.request_id for item in response.interactions]


async def test_pages_show_everything_once_newest_first_also_at_equal_times(monitor: Monitor) -> None:
    testing.act_as()
    await monitor.record(*(make_interaction(f"r{i:02}", at=i // 4) for i in range(22)))

    seen: list[str] = []
    token = ""
    pages = 0
    while True:
        page = await monitor.query(page_size=5, page_token=token)
        seen += ids(page)
        pages += 1
        token = page.next_page_token
        if not token:
            break

    assert seen == [f"r{i:02}" for i in reversed(range(22))]
    assert pages == 5


async def test_a_full_last_page_has_no_next_page_token(monitor: Monitor) -> None:
    testing.act_as()
    await monitor.record(*(make_interaction(f"r{i}") for i in range(4)))
    first = await monitor.query(page_size=2)
    last = await monitor.query(page_size=2, page_token=first.next_page_token)
    assert (len(last.interactions), last.next_page_token) == (2, "")


async def test_records_added_between_two_pages_shift_no_page(monitor: Monitor) -> None:
    testing.act_as()
    await monitor.record(*(make_interaction(f"r{i}", at=i) for i in range(4)))
    first = await monitor.query(page_size=2)
    await monitor.record(make_interaction("later", at=99))
    second = await monitor.query(page_size=2, page_token=first.next_page_token)
    assert ids(first) + ids(second) == ["r3", "r2", "r1", "r0"]


async def test_a_page_of_long_answers_ends_before_it_is_too_big_for_a_message(monitor: Monitor) -> None:
    testing.act_as()
    for i in range(6):
        await monitor.record(make_interaction(f"r{i}", at=i, output="x" * 1_500_000))
    first = await monitor.query(page_size=500)
    rest = await monitor.query(page_size=500, page_token=first.next_page_token)
    assert 0 < len(first.interactions) < 6
    assert first.ByteSize() < 5 * 1024 * 1024
    assert ids(first)[-1] > ids(rest)[0]


# Unescaped in the JSON of a record, it would look like a verdict.
_PRETENDER = '", "action": "block", "'


def verdict(action: types_pb2.Action.ValueType, policy: str = "strict") -> types_pb2.Verdict:
    return types_pb2.Verdict(action=action, policy=policy, scanners=["pii"], direction=types_pb2.DIRECTION_INPUT)


FILTERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": ({}, ["d", "c", "b", "a"]),
    "from a moment, inclusive": ({"start_time": moment(1)}, ["d", "c", "b"]),
    "up to a moment, exclusive": ({"end_time": moment(2)}, ["b", "a"]),
    "a period": ({"start_time": moment(1), "end_time": moment(2)}, ["b"]),
    "a route": ({"route": "talk"}, ["b"]),
    "a model": ({"model": "big"}, ["c"]),
    "requests": ({"request_ids": ["a", "d", "unknown"]}, ["d", "a"]),
    "an outcome": ({"outcome": monitor_pb2.OUTCOME_FAILED}, ["d"]),
    "a key": ({"key_id": "bob"}, ["c"]),
    "those that ended since a moment": ({"ended_since": moment(2.5)}, ["d", "c", "a"]),
    "those that ended since a moment, inclusive": ({"ended_since": moment(10)}, ["a"]),
    "masked or blocked": ({"guardrail_action": types_pb2.ACTION_MASK}, ["c", "b", "a"]),
    "blocked": ({"guardrail_action": types_pb2.ACTION_BLOCK}, ["c", "a"]),
    "all at once": ({"route": "talk", "model": "big"}, []),
    "the own tenant by name": ({"tenant": "acme"}, ["d", "c", "b", "a"]),
}


@pytest.mark.parametrize("case", FILTERS)
async def test_a_filter_matches_its_interactions_only(case: str, monitor: Monitor) -> None:
    testing.act_as()
    await monitor.record(
        make_interaction("a", at=0, duration_us=10_000_000, verdicts=[verdict(types_pb2.ACTION_BLOCK)]),
        make_interaction("b", at=1, route="talk", verdicts=[verdict(types_pb2.ACTION_MASK)]),
        make_interaction(
            "c", at=2, model="big", key_id="bob", outcome=monitor_pb2.OUTCOME_BLOCKED, duration_us=1_000_000
        ),
        make_interaction(
            "d", at=3, outcome=monitor_pb2.OUTCOME_FAILED, verdicts=[verdict(types_pb2.ACTION_ALLOW, _PRETENDER)]
        ),
        make_interaction("z", at=1, tenant="rival"),
    )
    fields, expected = FILTERS[case]
    assert ids(await monitor.query(filter=monitor_pb2.InteractionFilter(**fields))) == expected


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "a page too long": ({"page_size": 501}, "page_size", "1 to 500"),
    "a period that ends before it begins": (
        {"filter": {"start_time": moment(1), "end_time": moment(1)}},
        "filter.end_time",
        "after filter.start_time",
    ),
    "a moment outside of the calendar": (
        {"filter": {"start_time": timestamp_pb2.Timestamp(seconds=-(2**62))}},
        "filter.start_time",
        "2000 to 9998",
    ),
    "an unknown outcome": ({"filter": {"outcome": 17}}, "filter.outcome", "OUTCOME_ANSWERED"),
    "an action that is none": (
        {"filter": {"guardrail_action": types_pb2.ACTION_ALLOW}},
        "filter.guardrail_action",
        "ACTION_MASK or ACTION_BLOCK",
    ),
    "an empty id": ({"filter": {"request_ids": ["a", ""]}}, "filter.request_ids[1]", "it is empty"),
    "too many ids": ({"filter": {"request_ids": ["a"] * 501}}, "filter.request_ids", "at most 500"),
    "a long route": ({"filter": {"route": "r" * 300}}, "filter.route", "at most 256"),
    "no token at all": ({"page_token": "page 2"}, "page_token", "next_page_token"),
    "a token in other letters": ({"page_token": "Đ"}, "page_token", "next_page_token"),
    "a token of nothing": ({"page_token": base64.urlsafe_b64encode(b"\0" * 30).decode()}, "page_token", "next_page"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_a_wrong_query_is_refused_with_its_field(case: str, sqlite_monitor: Monitor) -> None:
    testing.act_as()
    fields, field, message = WRONG[case]
    with pytest.raises(InvalidArgument, match=message) as refused:
        await sqlite_monitor.query(**fields)
    assert refused.value.field == field


async def test_a_list_may_leave_out_input_and_output(monitor: Monitor) -> None:
    testing.act_as()
    await monitor.record(make_interaction("a", citations=[types_pb2.Citation(number=1, title="A title")]))
    (whole,) = (await monitor.query()).interactions
    (listed,) = (await monitor.query(without_text=True)).interactions
    assert whole.input
    assert whole.output
    for name in ("input", "output", "citations"):
        whole.ClearField(name)
    assert listed == whole


async def test_a_token_of_another_filter_is_refused(sqlite_monitor: Monitor) -> None:
    testing.act_as()
    await sqlite_monitor.record(*(make_interaction(f"r{i}") for i in range(3)))
    token = (await sqlite_monitor.query(page_size=1)).next_page_token
    with pytest.raises(InvalidArgument, match="same filter"):
        await sqlite_monitor.query(page_size=1, page_token=token, filter={"model": "extractive"})


async def test_another_tenants_interactions_are_for_operators_alone(monitor: Monitor) -> None:
    await monitor.record(make_interaction("a", tenant="rival"), make_interaction("own"))

    testing.act_as()
    assert ids(await monitor.query()) == ["own"]
    for tenant in ("rival", "*", "no-such"):
        with pytest.raises(PermissionDenied, match="only its own tenant") as refused:
            await monitor.query(filter={"tenant": tenant})
        assert refused.value.field == "filter.tenant"

    testing.act_as(OPERATOR)
    assert ids(await monitor.query(filter={"tenant": "rival"})) == ["a"]
    with pytest.raises(InvalidArgument, match="tenant's name"):
        await monitor.query(filter={"tenant": "*"})


async def test_reading_interactions_needs_the_permission_export(sqlite_monitor: Monitor) -> None:
    testing.act_as(replace(testing.CALLER, role="guest", permissions=("chat", "usage", "operate")))
    with pytest.raises(PermissionDenied, match="'guest' has no permission 'export'"):
        await sqlite_monitor.query()
    with pytest.raises(PermissionDenied, match="'guest' has no permission 'export'"):
        await sqlite_monitor.export()


@given(moment_us=st.integers(0, 2**63 - 1), request_id=st.text(min_size=1, max_size=128), position=st.integers(0, 200))
def test_a_page_token_decodes_to_its_position_and_an_altered_one_is_refused(
    moment_us: int, request_id: str, position: int
) -> None:
    request_id = request_id.encode("utf-8", "replace").decode()
    filter_ = Filter("acme", model="m")
    token = paging.encode(Position(moment_us, request_id), filter_)
    assert paging.decode(token, filter_) == Position(moment_us, request_id)

    # The last letter of base64 may hold unused bits; every other letter counts.
    at = position % (len(token) - 1)
    altered = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
    with pytest.raises(InvalidArgument):
        paging.decode(altered, filter_)
