"""Re-index through a whole platform: checked against the active version, swapped, rolled back, killed at each point."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from rich.console import Console

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory_common import specs
from genaifactory_common.errors import Conflict, FactoryError, InvalidArgument
from genaifactory_local import state, testing
from genaifactory_local.platform import Options
from genaifactory_local.testing import Platform
from genaifactory_pipelines.gateway import Gateway
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.step import Context
from genaifactory_pipelines.steps import reindex
from genaifactory_pipelines.workflows.protocol import Surroundings, Task
from genaifactory_pipelines.workflows.rollback import rollback
from genaifactory_retriever.encoding import Encoded, Encoder, Encoding
from genaifactory_retriever.stored import StoredDocument
from tests.integration.commands import genaifactory

pytestmark = [pytest.mark.slow, pytest.mark.allow_blocking, pytest.mark.asyncio(loop_scope="module")]

DOCUMENTS = 20
CHUNK_TOKENS = 64
THINGS = ("pump", "filter", "valve", "engine", "sensor", "battery", "antenna", "switch")
PLACES = ("Hanoi", "Hue", "Danang")


def words(number: int) -> tuple[str, str]:
    return THINGS[number % len(THINGS)], PLACES[number // len(THINGS)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """Documents that were stored before the chunking of factory.yaml was changed."""
    folder = tmp_path_factory.mktemp("reindex")
    texts = folder / "machines"
    texts.mkdir()
    for number in range(DOCUMENTS):
        thing, place = words(number)
        filler = " ".join(f"Step {step} of this page names no device and no city." for step in range(8))
        (texts / f"{number}.md").write_text(
            f"# Page {number}\n\nThe {thing} in {place} has number {number}. {filler}\n"
        )
    source = {"name": "machines", "type": "folder", "path": str(texts), "knowledge_base": "documents"}
    factory = folder / "factory.yaml"
    factory.write_text(testing.DEFAULT_FACTORY.read_text(encoding="utf-8"), encoding="utf-8")
    configure(factory, sources=[source])
    options = Options(http_port=0, grpc_port=0)
    async with testing.running(folder / "state", factory=factory, options=options) as first:
        with state.announced(first.state, first.endpoints):  # for commands
            code, _, err = await genaifactory(first.state.folder, "sources", "sync")
            assert code == 0, err
    configure(factory, knowledge_bases=[{"name": "documents", "chunk_tokens": CHUNK_TOKENS}])
    async with testing.running(folder / "state", factory=factory, options=options) as second:
        with state.announced(second.state, second.endpoints):
            yield second


def configure(factory: Path, **parts: object) -> None:
    document = yaml.safe_load(factory.read_text(encoding="utf-8"))
    document |= parts
    changed = factory.with_suffix(".new")
    changed.write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
    os.replace(changed, factory)


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden") / "golden.jsonl"
    with path.open("w", encoding="utf-8") as lines:
        for number in range(DOCUMENTS):
            question = "Which number has the {} in {}?".format(*words(number))
            line = {"id": f"g{number}", "input": question, "output": str(number)}
            lines.write(json.dumps(line | {"lineage": {"documents": [f"machines/{number}.md"]}}) + "\n")
    return path


async def run(platform: Platform, folder: Path, kind: type[Gateway] = Gateway, **fields: Any) -> reindex.Outputs:
    wanted = reindex.Parameters(knowledge_base="documents", **fields)
    async with platform.connected() as channel:
        context = Context(folder, kind(channel, patience_seconds=5), Progress(Console(file=io.StringIO())))
        return await reindex.reindex.run(wanted, context)


async def states(platform: Platform) -> dict[str, str]:
    """State of each version that holds anything."""
    code, out, err = await genaifactory(platform.state.folder, "indexes", "list", "--json")
    assert code == 0, err
    return {each["version"]: each["state"] for each in json.loads(out) if each["state"] != "failed"}


async def active(platform: Platform) -> str:
    return next(name for name, now in (await states(platform)).items() if now == "active")


async def test_a_new_chunking_is_read_checked_served_and_rolled_back(
    platform: Platform, golden: Path, tmp_path: Path
) -> None:
    """The whole of it by commands: sources, build, comparison, swap, and the way back."""
    folder = platform.state.folder
    common = ("--golden", str(golden), "--source", "machines", "-o", str(tmp_path / "run"))
    code, out, err = await genaifactory(folder, "reindex", *common)
    assert code == 0, err
    assert f"{DOCUMENTS} documents in" not in err
    assert "retrieval_recall" in out
    first = await states(platform)
    assert sorted(first.values()) == ["active", "previous"]
    _, listed, _ = await genaifactory(folder, "indexes", "list", "--json")
    new, old = json.loads(listed)[:2]
    assert (new["chunk_tokens"], old["chunk_tokens"]) == (CHUNK_TOKENS, 200)
    assert new["documents"] == old["documents"] == DOCUMENTS
    assert new["passages"] > old["passages"]
    _, listed, _ = await genaifactory(folder, "indexes", "list")
    assert new["created"][:16].replace("T", " ") in listed
    assert new["created"] not in listed
    report = (tmp_path / "run" / "reindex" / reindex.REPORT).read_text(encoding="utf-8")
    assert "every document, with its access list" in report
    assert "retrieval_ndcg not_worse_by 0.02" in report
    assert "machines" in report
    added = platform.state.folder.parent / "machines" / "added.md"
    for more in (1, 0):  # the same folder is the same run, in which the source is read again
        if more:
            added.write_text("# Added\n\nThis page came on the next day.\n", encoding="utf-8")
        else:
            added.unlink()
        code, out, err = await genaifactory(folder, "reindex", *common, "--json")
        assert code == 0, err
        assert json.loads(out)["documents"] == DOCUMENTS + more
        assert await states(platform) == first
    code, out, _ = await genaifactory(folder, "indexes", "rollback")
    assert (code, out) == (0, f"{old['version']} serves; {new['version']} is kept.\n")
    code, out, err = await genaifactory(folder, "reindex", *common)
    assert (code, out) == (1, "")
    assert f"meanwhile '{old['version']}' was activated" in err
    assert (await active(platform)) == old["version"]
    code, out, _ = await genaifactory(folder, "ask", "Which number has the pump in Hanoi?")
    assert "0" in out
    assert (await genaifactory(folder, "indexes", "rollback"))[0] == 0
    assert await states(platform) == first
    code, _, err = await genaifactory(folder, "indexes", "drop", new["version"])
    assert (code, "serves" in err) == (1, True)
    assert (await genaifactory(folder, "indexes", "drop", old["version"]))[0] == 0
    assert await states(platform) == {new["version"]: "active"}
    code, _, err = await genaifactory(folder, "indexes", "rollback")
    assert (code, err) == (1, "'documents' has no version that served before.\n")


@pytest.fixture
def broken_cleaning(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is indexed from now on has lost what documents say."""
    real = Encoder.encode

    async def encode(self: Encoder, document: StoredDocument, encoding: Encoding) -> Encoded:
        lost = "".join("x" if each.isalpha() else each for each in document.text)
        return await real(self, replace(document, text=lost), encoding)

    monkeypatch.setattr(Encoder, "encode", encode)


async def test_a_version_whose_search_is_worse_does_not_serve_and_may_be_kept(
    platform: Platform, golden: Path, tmp_path: Path, broken_cleaning: None
) -> None:
    before = await active(platform)
    arguments = ("--golden", str(golden), "-o", str(tmp_path / "run"), "--keep-failed", "--json")
    code, out, err = await genaifactory(platform.state.folder, "reindex", *arguments)
    assert code == 3, err
    found = json.loads(out)
    assert not found["passed"]
    assert found["metrics"]["retrieval_recall"] < 0.5
    assert any(each.startswith("retrieval_recall not_worse_by 0.02") for each in found["failed"])
    now = await states(platform)
    assert (now[before], now[found["version"]]) == ("active", "ready")
    assert f"{before} serves as before" in (tmp_path / "run" / "reindex" / reindex.REPORT).read_text(encoding="utf-8")
    assert (await genaifactory(platform.state.folder, "indexes", "drop", found["version"]))[0] == 0


class Killed(BaseException):
    """The process ends here."""


def killed_at(point: str) -> type[Gateway]:
    """A gateway client whose process ends at a point."""

    class Ending(Gateway):
        async def build_index(
            self, knowledge_base: str, key: str
        ) -> AsyncGenerator[gateway_pb2.BuildIndexResponse, None]:
            async with aclosing(super().build_index(knowledge_base, key)) as steps:
                async for step in steps:
                    yield step
                    if point == "within the build":
                        raise Killed
            if point == "after the build":
                raise Killed

        async def chat(self, request: gateway_pb2.ChatRequest) -> AsyncGenerator[gateway_pb2.ChatResponse, None]:
            if point == "within the comparison" and request.messages[-1].content.endswith("Hue?"):
                raise Killed
            async for part in super().chat(request):
                yield part

        async def swap_index(self, knowledge_base: str, version: str) -> gateway_pb2.SwapIndexResponse:
            if point == "before the swap":
                raise Killed
            await super().swap_index(knowledge_base, version)
            raise Killed  # after the swap

        async def drop_index(self, knowledge_base: str, version: str) -> None:
            await super().drop_index(knowledge_base, version)
            raise Killed  # after the drop

    return Ending


@pytest.mark.parametrize(
    "point", ["within the build", "after the build", "within the comparison", "before the swap", "after the swap"]
)
async def test_a_killed_run_goes_on_and_leaves_one_new_version(
    platform: Platform, golden: Path, tmp_path: Path, point: str
) -> None:
    before = await active(platform)
    asked: dict[str, Any] = {"golden": golden, "route": "rag"} if point == "within the comparison" else {}
    with pytest.raises(BaseException) as ended:  # noqa: PT011  # a group, where the comparison asks several at once
        await run(platform, tmp_path, killed_at(point), **asked)
    assert isinstance(ended.value, Killed) or Killed in map(type, getattr(ended.value, "exceptions", ()))
    during = await states(platform)
    assert during[before] == ("previous" if point == "after the swap" else "active")
    found = await run(platform, tmp_path, **asked)
    assert found.passed
    now = await states(platform)
    assert now == {found.version: "active", before: "previous"}
    if point != "within the build":
        assert found.version in during, "the version was built once"
    assert await run(platform, tmp_path, killed_at("before the swap"), **asked) == found


async def test_a_run_that_is_killed_when_its_version_was_removed_says_the_same_again(
    platform: Platform, golden: Path, tmp_path: Path, broken_cleaning: None
) -> None:
    before = await active(platform)
    with pytest.raises(Killed):
        await run(platform, tmp_path, killed_at("after the drop"), golden=golden, route="rag")
    found = await run(platform, tmp_path, golden=golden, route="rag")
    assert not found.passed
    assert found.version not in await states(platform)
    assert await active(platform) == before


async def test_a_process_that_is_killed_while_it_compares_goes_on(
    platform: Platform, golden: Path, tmp_path: Path
) -> None:
    before = await active(platform)
    parameters = {"knowledge_base": "documents", "golden": str(golden), "route": "rag", "at_once": 1}
    command = (
        *(sys.executable, "-m", "genaifactory_pipelines", "reindex", "--run", str(tmp_path)),
        *("--parameters", json.dumps(parameters), "--gateway", platform.endpoints.grpc_address),
    )
    environment = {**os.environ, "GENAIFACTORY_API_KEY": platform.key}
    process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.DEVNULL)
    asked = tmp_path / "reindex" / "evaluate" / "candidate.jsonl"
    async with asyncio.timeout(120):
        while not asked.exists() or not asked.read_bytes():
            assert process.returncode is None
            await asyncio.sleep(0.01)
    process.kill()
    await process.wait()
    assert len(asked.read_text().splitlines()) < DOCUMENTS
    (built,) = [name for name, now in (await states(platform)).items() if now == "ready"]
    again = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    out, _ = await again.communicate()
    found = json.loads(out)
    assert (found["version"], found["passed"]) == (built, True)
    assert await states(platform) == {built: "active", before: "previous"}


async def test_a_version_that_another_one_has_overtaken_is_not_served(platform: Platform, tmp_path: Path) -> None:
    await run(platform, tmp_path / "before")  # so that there is a version to return to
    with pytest.raises(Killed):
        await run(platform, tmp_path / "first", killed_at("before the swap"))
    before = await active(platform)
    (built,) = [name for name, now in (await states(platform)).items() if now == "ready"]
    other = next(name for name, now in (await states(platform)).items() if now == "previous")
    code, _, _ = await genaifactory(platform.state.folder, "indexes", "rollback")
    assert code == 0
    with pytest.raises(
        Conflict, match=f"'{built}' was compared with '{before}', and meanwhile '{other}' was activated"
    ):
        await run(platform, tmp_path / "first")
    assert await active(platform) == other
    found = await run(platform, tmp_path / "second")
    with pytest.raises(Conflict, match="meanwhile was dropped"):
        await run(platform, tmp_path / "first")
    assert await active(platform) == found.version


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--knowledge-base", "nowhere"], "nowhere"),
        (["--golden", "few.jsonl"], "few.jsonl has 2 questions, and 20 are needed for the rule 'retrieval_recall"),
        (["--golden", "broken.jsonl"], "broken.jsonl"),
        (["--golden", "few.jsonl", "--route", "chat"], "The route 'chat' does not search the knowledge base"),
        (["--gate", "none"], "no gate 'none' in factory.yaml"),
        (["--source", "none"], "no source 'none' in factory.yaml; there are: machines"),
    ],
)
async def test_a_wrong_option_ends_before_anything_is_built(
    platform: Platform, tmp_path: Path, arguments: list[str], problem: str
) -> None:
    line = {"input": "Which number has the pump in Hue?", "output": "8", "lineage": {"documents": ["machines/8.md"]}}
    few = "".join(json.dumps({"id": f"g{n}"} | line) + "\n" for n in range(2))
    (tmp_path / "few.jsonl").write_text(few, encoding="utf-8")
    (tmp_path / "broken.jsonl").write_text('{"id": "a"', encoding="utf-8")
    before = await states(platform)
    given = [str(tmp_path / each) if each.endswith(".jsonl") else each for each in arguments]
    code, out, err = await genaifactory(platform.state.folder, "reindex", "-o", str(tmp_path / "run"), *given)
    assert (code, out) == (1, "")
    assert problem in err
    assert await states(platform) == before


async def test_a_gate_that_cannot_be_judged_leaves_no_version(platform: Platform, golden: Path, tmp_path: Path) -> None:
    before = await states(platform)
    rule = specs.GateRule(metric="retrieval_recall", not_worse_by=0, each="topic", least_items=DOCUMENTS + 1)
    unjudged = specs.Gate(name="strict", rules=(rule,))
    with pytest.raises(InvalidArgument, match=f"and {DOCUMENTS + 1} are needed for the rule"):
        await run(platform, tmp_path, golden=golden, route="rag", gate=unjudged)
    wrong = specs.Gate(name="sql", rules=(specs.GateRule(metric="sql_execution", not_worse_by=0, least_items=2),))
    with pytest.raises(InvalidArgument, match=r"others have no checks\.tables"):
        await run(platform, tmp_path, golden=golden, route="rag", gate=wrong)
    assert await states(platform) == before
    with pytest.raises(FactoryError, match="no model 'none'"):
        await run(platform, tmp_path, golden=golden, route="none")
    now = await states(platform)
    assert now == {name: kept for name, kept in before.items() if kept != "ready"}


async def test_a_run_that_was_killed_after_the_swap_and_rolled_back_does_not_say_that_it_serves(
    platform: Platform, tmp_path: Path
) -> None:
    before = await active(platform)
    with pytest.raises(Killed):
        await run(platform, tmp_path, killed_at("after the swap"))
    assert (await genaifactory(platform.state.folder, "indexes", "rollback"))[0] == 0
    with pytest.raises(Conflict, match=f"meanwhile '{before}' was activated"):
        await run(platform, tmp_path)
    assert await active(platform) == before


async def test_a_workflow_that_goes_back_and_is_done_again_goes_back_once(platform: Platform, tmp_path: Path) -> None:
    """A pod that is lost after the swap is started again."""
    made = await run(platform, tmp_path / "runs" / "again")
    assert await active(platform) == made.version
    (task,) = rollback.tasks
    assert isinstance(task, Task)
    around = Surroundings("back", datetime(2026, 11, 21, tzinfo=UTC), tmp_path, tmp_path / "factory.yaml")
    async with platform.connected() as channel:
        context = Context(around.run, Gateway(channel, patience_seconds=5), Progress(Console(file=io.StringIO())))
        for _ in range(2):
            done = await task.work(rollback.parameters(), around, context)
            assert done.model_dump() == {"active": made.before, "before": made.version}
            assert await active(platform) == made.before
