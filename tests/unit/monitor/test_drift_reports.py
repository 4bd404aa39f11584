"""Reports of drift checks: stored once for each window, with a verdict, for the tenant's own eyes, and bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import prometheus_client
import pytest

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_common import channels, testing
from genaifactory_common.errors import FactoryError, InvalidArgument, PermissionDenied, TooLarge
from genaifactory_monitor import drift_reports, retention
from genaifactory_monitor.database import Database
from genaifactory_monitor.records import DriftFilter
from tests.unit.monitor.conftest import NOON, Monitor, moment

CHECKER = replace(testing.CALLER, permissions=("export", "evaluate"))
NONE, WARNING, ALARM = "DRIFT_VERDICT_NONE", "DRIFT_VERDICT_WARNING", "DRIFT_VERDICT_ALARM"
DAY = 86_400


def signal(
    name: str = "refused", *, drifted: bool = False, judged: bool = True, **fields: Any
) -> monitor_pb2.DriftSignal:
    numbers = {"statistic": 0.2, "p_value": 0.001, "adjusted_p_value": 0.01, "effect": 0.7, "least_effect": 0.2}
    labels = {"group": "outputs", "effect_name": "Cohen's h"}
    return monitor_pb2.DriftSignal(name=name, judged=judged, drifted=drifted, **(numbers | labels | fields))


def window(day: float, **fields: Any) -> monitor_pb2.DriftWindow:
    return monitor_pb2.DriftWindow(start_time=moment((day - 7) * DAY), end_time=moment(day * DAY), **fields)


def report(day: int, *, drifted: bool = False, **fields: Any) -> monitor_pb2.DriftReport:
    """On the week that ends that day after NOON, negative for before."""
    values: dict[str, Any] = {
        "report_id": f"week-{-day:03}",
        "route": "docs",
        "reference": window(day - 7, interactions=400),
        "current": window(day, interactions=200, conversations=150, questions=100),
        "needed": 2,
        "windows": 3,
        "false_discovery_rate": 0.01,
        "signals": [signal("route"), signal(drifted=drifted)],
    }
    return monitor_pb2.DriftReport(**(values | fields))


async def record(monitor: Monitor, sent: monitor_pb2.DriftReport | None) -> monitor_pb2.RecordDriftReportResponse:
    request = monitor_pb2.RecordDriftReportRequest(report=sent)
    return await channels.unary(monitor.stub.RecordDriftReport, request, timeout_seconds=20)


async def get(monitor: Monitor, **request: Any) -> monitor_pb2.GetDriftReportResponse:
    return await channels.unary(
        monitor.stub.GetDriftReport, monitor_pb2.GetDriftReportRequest(**request), timeout_seconds=20
    )


def ids(page: monitor_pb2.GetDriftReportResponse) -> list[str]:
    return [each.report_id for each in page.reports]


def name(of: monitor_pb2.DriftReport) -> str:
    return monitor_pb2.DriftVerdict.Name(of.verdict)


async def verdicts(monitor: Monitor, drifted: Sequence[bool], **fields: Any) -> list[str]:
    """Of weeks that end on following days."""
    days = range(-len(drifted), 0)
    return [
        name((await record(monitor, report(day, drifted=each, **fields))).report)
        for day, each in zip(days, drifted, strict=True)
    ]


async def test_a_report_is_stored_with_who_sent_it_and_the_verdict(monitor: Monitor) -> None:
    testing.act_as(CHECKER)
    sent = report(-1, drifted=True, tenant="beta", principal="mallory", verdict=monitor_pb2.DRIFT_VERDICT_NONE)
    stored = (await record(monitor, sent)).report
    assert (stored.tenant, stored.principal, stored.key_id) == ("acme", CHECKER.principal, CHECKER.key_id)
    assert (name(stored), stored.drifted) == (WARNING, 1)
    assert stored.time.seconds > NOON - 10**9
    (read,) = (await get(monitor)).reports
    assert read == stored
    assert list(read.signals) == list(sent.signals)
    assert (read.current, read.reference) == (sent.current, sent.reference)


async def test_an_alarm_needs_enough_drifted_windows_among_the_last(monitor: Monitor) -> None:
    testing.act_as(CHECKER)
    assert await verdicts(monitor, [True, False, True, False, False, True]) == [
        WARNING,
        NONE,
        ALARM,
        NONE,
        NONE,
        WARNING,
    ]
    alone = await verdicts(monitor, [True, False], route="chat", needed=1, windows=1)
    assert alone == [ALARM, NONE]


async def test_windows_of_another_route_or_tenant_do_not_count(monitor: Monitor) -> None:
    testing.act_as(CHECKER)
    await record(monitor, report(-3, drifted=True, report_id="a", route="chat"))
    await record(monitor, report(-3, drifted=True, report_id="b", route=""))
    testing.act_as(replace(CHECKER, tenant="beta"))
    await record(monitor, report(-3, drifted=True))
    testing.act_as(CHECKER)
    assert name((await record(monitor, report(-2, drifted=True))).report) == WARNING


async def test_a_window_that_is_judged_again_replaces_its_report_and_later_ones_do_not_count(monitor: Monitor) -> None:
    testing.act_as(CHECKER)
    for day in (-4, -2):
        await record(monitor, report(day, drifted=True))
    between = await record(monitor, report(-3, drifted=False))
    assert (name(between.report), between.report.drifted, between.replaced) == (NONE, 1, False)
    for _ in range(2):  # as when the response was lost
        again = await record(monitor, report(-4, drifted=False))
        assert (name(again.report), again.replaced) == (NONE, True)
    assert ids(await get(monitor)) == ["week-002", "week-003", "week-004"]
    assert name((await record(monitor, report(-1, drifted=True))).report) == ALARM  # with that of the second day


async def test_a_report_whose_window_has_moved_counts_once(monitor: Monitor) -> None:
    testing.act_as(CHECKER)
    for day in (-9, -8):
        again = await record(monitor, report(day, report_id="same", drifted=True))
    assert (again.report.drifted, again.replaced, name(again.report)) == (1, True, WARNING)


async def test_the_latest_comes_first_by_pages_and_by_route_and_time(monitor: Monitor) -> None:
    testing.act_as(CHECKER)
    for day in range(-7, 0):
        await record(monitor, report(day))
    await record(monitor, report(-1, report_id="all", route=""))
    assert ids(await get(monitor, page_size=1, route="docs")) == ["week-001"]
    seen, token = [], ""
    for _ in range(4):
        page = await get(monitor, page_size=2, page_token=token)
        seen += ids(page)
        token = page.next_page_token
    assert (seen, token) == (["week-001", "all", *(f"week-{day:03}" for day in range(2, 8))], "")
    assert ids(await get(monitor, route="")) == ["all"]
    since = {"ended_since": moment(-4 * DAY), "ended_before": moment(-2 * DAY)}
    assert ids(await get(monitor, **since)) == ["week-003", "week-004"]
    token = (await get(monitor, page_size=2)).next_page_token
    with pytest.raises(InvalidArgument, match="page_token must be"):
        await get(monitor, page_size=2, page_token=token, route="docs")


async def test_another_tenants_reports_are_for_operators_alone(sqlite_monitor: Monitor) -> None:
    testing.act_as(CHECKER)
    await record(sqlite_monitor, report(-1))
    testing.act_as(replace(CHECKER, tenant="beta"))
    assert ids(await get(sqlite_monitor)) == []
    with pytest.raises(PermissionDenied, match="only its own tenant"):
        await get(sqlite_monitor, tenant="acme")
    testing.act_as(replace(CHECKER, tenant="beta", permissions=("export", "operate")))
    assert ids(await get(sqlite_monitor, tenant="acme")) == ["week-001"]


async def test_a_key_that_may_only_read_cannot_write_a_verdict(sqlite_monitor: Monitor) -> None:
    """What reads verdicts acts on them."""
    testing.act_as(replace(CHECKER, permissions=("export",)))
    with pytest.raises(PermissionDenied, match="has no permission 'evaluate'"):
        await record(sqlite_monitor, report(-1))
    assert ids(await get(sqlite_monitor)) == []


LATE = monitor_pb2.DriftWindow(start_time=moment(0), end_time=moment(10**8))
BACKWARDS = monitor_pb2.DriftWindow(start_time=moment(1), end_time=moment(0))


@pytest.mark.parametrize(
    ("fields", "field", "problem"),
    [
        ({"report_id": ""}, "report_id", "must have 1 to 128 characters"),
        ({"report_id": "x" * 129}, "report_id", "at most 128"),
        ({"route": "What is my salary?"}, "route", "the name of a route"),
        ({"current": None}, "current.start_time", "a moment in the years"),
        ({"current": LATE}, "current.end_time", "more than a day ahead"),
        ({"reference": BACKWARDS}, "reference.end_time", "must be after"),
        ({"reference": window(0, interactions=10**16)}, "reference.interactions", "must be 0 to"),
        ({"windows": 0}, "windows", "must be 1 to 100, not 0"),
        ({"windows": 101}, "windows", "must be 1 to 100, not 101"),
        ({"needed": 4}, "needed", "must be 1 to 3, not 4"),
        ({"false_discovery_rate": float("nan")}, "false_discovery_rate", "must be 0 to 1"),
        ({"signals": []}, "signals", "The number of report.signals must be 1 to 100"),
        ({"signals": [signal(f"s{i}") for i in range(101)]}, "signals", "1 to 100, not 101"),
        ({"signals": [signal(), signal()]}, "signals", "a name of its own"),
        ({"signals": [signal(""), signal()]}, "signals[0].name", "1 to 64 letters"),
        ({"signals": [signal(group="Tôi hỏi gì?")]}, "signals[0].group", "1 to 64 letters"),
        ({"signals": [signal(effect_name="\x1b[31m")]}, "signals[0].effect_name", "1 to 64 letters"),
        ({"signals": [signal(p_value=1.5)]}, "signals[0].p_value", "must be 0 to 1"),
        ({"signals": [signal(adjusted_p_value=-0.1)]}, "signals[0].adjusted_p_value", "must be 0 to 1"),
        ({"signals": [signal(effect=float("inf"))]}, "signals[0].effect", "must be"),
        ({"signals": [signal(statistic=float("nan"))]}, "signals[0].statistic", "must be"),
        ({"signals": [signal(drifted=True, judged=False)]}, "signals[0].drifted", "false where judged is"),
        ({"signals": [signal(detected_time=moment(-(10**10)))]}, "signals[0].detected_time", "a moment in the years"),
    ],
)
async def test_a_wrong_report_is_refused_with_its_field(
    sqlite_monitor: Monitor, fields: dict[str, Any], field: str, problem: str
) -> None:
    testing.act_as(CHECKER)
    values: dict[str, Any] = {"report_id": "r"} | fields
    with pytest.raises((InvalidArgument, TooLarge), match=problem) as refused:
        await record(sqlite_monitor, report(-1, **values))
    assert refused.value.field == f"report.{field}"
    assert ids(await get(sqlite_monitor)) == []


async def test_a_request_without_a_report_or_with_a_wrong_filter_is_refused(sqlite_monitor: Monitor) -> None:
    testing.act_as(CHECKER)
    with pytest.raises(InvalidArgument, match="report_id must have"):
        await record(sqlite_monitor, None)
    with pytest.raises(FactoryError, match="page_size must be 1 to 500"):
        await get(sqlite_monitor, page_size=501)
    with pytest.raises(InvalidArgument, match="ended_before must be after"):
        await get(sqlite_monitor, ended_since=moment(0), ended_before=moment(0))
    with pytest.raises(TooLarge, match="route has 300 characters"):
        await get(sqlite_monitor, route="x" * 300)


async def test_the_latest_verdict_of_each_route_is_a_metric_while_there_is_one(database: Database) -> None:
    async def shown(route: str) -> float | None:
        labels = {"tenant": "shown", "route": route}
        return await asyncio.to_thread(
            prometheus_client.REGISTRY.get_sample_value, "genaifactory_drift_verdict", labels
        )

    for day, route, drifted in ((-3, "docs", True), (-2, "docs", True), (-3, "chat", True), (-2, "chat", False)):
        sent = report(day, drifted=drifted, route=route, report_id=f"{route}{day}", tenant="shown")
        await drift_reports.record(database, sent)
    await drift_reports.record(database, report(-9, drifted=True, route="old", report_id="old", tenant="shown"))
    now = await drift_reports.show(database, 1_000, set())
    assert [await shown(route) for route in ("docs", "chat", "old")] == [2, 0, 1]
    await retention.sweep(database, (NOON - 5 * DAY) * 10**6, batch=10)
    assert await drift_reports.show(database, 1_000, now) == {("shown", "docs"), ("shown", "chat")}
    assert [await shown(route) for route in ("docs", "chat", "old")] == [2, 0, None]
    assert len(await drift_reports.show(database, 1, now)) == 1


async def test_reports_are_deleted_as_old_records_are(database: Database) -> None:
    for day in range(1, 6):
        await drift_reports.record(database, report(-day, tenant="acme"))
    await retention.sweep(database, (NOON - 3 * DAY) * 10**6, batch=1)
    left = await drift_reports.page(database, DriftFilter("acme"), limit=10)
    assert [each.report_id for each in left.reports] == ["week-001", "week-002", "week-003"]
