"""collect and curate against a whole platform: what was recorded becomes a dataset, once and the same each time."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncGenerator, AsyncIterator
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
from genaifactory_common.errors import InvalidArgument, NotFound, TooLarge, Unavailable
from genaifactory_local import testing
from genaifactory_local.testing import Platform, Process
from genaifactory_pipelines.curation import Options
from genaifactory_pipelines.datasets import dataset
from genaifactory_pipelines.gateway import Gateway
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.step import RESULT, Context
from genaifactory_pipelines.steps import collect, curate
from tests.unit.pipelines.examples import question

pytestmark = pytest.mark.asyncio(loop_scope="module")

START = datetime(2026, 11, 1, tzinfo=UTC)
RECORDS = 450  # more than two pages of the export
RATED = 60
BLOCKED = "Is AKIAIOSFODNN7EXAMPLE a good key?"
ASKS = "My address is nguyen.van.an@example.com, and 0912 345 678 is my number. Is the laptop mine?"


def record(number: int) -> monitor_pb2.Interaction:
    content = {7: ASKS, 8: BLOCKED}.get(number, question(number))
    item = monitor_pb2.Interaction(
        request_id=f"req-{number:032}",
        tenant="dev",
        task="chat",
        route="chat",
        model="extractive",
        input=[types_pb2.Message(role=types_pb2.ROLE_USER, content=content)],
        output=f"Answer {number}.",
        outcome=monitor_pb2.OUTCOME_ANSWERED,
    )
    # Several in a second, so that an export which goes on from a moment repeats some.
    item.start_time.FromDatetime(START + timedelta(seconds=number // 4))
    return item


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def recorded(shared_process: Process) -> Platform:
    """A platform with records, of which some are rated."""
    shared_platform = shared_process.platform
    async with channels.connect(shared_platform.endpoints.socket("monitor")) as channel:
        items = [record(number) for number in range(RECORDS + 2)]
        # No use of the platform, so not collected.
        items[-2].evaluation, items[-1].arm_chosen = "run", True
        request = monitor_pb2.RecordInteractionsRequest(interactions=items)
        await channels.unary(
            monitor_pb2_grpc.MonitorServiceStub(channel).RecordInteractions, request, timeout_seconds=30
        )
    async with shared_platform.connected() as channel:
        stub = gateway_pb2_grpc.GatewayServiceStub(channel)
        for number in range(RATED):
            given = gateway_pb2.SubmitFeedbackRequest(
                request_id=f"req-{number:032}",
                rating=gateway_pb2.RATING_UP if number % 10 else gateway_pb2.RATING_DOWN,
                correction="" if number % 10 else f"Correction {number}.",
            )
            await channels.unary(stub.SubmitFeedback, given, timeout_seconds=30)
    return shared_platform


@asynccontextmanager
async def context(platform: Platform, run: Path, *, patience_seconds: float = 5) -> AsyncIterator[Context]:
    async with platform.connected() as channel:
        with io.StringIO() as nowhere:
            progress = Progress(Console(file=nowhere))
            yield Context(run, Gateway(channel, patience_seconds=patience_seconds), progress)


def window(**values: object) -> collect.Parameters:
    return collect.Parameters.model_validate({"start": START, "end": START + timedelta(days=1), **values})


def options(**values: object) -> curate.Parameters:
    return curate.Parameters(options=Options.model_validate({"policy": "default", **values}))


@pytest.mark.allow_blocking  # the test's own
async def test_what_was_recorded_and_rated_becomes_a_dataset_without_personal_data(
    recorded: Platform, tmp_path: Path
) -> None:
    async with context(recorded, tmp_path) as given:
        collected = await collect.collect.run(window(), given)
        made = await curate.curate.run(options(), given)
    assert collected.interactions == RECORDS
    manifest, splits = await asyncio.to_thread(dataset.read, tmp_path / "curate" / curate.DATASET)
    assert manifest.version == made.version
    assert manifest.labels == {"approved": 53, "correction": 6}
    assert manifest.left_out == {"not rated": RECORDS - RATED, "blocked by the policy": 1}
    everything = [*splits.train, *splits.validation, *splits.test]
    (masked,) = [each for each in everything if each.id == f"req-{7:032}"]
    assert "nguyen.van.an" not in masked.questions
    assert "345 678" not in masked.questions
    assert "Is the laptop mine?" in masked.questions
    for path in (tmp_path / "curate").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert b"nguyen.van.an" not in content
        assert b"AKIA" not in content
    report = (tmp_path / "curate" / curate.REPORT).read_text(encoding="utf-8")
    assert manifest.version in report
    assert ">correction</text>" in report


async def test_the_same_window_gives_the_same_files_and_the_same_version(recorded: Platform, tmp_path: Path) -> None:
    found = []
    for name in ("one", "other"):
        async with context(recorded, tmp_path / name) as given:
            found.append((await collect.collect.run(window(), given), await curate.curate.run(options(), given)))
    assert found[0] == found[1]


async def test_a_step_is_run_again_only_when_what_it_depends_on_has_changed(recorded: Platform, tmp_path: Path) -> None:
    async with context(recorded, tmp_path) as given:
        await collect.collect.run(window(), given)
        first = await curate.curate.run(options(), given)
    async with context(recorded, tmp_path) as given:
        del given.gateway._stub  # no call can be made any more
        assert await curate.curate.run(options(), given) == first
        with pytest.raises(AttributeError):
            await curate.curate.run(options(unrated="take"), given)


class Interrupted(Gateway):
    """A gateway whose export ends within a line, twice, as if the platform had gone away."""

    left = 2

    async def export(
        self, wanted: monitor_pb2.InteractionFilter
    ) -> AsyncGenerator[gateway_pb2.ExportInteractionsResponse, None]:
        """See Gateway."""
        async for piece in super().export(wanted):
            if self.left:
                self.left -= 1
                yield gateway_pb2.ExportInteractionsResponse(jsonl=piece.jsonl[: len(piece.jsonl) * 2 // 3])
                raise Unavailable("the gateway has gone away")
            yield piece


async def test_an_export_that_breaks_off_goes_on_where_it_was(recorded: Platform, tmp_path: Path) -> None:
    async with context(recorded, tmp_path / "whole") as given:
        whole = await collect.collect.run(window(), given)
    async with context(recorded, tmp_path / "parts") as given, recorded.connected() as channel:
        cut = Context(given.run, Interrupted(channel), given.progress)
        assert await collect.collect.run(window(), cut) == whole
        assert cut.gateway.left == 0  # type: ignore[attr-defined]


@pytest.mark.allow_blocking  # the test's own
async def test_an_attempt_goes_on_after_one_that_was_killed_while_it_wrote(recorded: Platform, tmp_path: Path) -> None:
    async with context(recorded, tmp_path) as given:
        whole = await collect.collect.run(window(), given)
        lines = (tmp_path / "collect" / collect.FILE).read_bytes()
        for name in (collect.FILE, RESULT):
            (tmp_path / "collect" / name).unlink()
        (tmp_path / "collect" / f".{collect.FILE}.unfinished").write_bytes(lines[: len(lines) // 2])
        assert await collect.collect.run(window(), given) == whole
    assert (tmp_path / "collect" / collect.FILE).read_bytes() == lines
    ids = [json.loads(line)["request_id"] for line in lines.splitlines()]
    assert len(set(ids)) == len(ids) == RECORDS


async def test_a_platform_that_stays_away_ends_the_step_with_its_error(recorded: Platform, tmp_path: Path) -> None:
    async with channels.connect("unix:/nonexistent/gateway.sock", api_key="gf-none") as channel:
        with io.StringIO() as nowhere:
            given = Context(tmp_path, Gateway(channel, patience_seconds=1), Progress(Console(file=nowhere)))
            with pytest.raises(Unavailable):
                await collect.collect.run(window(), given)


async def test_a_bad_window_a_wrong_policy_and_too_much_are_refused(recorded: Platform, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'start' must be before 'end'"):
        window(end=START)
    async with context(recorded, tmp_path) as given:
        with pytest.raises(InvalidArgument, match="There is no interaction from 2026-10-31") as refused:
            await collect.collect.run(window(start=START - timedelta(days=1), end=START - timedelta(hours=1)), given)
        assert refused.value.field == "start"
        with pytest.raises(TooLarge, match="more than 100 interactions"):
            await collect.collect.run(window(most=100), given)
        with pytest.raises(InvalidArgument, match="holds no result of 'collect': run that step first"):
            await curate.curate.run(options(), given)
        await collect.collect.run(window(), given)
        with pytest.raises(NotFound, match="policy"):
            await curate.curate.run(options(policy="none"), given)
        with pytest.raises(
            InvalidArgument, match=f"0 examples are left.*: {RATED} blocked by the policy, {RECORDS - RATED} not rated"
        ):
            await curate.curate.run(options(least_examples=3), Context(given.run, NothingPasses(), given.progress))  # type: ignore[arg-type]


class NothingPasses:
    """Blocks every text."""

    async def check(self, texts: list[str], policy: str, direction: str) -> list[str | None]:
        """See Checker."""
        return [None] * len(texts)


async def command(platform: Platform, *arguments: str) -> tuple[int, str, str]:
    return await testing.genaifactory(
        "dataset", *arguments, environment={"GENAIFACTORY_STATE": str(platform.state.folder)}
    )


@pytest.mark.allow_blocking  # the test's own
async def test_the_command_makes_a_dataset_and_says_where_it_is(recorded: Platform, tmp_path: Path) -> None:
    window_ = ("--since", "2026-11-01", "--until", "2026-11-02")
    code, printed, errors = await command(recorded, *window_, "--output", str(tmp_path / "november"))
    assert (code, errors.count("\n")) == (0, 2), errors
    assert "examples to train on" in printed
    manifest, _ = dataset.read(tmp_path / "november" / "curate" / curate.DATASET)
    assert f"Version {manifest.version}" in printed
    code, printed, errors = await command(recorded, *window_, "--output", str(tmp_path / "november"), "--json")
    assert (code, json.loads(printed)["version"]) == (0, manifest.version)
    assert errors.count("nothing has changed since it was run") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--since", "2026-11-02", "--until", "2026-11-01"), "--since must be before --until"),
        (("--since", "2020-01-01", "--until", "2020-01-02"), "There is no interaction from 2020-01-01"),
        (("--since", "2026-11-01", "--until", "2026-11-02", "--policy", "strict"), "strict"),
        (("--since", "2026-11-01", "--until", "2026-11-02", "--golden", "none.jsonl"), "none.jsonl cannot be read"),
        (("--since", "yesterday"), "'yesterday' is not a time"),
        (("--route", "none"), "There is no route 'none'"),
    ],
)
async def test_what_the_command_cannot_use_is_one_line(
    recorded: Platform, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, printed, errors = await command(recorded, *arguments, "--output", str(tmp_path / "run"))
    assert (code, printed) == (1, "") or (code, printed) == (2, "")
    assert message in " ".join(errors.split())
    assert "Traceback" not in errors


@pytest.mark.allow_blocking  # the test's own
async def test_a_folder_with_other_files_is_not_emptied(recorded: Platform, tmp_path: Path) -> None:
    (tmp_path / "collect").mkdir()
    (tmp_path / "collect" / "mine").write_text("x")
    code, _, errors = await command(recorded, "--since", "2026-11-01", "--output", str(tmp_path))
    assert code == 1
    assert "holds other files" in errors
    assert (tmp_path / "collect" / "mine").read_text() == "x"
