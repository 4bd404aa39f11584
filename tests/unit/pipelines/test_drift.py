"""The drift check: what makes a verdict, what earlier windows say of it, and the step from records to a report."""

from __future__ import annotations

import asyncio
import io
import json
import re
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_common.errors import FactoryError, InvalidArgument, PermissionDenied, Unavailable, Unimplemented
from genaifactory_pipelines.datasets.records import Interaction
from genaifactory_pipelines.drift import effects, embeddings, record, window
from genaifactory_pipelines.drift.protocol import Evidence, Group, TooFew, Window
from genaifactory_pipelines.drift.verdict import Verdict, judge
from genaifactory_pipelines.gateway import Gateway
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.step import RESULT, Context
from genaifactory_pipelines.steps import collect, drift
from tests.unit.pipelines.examples import START, question, recorded


def interaction(number: int, **values: Any) -> Interaction:
    return Interaction.model_validate(recorded(number, **values))


def interactions(count: int, **values: Any) -> list[Interaction]:
    return [interaction(number, **values) for number in range(count)]


def of(found: list[Interaction]) -> Window:
    return window.make(found, [], {})


class Says:
    """A signal with this evidence; without any its windows have too few values."""

    group: Group = "inputs"
    effect = effects.PSI

    def __init__(self, name: str, p_value: float | None, effect: float = 1.0) -> None:
        self.name = name
        self._evidence = None if p_value is None else Evidence(1.0, p_value, effect, f"{name} says", detected=START)

    def measure(self, reference: Window, current: Window) -> Evidence:
        """See Signal."""
        if self._evidence is None:
            raise TooFew("The current window has 3 things; 20 are needed to judge them.", field="current")
        return self._evidence


def verdict(*signals: Says, rate: float = 0.05) -> Verdict:
    one = of(interactions(3))
    return judge(signals, one, one, false_discovery_rate=rate)


def test_p_values_are_adjusted_for_the_number_of_signals_that_were_judged() -> None:
    found = verdict(Says("a", 0.02), Says("b", None), Says("c", 0.5), Says("d", 0.03), Says("e", 0.9))
    assert [round(each.adjusted, 3) for each in found.findings if each.judged] == [0.06, 0.667, 0.06, 0.9]
    assert (found.drifted, found.by) == (False, ())
    assert verdict(Says("a", 0.02), Says("b", None), Says("c", None)).by == ("a",)
    assert verdict(Says("a", 0.02), Says("c", 0.5), Says("d", 0.03), rate=0.06).by == ("a", "d")


def test_a_difference_that_is_certain_and_small_is_no_drift() -> None:
    found = verdict(Says("a", 1e-12, effects.PSI.least - 0.001), Says("b", 1e-12, effects.PSI.least))
    assert found.by == ("b",)
    assert [each.multiples for each in found.findings] == pytest.approx([0.99, 1])
    assert [each.detected for each in found.findings] == [None, START]


def test_too_few_values_are_said_and_never_no_drift() -> None:
    found = verdict(Says("a", 0.5), Says("b", None))
    assert [(each.signal, each.judged) for each in found.findings] == [("a", True), ("b", False)]
    assert found.findings[1].sentence == "Not judged. The current window has 3 things; 20 are needed to judge them."
    with pytest.raises(InvalidArgument, match="No signal has enough values to be judged"):
        verdict(Says("a", None))


def test_of_a_conversation_one_interaction_counts_and_the_same_each_time() -> None:
    turns = [interaction(number, conversation_id=f"c{number // 4}") for number in range(40)]
    chosen = window.independent(turns)
    assert [each.conversation_id for each in chosen] == [f"c{number}" for number in range(10)]
    assert {each.request_id for each in window.independent(turns[::-1])} == {each.request_id for each in chosen}
    assert len({int(each.request_id[-5:]) % 4 for each in chosen}) > 1  # not always the first turn
    assert len(window.independent(interactions(5))) == 5
    assert len(of(turns).interactions) == 40


def test_questions_are_drawn_by_lot_and_those_without_text_left_out() -> None:
    items = [*interactions(200), interaction(200, input=[])]
    drawn = window.sample(items, 50)
    assert window.sample(items[::-1], 50) == drawn
    assert sum(int(each.request_id[-5:]) < 100 for each in drawn) in range(10, 41)
    assert len(window.sample(items, 500)) == 200


def test_vectors_have_unit_length_and_embedded_texts_are_no_answers() -> None:
    items = [*interactions(2), interaction(2, task="embedding"), interaction(3, start_time=None)]
    answers = window.answers(items)
    assert answers == items[:2]
    vectors = {question(0): np.array([3, 4], np.float32), question(1): np.zeros(2, np.float32)}
    assert window.make(answers, answers, vectors).vectors.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]


class Lengths:
    """Embeds a text as its length; goes away after some calls."""

    def __init__(self, calls: int = 1_000, *, dimensions: int = 2) -> None:
        self.texts: list[str] = []
        self._calls = calls
        self._dimensions = dimensions

    async def embed(self, texts: Sequence[str], model: str) -> list[Sequence[float]]:
        """See Embedder."""
        if self._calls == 0:
            raise Unavailable("the platform has gone away")
        self._calls -= 1
        self.texts += texts
        return [[len(text), *[1.0] * (self._dimensions - 1)] for text in texts]


async def test_a_text_is_embedded_once_also_after_an_attempt_that_ended(tmp_path: Path) -> None:
    texts = ["x" * number for number in range(1, 151)]
    ends, counts = Lengths(calls=2), list[int]()
    with pytest.raises(Unavailable):
        await embeddings.of([*texts, *texts], ends, "minilm", tmp_path, counts.append)
    assert (len(ends.texts), counts) == (128, [64, 128])
    goes_on = Lengths()
    found = await embeddings.of(texts, goes_on, "minilm", tmp_path, counts.append)
    assert goes_on.texts == texts[128:]
    assert counts[-1] == 150
    assert [found[text].tolist() for text in texts] == [[number, 1] for number in range(1, 151)]
    await embeddings.of(texts, Lengths(calls=0), "minilm", tmp_path, counts.append)


async def test_a_long_text_is_cut_and_vectors_of_two_lengths_are_refused(tmp_path: Path) -> None:
    found = await embeddings.of(["x" * 1_000_000], Lengths(), "minilm", tmp_path, lambda _: None)
    assert next(iter(found.values()))[0] == 10_000
    with pytest.raises(InvalidArgument, match="'minilm' returned vectors of 2 lengths"):
        await embeddings.of(["x" * 1_000_000, "y"], Lengths(dimensions=3), "minilm", tmp_path, lambda _: None)


def test_no_text_is_stored_with_its_vector(tmp_path: Path) -> None:
    asyncio.run(embeddings.of(["my secret"], Lengths(), "minilm", tmp_path, lambda _: None))
    assert b"secret" not in (tmp_path / embeddings.FILE).read_bytes()
    with sqlite3.connect(tmp_path / embeddings.FILE) as store:
        assert store.execute("SELECT count(*) FROM vectors").fetchone() == (1,)
    store.close()


class Recorded(Gateway):
    """A platform with these lines on record, that embeds a text by hashing its words."""

    def __init__(self, lines: Sequence[dict[str, Any]]) -> None:
        self.embedded = 0
        self.reports: list[monitor_pb2.DriftReport] = []
        self.refuses = False
        self._lines = lines
        self._patience_seconds = 0

    async def export(
        self, wanted: monitor_pb2.InteractionFilter
    ) -> AsyncGenerator[gateway_pb2.ExportInteractionsResponse, None]:
        """See Gateway."""
        start, end = wanted.start_time.ToDatetime(UTC), wanted.end_time.ToDatetime(UTC)
        lines = [line for line in self._lines if start <= datetime.fromisoformat(line["start_time"]) < end]
        yield gateway_pb2.ExportInteractionsResponse(
            jsonl=b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        )

    async def embed(self, texts: Sequence[str], model: str) -> list[Sequence[float]]:
        """See Gateway."""
        self.embedded += len(texts)
        return [
            np.sum(
                [np.random.default_rng(list(word.encode())).standard_normal(32) for word in text.split()[:3]], axis=0
            )
            for text in texts
        ]

    async def record_drift(self, report: monitor_pb2.DriftReport) -> monitor_pb2.DriftReport:
        """See Gateway; the verdict is always a warning."""
        if self.refuses:
            raise PermissionDenied("no permission 'evaluate'.")
        self.reports.append(report)
        stored = monitor_pb2.DriftReport(verdict=monitor_pb2.DRIFT_VERDICT_WARNING, drifted=1)
        stored.MergeFrom(report)
        return stored


def lines(*, refused_from: int = 10_000, foreign_from: int = 10_000) -> list[dict[str, Any]]:
    """Five weeks of 200 questions each."""
    found, chance = [], np.random.default_rng(1)
    for number in range(1_000):
        text = question(int(chance.integers(1_000, 4_000)))
        if number >= foreign_from and number % 10 == 0:
            text = f"Nghỉ phép {number}"
        values = {
            "start_time": (START + timedelta(minutes=number * 50)).isoformat(),
            "input": [{"role": "user", "content": text, "tool_calls": [], "images": []}],
            "output": "An answer.",
            "refused": number >= refused_from and number % 4 == 0,
        }
        found.append(recorded(number, **values))
    return found


async def run(folder: Path, gateway: Gateway, week: int = 4, **values: object) -> drift.Outputs:
    """The check of one of the weeks, from 0, against the two before it."""
    week_long = timedelta(minutes=200 * 50)
    with io.StringIO() as nowhere:
        context = Context(folder, gateway, Progress(Console(file=nowhere)))
        judged = START + week * week_long
        await drift.reference.run(collect.Parameters(start=judged - 2 * week_long, end=judged), context)
        await drift.current.run(collect.Parameters(start=judged, end=judged + week_long), context)
        return await drift.drift.run(drift.Parameters.model_validate(values), context)


@pytest.mark.allow_blocking  # the test's own
async def test_the_step_names_what_has_drifted_with_its_evidence(tmp_path: Path) -> None:
    gateway = Recorded(lines(refused_from=800, foreign_from=800))
    found = await run(tmp_path, gateway)
    assert (found.drifted, found.outcome) == (True, "warning")
    assert {"refused", "question_language"} <= set(found.by)
    assert found.not_judged == ("rating",)
    written = Verdict.model_validate_json((tmp_path / "drift" / drift.VERDICT).read_bytes())
    assert written.by == found.by
    assert (written.reference.interactions, written.current.conversations, written.current.questions) == (400, 200, 200)
    assert written.current.first == START + timedelta(minutes=800 * 50)
    assert "Nghỉ" not in written.model_dump_json()
    report = (tmp_path / "drift" / drift.REPORT).read_text(encoding="utf-8")
    assert f"Drifted by: {', '.join(found.by)}." in report
    assert "Not judged. The reference window has 0 rated answers" in report
    assert (tmp_path / "drift" / drift.REPORT).stat().st_mode & 0o077 == 0
    assert gateway.embedded == len({line["input"][0]["content"] for line in lines(foreign_from=800)[400:]})


async def test_windows_of_one_traffic_have_no_drift(tmp_path: Path) -> None:
    found = await run(tmp_path, Recorded(lines()))
    assert (found.drifted, found.by) == (False, ())


async def test_what_monitor_stores_has_every_signal_and_no_text(tmp_path: Path) -> None:
    gateway = Recorded(lines(refused_from=800, foreign_from=800))
    found = await run(tmp_path, gateway, needed=2, of=3)
    (report,) = gateway.reports
    assert (found.report_id, found.outcome) == (report.report_id, "warning")
    assert (report.route, report.needed, report.windows) == ("", 2, 3)
    judged = START + timedelta(minutes=800 * 50)
    assert report.current.start_time.ToDatetime(UTC) == judged
    assert report.current.end_time.ToDatetime(UTC) - judged == timedelta(minutes=200 * 50)
    assert report.reference.end_time == report.current.start_time
    assert (report.reference.interactions, report.current.conversations, report.current.questions) == (400, 200, 200)
    written = Verdict.model_validate_json(await asyncio.to_thread((tmp_path / "drift" / drift.VERDICT).read_bytes))
    assert (written.outcome, written.windows_drifted) == ("warning", 1)
    assert {each.name: each.adjusted_p_value for each in report.signals} == {
        each.signal: each.adjusted for each in written.findings
    }
    assert {each.name for each in report.signals if each.drifted} == set(found.by)
    assert {each.name for each in report.signals if not each.judged} == set(found.not_judged)
    assert not re.search(rb"Ngh|req-|The share", report.SerializeToString())


async def test_a_window_that_is_judged_again_has_the_same_report(tmp_path: Path) -> None:
    gateway = Recorded(lines())
    for name, week, least in (("a", 4, 100), ("b", 4, 150), ("c", 3, 100)):
        await run(tmp_path / name, gateway, week, least=least)
    first, again, other = (each.report_id for each in gateway.reports)
    assert first == again != other
    written = Verdict.model_validate_json(
        await asyncio.to_thread((tmp_path / "a" / "drift" / drift.VERDICT).read_bytes)
    )
    a_week = timedelta(days=7)
    windows = [record.Window(START, START + length, route) for length in (a_week, 2 * a_week) for route in ("", "rag")]
    assert len({record.report(written, each, each, needed=1, of=1).report_id for each in windows}) == 4


async def test_a_verdict_need_not_be_stored(tmp_path: Path) -> None:
    gateway = Recorded(lines(refused_from=800))
    found = await run(tmp_path, gateway, store=False)
    assert (found.outcome, found.report_id, gateway.reports) == ("alarm", "", [])


async def test_a_key_that_may_not_store_verdicts_is_told_what_to_do(tmp_path: Path) -> None:
    gateway = Recorded(lines())
    gateway.refuses = True
    with pytest.raises(PermissionDenied, match=r"cannot be stored: no permission 'evaluate'\. Give a key") as refused:
        await run(tmp_path, gateway)
    assert refused.value.field == "store"
    assert not await asyncio.to_thread((tmp_path / "drift" / RESULT).exists)


async def test_what_cannot_be_judged_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(lines: list[dict[str, Any]], **values: object) -> FactoryError:
        with pytest.raises(FactoryError) as error:
            await run(tmp_path / str(len(lines)), Recorded(lines), **values)  # type: ignore[arg-type]
        return error.value

    few = await refused(lines()[:850])
    assert (few.field, few.message.partition(";")[0]) == ("current", "The current window has 50 conversations")
    embedded = [{**line, "task": "embedding"} for line in lines()]
    assert "The reference window has 0 conversations" in (await refused(embedded)).message
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    absent = await refused(lines()[:998])
    assert isinstance(absent, Unimplemented)
    assert "needs genaifactory-pipelines[drift] installed" in absent.message


async def test_windows_that_overlap_are_refused(tmp_path: Path) -> None:
    with io.StringIO() as nowhere:
        context = Context(tmp_path, Recorded(lines()), Progress(Console(file=nowhere)))
        for step in (drift.reference, drift.current):
            await step.run(collect.Parameters(start=START, end=START + timedelta(days=7)), context)
        with pytest.raises(InvalidArgument, match="202 interactions are in both windows") as refused:
            await drift.drift.run(drift.Parameters(), context)
    assert refused.value.field == "reference"


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"needed": 2}, "'needed' must be at most 'of'"),
        ({"of": 101}, "less than or equal to 100"),
        ({"of": 2, "store": False}, "'of' must be 1 where the verdict is not stored"),
        ({"false_discovery_rate": 0.001}, "greater than or equal to 0.005"),
        ({"least": 5}, "greater than or equal to 20"),
        ({"questions": 100_000}, "less than or equal to 5000"),
    ],
)
def test_wrong_parameters_are_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        drift.Parameters.model_validate(values)
