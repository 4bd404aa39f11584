"""The drift check against a whole platform: its record, its embeddings, and the command with its exit codes."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from rich.console import Console

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels
from genaifactory_common.errors import NotFound, Unavailable
from genaifactory_local.testing import Platform, Process
from genaifactory_pipelines.drift import embeddings
from genaifactory_pipelines.gateway import Gateway
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.step import RESULT, Context
from genaifactory_pipelines.steps import collect, drift
from tests.unit.pipelines.examples import question

pytestmark = pytest.mark.asyncio(loop_scope="module")

START = datetime(2026, 10, 5, tzinfo=UTC)
WEEK = timedelta(weeks=1)
A_WEEK = 120
FOREIGN = "Tôi được nghỉ phép bao nhiêu ngày trong năm"
"""How a fifth of the questions of the last week begins; a third of its searches finds nothing."""


def record(week: int, number: int) -> monitor_pb2.Interaction:
    last, foreign = week == 2, number % 5 == 0
    content = f"{FOREIGN} {number}?" if last and foreign else question(1_000 + 331 * week + 7 * number)
    found = not (last and number % 3 == 0)
    item = monitor_pb2.Interaction(
        request_id=f"req-{week}{number:031}",
        tenant="dev",
        task="rag",
        route="rag",
        model="extractive",
        index_version="v1",
        passages=[monitor_pb2.PassageReference(passage_id="p", document_id="leave.md", score=0.5)] if found else [],
        input=[types_pb2.Message(role=types_pb2.ROLE_USER, content=content)],
        output="An answer.",
        outcome=monitor_pb2.OUTCOME_ANSWERED,
        refused=not found,
    )
    item.start_time.FromDatetime(START + week * WEEK + timedelta(minutes=70 * number))
    return item


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def recorded(shared_process: Process) -> Process:
    """A platform with three weeks on record, of which the last one differs, and with ratings of the last two."""
    platform = shared_process.platform
    async with channels.connect(platform.endpoints.socket("monitor")) as channel:
        stub = monitor_pb2_grpc.MonitorServiceStub(channel)
        items = [record(week, number) for week in range(3) for number in range(A_WEEK)]
        await channels.unary(
            stub.RecordInteractions, monitor_pb2.RecordInteractionsRequest(interactions=items), timeout_seconds=30
        )
    async with platform.connected() as channel:
        gateway = gateway_pb2_grpc.GatewayServiceStub(channel)
        for item in items[A_WEEK::4]:
            given = gateway_pb2.SubmitFeedbackRequest(request_id=item.request_id, rating=gateway_pb2.RATING_UP)
            await channels.unary(gateway.SubmitFeedback, given, timeout_seconds=30)
    return shared_process


@asynccontextmanager
async def context(platform: Platform, run: Path) -> AsyncIterator[Context]:
    async with platform.connected() as channel:
        with io.StringIO() as nowhere:
            yield Context(run, Gateway(channel, patience_seconds=5), Progress(Console(file=nowhere)))


async def collected(given: Context, *, reference: int, current: int) -> None:
    for step, week in ((drift.reference, reference), (drift.current, current)):
        window = collect.Parameters(start=START + week * WEEK, end=START + (week + 1) * WEEK)
        assert (await step.run(window, given)).interactions == A_WEEK


@pytest.mark.allow_blocking  # the test's own
async def test_a_week_that_differs_is_found_and_the_one_before_is_not(recorded: Process, tmp_path: Path) -> None:
    found = []
    for current in (1, 2):
        async with context(recorded.platform, tmp_path / str(current)) as given:
            await collected(given, reference=current - 1, current=current)
            found.append(await drift.drift.run(drift.Parameters(), given))
    assert (found[0].drifted, found[0].not_judged) == (False, ("topic", "rating"))
    assert {"question_groups", "question_language", "nothing_found", "refused"} <= set(found[1].by)
    assert found[1].not_judged == ("topic",)
    verdict = json.loads((tmp_path / "2" / "drift" / drift.VERDICT).read_text(encoding="utf-8"))
    (groups,) = [each for each in verdict["findings"] if each["signal"] == "question_groups"]
    foreign = {f"req-2{number:031}" for number in range(0, A_WEEK, 5)}
    assert set(groups["typical"]) <= foreign
    report = (tmp_path / "2" / "drift" / drift.REPORT).read_text(encoding="utf-8")
    assert FOREIGN in report
    assert FOREIGN not in json.dumps(verdict, ensure_ascii=False)


class Interrupted(Gateway):
    """A gateway that goes away after two batches of texts."""

    left = 2

    async def embed(self, texts: Sequence[str], model: str) -> list[Sequence[float]]:
        """See Gateway."""
        if not self.left:
            raise Unavailable("the gateway has gone away")
        self.left -= 1
        return await super().embed(texts, model)


@pytest.mark.allow_blocking  # the test's own
async def test_an_attempt_goes_on_with_the_texts_that_are_not_embedded_yet(recorded: Process, tmp_path: Path) -> None:
    async with context(recorded.platform, tmp_path) as given, recorded.platform.connected() as channel:
        await collected(given, reference=0, current=2)
        with pytest.raises(Unavailable):
            await drift.drift.run(drift.Parameters(), Context(tmp_path, Interrupted(channel), given.progress))
        assert not (tmp_path / "drift" / RESULT).exists()
        before = (tmp_path / "drift" / embeddings.FILE).stat().st_size
        assert (await drift.drift.run(drift.Parameters(), given)).drifted
    assert (tmp_path / "drift" / embeddings.FILE).stat().st_size > before > 64 * 384 * 4


async def test_a_model_that_is_not_there_is_named(recorded: Process, tmp_path: Path) -> None:
    async with context(recorded.platform, tmp_path) as given:
        await collected(given, reference=0, current=1)
        with pytest.raises(NotFound, match="There is no model 'none'"):
            await drift.drift.run(drift.Parameters(model="none"), given)


WINDOWS = ("--reference-since", "2026-10-05", "--since", "2026-10-19", "--until", "2026-10-26")


@pytest.mark.allow_blocking  # the test's own
async def test_the_command_reports_drift_by_its_exit_code(recorded: Process, tmp_path: Path) -> None:
    arguments = ("drift", *WINDOWS, "--output", str(tmp_path / "run"), "--route", "rag")
    code, printed, errors = await recorded.genaifactory(*arguments)
    assert code == 3, errors
    assert "refused: The share of answers that are refusals was 0.0% and is 33.3%." in printed
    assert "\nDrifted by question_" in printed
    assert f"Report: {tmp_path / 'run' / 'drift' / 'report.html'}" in printed
    assert FOREIGN not in printed + errors
    code, printed, errors = await recorded.genaifactory(*arguments, "--json")
    found = json.loads(printed)
    assert (code, found["drifted"], found["outcome"]) == (3, True, "alarm")
    assert await asyncio.to_thread(Path(found["verdict"]).exists)
    assert errors.count("nothing has changed since it was run") == 3


@pytest.mark.allow_blocking  # the test's own
async def test_one_drifted_window_is_no_alarm_where_two_are_needed(recorded: Process, tmp_path: Path) -> None:
    """Of windows that begin a day apart, each judged with the same options; monitor has those before."""
    common = (
        "drift",
        "--reference-since",
        "2026-10-05",
        "--reference-until",
        "2026-10-19",
        "--needed",
        "2",
        "--of",
        "2",
    )
    codes, said = [], []
    for day in (19, 20):
        window = ("--since", f"2026-10-{day}", "--until", f"2026-10-{day + 5}", "--least", "50")
        code, printed, errors = await recorded.genaifactory(*common, *window, "-o", str(tmp_path / str(day)))
        assert "Traceback" not in errors
        codes.append(code)
        said.append("No alarm yet: too few of the windows before have drifted." in printed)
    assert (codes, said) == ([0, 3], [True, False])
    code, printed, errors = await recorded.genaifactory("drift", "--history", "--json")
    assert code == 0, errors
    listed = {each["until"][:10]: each for each in json.loads(printed) if each["windows"] == 2}
    assert {day: (each["verdict"], each["drifted"]) for day, each in listed.items()} == {
        "2026-10-25": ("alarm", 2),
        "2026-10-24": ("warning", 1),
    }
    assert "refused" in listed["2026-10-25"]["by"]
    code, printed, errors = await recorded.genaifactory("drift", "--history", "--last", "1", "--route", "rag")
    assert (code, "No verdict" in printed or "2026-10-26" in printed) == (0, True), errors
    code, printed, _ = await recorded.genaifactory("drift", "--history", "--route", "none-such")
    assert (code, printed) == (0, "No verdict is stored on the route 'none-such'.\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--reference-since", "2026-10-20"), "--reference-since must be before --since"),
        (("--reference-since", "2026-10-05", "--reference-until", "2026-10-01"), "must be before --reference-until"),
        (("--until", "2026-10-01"), "--since must be before --until"),
        (("--reference-since", "2026-10-05", "--reference-until", "2026-10-24"), "are in both windows"),
        (("--reference-since", "2026-10-05", "--least", "500"), "The reference window has 240 conversations; 500 are"),
        (("--reference-since", "2026-10-05", "--needed", "4"), "--needed must be at most --of"),
        (("--reference-since", "2026-10-05", "--of", "2", "--no-store"), "only without --no-store"),
        (("--reference-since", "2026-10-05", "--model", "none"), "There is no model 'none'"),
    ],
)
async def test_what_the_command_cannot_use_is_one_line(
    recorded: Process, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    common = ("drift", "--since", "2026-10-19", "--until", "2026-10-26", "--output", str(tmp_path / "run"))
    code, printed, errors = await recorded.genaifactory(*common, *arguments)
    assert (code, printed) == (1, "")
    assert message in " ".join(errors.split())
    assert "Traceback" not in errors
