"""A recorded run is made again from what was recorded, and every difference is found and named."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines import environment
from genaifactory_pipelines import tracked as commands
from genaifactory_pipelines.evaluation.protocol import Candidate
from genaifactory_pipelines.reproduce import NEEDED, RECORDED, Comparison, Given, reproduce, threads
from genaifactory_pipelines.step import Context, Step
from genaifactory_pipelines.steps import curate, record, record_evaluation, train
from genaifactory_pipelines.tracking.runs import fetched
from genaifactory_pipelines.values import Values
from tests.unit.pipelines import tracked

# Of MLflow's store's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
done = asyncio.run


def recorded(tmp_path: Path) -> Path:
    """A folder for `reproduce`, with what MLflow has of a run."""
    run = done(tracked.made(tmp_path / "run"))
    folder = tmp_path / "again"
    for name in ("collect", "curate", "train"):
        shutil.copytree(run / name, folder / RECORDED / name)
    (folder / RECORDED / "collect" / "interactions.jsonl").unlink()
    return folder


def again(
    folder: Path, given: Given | None = None, *, count: int = 40, weights: bytes = b"weights", loss: float = 3
) -> Comparison:
    """What comes of it on a platform with as many interactions on record, and a training that gives these weights."""

    async def execute(step: Step[Any, Any], parameters: Values, context: Context) -> None:
        assert step is train.train
        await tracked.trains(weights, loss).run(parameters, context)  # type: ignore[arg-type]

    return done(reproduce(folder, given or Given(), tracked.context(folder, count), execute))


def same(found: Comparison) -> dict[str, bool]:
    return {row.what: row.same for row in found.rows}


def test_the_same_record_and_training_give_the_same_run(tmp_path: Path) -> None:
    found = again(recorded(tmp_path))
    assert same(found) == {"interactions": True, "dataset": True, "adapter": True, "metrics of the training": True}
    assert (found.same, found.environment) == (True, ())
    assert not (tmp_path / "again" / "retrained").exists()


def test_other_weights_are_a_difference(tmp_path: Path) -> None:
    found = again(recorded(tmp_path), weights=b"others")
    assert same(found) == {"interactions": True, "dataset": True, "adapter": False, "metrics of the training": True}
    assert not found.same


@pytest.mark.parametrize(
    ("loss", "tolerance", "reproduced"), [(3.001, 0.001, True), (3.1, 0.001, False), (3.1, 0.1, True)]
)
def test_in_another_environment_the_metrics_decide(
    tmp_path: Path, loss: float, tolerance: float, reproduced: bool
) -> None:
    folder = recorded(tmp_path)
    path = folder / RECORDED / "train" / environment.FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "processor": "another one", "threads": "7"}))
    assert threads(folder / RECORDED) == "7"
    found = again(folder, Given(tolerance=tolerance), weights=b"others", loss=loss)
    assert found.same is reproduced
    assert [each.partition(" ")[0] for each in found.environment] == ["processor", "threads"]


def test_a_record_that_has_lost_interactions_is_named_and_the_recorded_dataset_is_trained_on(tmp_path: Path) -> None:
    folder = recorded(tmp_path)
    found = again(folder, count=30)
    assert same(found) == {"interactions": False, "dataset": False, "adapter": True, "metrics of the training": True}
    assert not found.same
    assert next(row.now for row in found.rows).startswith("30 (sha256:")
    assert curate.curate.of(folder / "retrained").version == curate.curate.of(folder / RECORDED).version


@pytest.mark.parametrize(
    ("count", "messages"),
    [
        (0, ["There is no interaction", "none, without interactions"]),
        (5, ["5 (sha256:", "5 examples are left, and 20"]),
    ],
)
def test_a_record_that_is_gone_is_named(tmp_path: Path, count: int, messages: list[str]) -> None:
    found = again(recorded(tmp_path), count=count)
    assert not found.same
    for row, message in zip(found.rows, messages, strict=False):
        assert row.now.startswith(message)
    assert same(found)["adapter"]


def test_without_the_dataset_a_record_that_changed_ends_it(tmp_path: Path) -> None:
    folder = recorded(tmp_path)
    (folder / RECORDED / "curate" / "dataset" / "train.jsonl").unlink()
    found = again(folder, count=30)
    assert (same(found), found.same) == ({"interactions": False, "dataset": False}, False)


def test_a_recorded_dataset_that_was_changed_is_not_trained_on(tmp_path: Path) -> None:
    folder = recorded(tmp_path)
    path = folder / RECORDED / "curate" / "dataset" / "train.jsonl"
    path.write_bytes(path.read_bytes().replace(b"answer", b"poison"))

    async def execute(step: Step[Any, Any], parameters: Values, context: Context) -> None:
        raise AssertionError("it was trained on")

    with pytest.raises(InvalidArgument, match="was changed after it was made"):
        done(reproduce(folder, Given(), tracked.context(folder, 30), execute))


@pytest.mark.parametrize("kept", [".", "run_id", "recorded"], ids=["a folder", "beside what was fetched", "a file"])
def test_a_folder_of_something_else_is_not_deleted(
    store: Path, tmp_path: Path, kept: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "again" / RECORDED
    files = [folder] if kept == RECORDED else [folder / "interview.mp3", folder / "curate" / "notes.txt"]
    for file in [*files, *([folder / kept] if kept == "run_id" else [])]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("0123")
    monkeypatch.setattr(sys, "argv", ["tracked", "fetch", "0123abc", str(folder), *NEEDED])
    with pytest.raises(SystemExit):
        commands.main()
    assert "holds other files than what was fetched of a run" in capsys.readouterr().err
    assert all(file.read_text() == "0123" for file in files)


def test_a_folder_of_something_else_is_not_replaced_by_the_recorded_dataset(tmp_path: Path) -> None:
    folder = recorded(tmp_path)
    notes = folder / "retrained" / "curate" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    with pytest.raises(InvalidArgument, match="holds other files"):
        again(folder, count=30)
    assert notes.read_text() == "mine"


def test_files_and_the_base_that_are_elsewhere_are_asked_for(tmp_path: Path) -> None:
    folder = recorded(tmp_path)
    golden = tmp_path / "golden.jsonl"
    golden.rename(tmp_path / "moved.jsonl")
    with pytest.raises(
        InvalidArgument, match=r"which was not recorded, and .*golden.jsonl is not it. Give it with --golden"
    ):
        again(folder)
    golden.write_text("other")
    with pytest.raises(InvalidArgument, match="Give it with --golden"):
        again(folder)
    (tmp_path / "llama").rename(tmp_path / "moved")
    with pytest.raises(InvalidArgument, match="There is no model in"):
        again(folder)
    given = Given(golden=tmp_path / "moved.jsonl", base=str(tmp_path / "moved"))
    assert again(folder, given).same
    about = json.loads((folder / "rebuilt" / "train" / "adapter" / "metadata.json").read_text())
    assert about["base_model"] == "tiny"


def test_a_run_is_made_again_from_its_id(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = done(tracked.made(tmp_path / "run"))
    run_id = done(record.record.run(record.Parameters(name="november"), tracked.context(run))).run_id
    (tmp_path / "golden.jsonl").unlink()
    folder = tmp_path / "again"

    def fetch(wanted: str) -> str:
        monkeypatch.setattr(sys, "argv", ["tracked", "fetch", wanted, str(folder / RECORDED), *NEEDED])
        try:
            commands.main()
        except SystemExit:
            return capsys.readouterr().err
        return ""

    assert "is not the id of a run" in fetch("../run")
    assert "MLflow has no run 0123abc" in fetch("0123abc")
    assert fetched(folder / RECORDED) == ""
    assert fetch(run_id) == ""
    assert fetched(folder / RECORDED) == run_id
    assert {each.name for each in (folder / RECORDED).iterdir()} == {*NEEDED, "run_id"}
    assert fetch(run_id) == ""
    assert again(folder).same
    evaluated = done(tracked.evaluated(tmp_path / "evaluated" / "run", Candidate(model="small")))
    parameters = record_evaluation.Parameters(name="e", traces=0)
    other = done(record_evaluation.record_evaluation.run(parameters, tracked.context(evaluated))).run_id
    assert f"The run {other} is an evaluation, which has trained nothing. Give a run of the experiment" in fetch(other)
    assert fetched(folder / RECORDED) == run_id
