"""A run is one run of MLflow and its adapter one version, whatever is killed and whoever does it at the same time."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from genaifactory_common.errors import (
    Conflict,
    FactoryError,
    InvalidArgument,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from genaifactory_pipelines import curation
from genaifactory_pipelines.datasets import dataset
from genaifactory_pipelines.step import Context, Step
from genaifactory_pipelines.steps import curate, load, record, register, train
from genaifactory_pipelines.tracking import client, registry, runs
from genaifactory_pipelines.tracking.client import Tracking
from genaifactory_pipelines.training.options import Options as Training
from tests.unit.pipelines import registering, tracked
from tests.unit.pipelines.registering import RECORD, REGISTER, Counted

# Of MLflow's store's own use of SQLAlchemy.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning")]

done = asyncio.run


def artifacts_of(run: Any) -> dict[str, bytes]:
    """Content of a run's artifacts by their paths."""
    return tracked.artifacts(Path(run.info.artifact_uri.removeprefix("file://")))


async def all_runs(tracking: Tracking) -> list[Any]:
    """Of the experiment, without deleted ones."""
    return await tracking.call(
        lambda mlflow: list(
            mlflow.search_runs([each.experiment_id for each in mlflow.search_experiments() if each.name == "retrain"])
        )
    )


def test_a_run_has_what_it_takes_to_explain_it_and_to_make_it_again(tracking: Tracking, tmp_path: Path) -> None:
    run = done(tracked.made(tmp_path / "run"))
    outputs = done(record.record.run(RECORD, tracked.context(run)))
    (found,) = done(all_runs(tracking))
    assert (found.info.run_id, found.info.run_name, found.info.status) == (outputs.run_id, "november", "FINISHED")
    assert found.data.params["curate.options.policy"] == "default"
    assert found.data.params["train.sft.epochs"] == "3.0"
    assert len(found.data.params["curate.golden.sha256"]) == 64
    assert found.data.metrics["exact_match/candidate"] == 1.0
    assert found.data.metrics["exact_match/production"] == 0.25
    assert found.data.metrics["gate/passed"] == 1.0
    history = done(tracking.call(lambda mlflow: mlflow.get_metric_history(outputs.run_id, "sft/train_loss")))
    assert [(point.step, point.value) for point in history] == [(n, 3 / (n + 1)) for n in range(250)]
    version = curate.curate.of(run).version
    (dataset,) = found.inputs.dataset_inputs
    assert version.removeprefix("sha256:").startswith(dataset.dataset.digest)
    assert json.loads(dataset.dataset.profile)["documents"] == {"guide/0.md": 14, "guide/1.md": 13, "guide/2.md": 13}
    assert json.loads(dataset.dataset.source)["start"] == "2026-11-01T00:00:00Z"
    assert found.data.tags["genaifactory.dataset"] == version
    assert found.data.tags["genaifactory.adapter"] == train.train.of(run).sha256
    assert found.data.tags[runs.GATE] == "passed"
    artifacts = artifacts_of(found)
    for name in ("train/adapter/adapter_model.safetensors", "curate/dataset/train.jsonl", "gate/report.html"):
        assert artifacts[name] == (run / name).read_bytes()
    assert artifacts["inputs/curate.golden/golden.jsonl"] == (tmp_path / "golden.jsonl").read_bytes()


def test_what_is_not_masked_stays_where_it_is(tracking: Tracking, tmp_path: Path, store: Path) -> None:
    run = done(tracked.made(tmp_path / "run"))
    assert tracked.SECRET.encode() in (run / "collect/interactions.jsonl").read_bytes()
    done(record.record.run(RECORD, tracked.context(run)))
    for name, data in tracked.artifacts(store).items():
        assert tracked.SECRET.encode() not in data, name


@pytest.mark.parametrize("wanted", ["examples", "counts"])
def test_no_text_of_an_example_or_a_golden_item_leaves_its_place_when_counts_are_wanted(
    tracking: Tracking, tmp_path: Path, store: Path, wanted: str
) -> None:
    run = done(tracked.made(tmp_path / "run"))
    done(record.record.run(RECORD.model_copy(update={"dataset": wanted}), tracked.context(run)))
    _, splits = dataset.read(run / "curate" / "dataset")
    texts = {"golden item ", "golden answer "}
    for example in (*splits.train, *splits.validation, *splits.test):
        texts |= {example.questions.partition(" <PERSON>")[0], example.output}
    (found,) = done(all_runs(tracking))
    artifacts = artifacts_of(found)
    holding = {name for name, data in artifacts.items() if any(text.encode() in data for text in texts)}
    if wanted == "counts":
        assert holding == set()
        assert {"curate/dataset/dataset.json", "evaluate/scores.jsonl", "gate/report.html"} <= artifacts.keys()
        database = b"".join(path.read_bytes() for path in store.glob(f"{client.DATABASE}*"))
        assert not [text for text in texts if text.encode() in database]
    else:
        reports = {f"{step}/report.html" for step in ("curate", "train", "evaluate")}
        files = {"curate/dataset/train.jsonl", "evaluate/candidate.jsonl", "evaluate/production.jsonl"}
        assert holding >= {*reports, *files, "inputs/curate.golden/golden.jsonl"}


@pytest.mark.parametrize("order", [("examples", "counts"), ("counts", "examples")])
def test_a_run_without_texts_is_another_one_than_with_them(
    tracking: Tracking, tmp_path: Path, order: tuple[str, str]
) -> None:
    run = done(tracked.made(tmp_path / "run"))
    ids = {
        wanted: done(record.record.run(RECORD.model_copy(update={"dataset": wanted}), tracked.context(run))).run_id
        for wanted in order
    }
    found = {each.info.run_id: artifacts_of(each) for each in done(all_runs(tracking))}
    assert found.keys() == set(ids.values())
    assert "curate/dataset/train.jsonl" in found[ids["examples"]]
    without = found[ids["counts"]]
    assert not [name for name, data in without.items() if b"golden item " in data or b"golden answer " in data]
    traces = done(
        tracking.call(
            lambda mlflow: mlflow.search_traces(
                locations=[mlflow.get_run(ids["counts"]).info.experiment_id], run_id=ids["counts"]
            )
        )
    )
    assert len(traces) == 8
    assert not [each for each in traces if "golden " in each.to_json()]


def test_no_system_prompt_is_taken_to_mlflow(tracking: Tracking, tmp_path: Path, store: Path) -> None:
    run = done(tracked.made(tmp_path / "run"))
    assert tracked.PROMPT.encode() in (run / "evaluate" / ".attempt").read_bytes()
    done(record.record.run(RECORD, tracked.context(run)))
    for name, data in tracked.artifacts(store).items():
        assert tracked.PROMPT.encode() not in data, name
    (found,) = done(all_runs(tracking))
    assert found.data.params["evaluate.route"] == "chat"
    assert "curate/.attempt" in artifacts_of(found)


def test_an_adapter_that_passed_is_a_version_and_the_candidate(tracking: Tracking, tmp_path: Path) -> None:
    run = done(tracked.made(tmp_path / "run"))
    outputs = done(register.register.run(REGISTER, tracked.context(run)))
    assert (outputs.version, outputs.uri) == (1, "models:/support/1")
    found = done(registry.find(tracking, "support"))
    assert [(each.version, each.stage, each.gate, each.run_id) for each in found.versions] == [
        (1, "None", "passed", outputs.run_id)
    ]
    assert found.versions[0].tags["sha256"] == train.train.of(run).sha256
    source = done(tracking.call(lambda mlflow: mlflow.get_model_version_by_alias("support", "candidate").source))
    assert source is not None
    assert (Path(source.removeprefix("file://")) / "adapter_model.safetensors").read_bytes() == b"weights"


def test_a_run_that_did_not_pass_is_recorded_and_not_registered(tracking: Tracking, tmp_path: Path) -> None:
    run = done(tracked.made(tmp_path / "run", right=3))
    with pytest.raises(Conflict, match="gate 'release' was not passed: nothing is registered"):
        done(register.register.run(REGISTER, tracked.context(run)))
    (found,) = done(all_runs(tracking))
    assert found.data.tags[runs.GATE] == "not passed"
    assert "exact_match at_least 0.5 : candidate 0.1 on 30 items" in found.data.tags["mlflow.note.content"]
    assert done(registry.models(tracking)) == ()


def test_a_verdict_on_something_else_registers_nothing(tracking: Tracking, tmp_path: Path) -> None:
    run = done(tracked.made(tmp_path / "production", candidate=""))
    with pytest.raises(Conflict, match=r"What was evaluated is no adapter\. The verdict is not on this adapter"):
        done(register.register.run(REGISTER, tracked.context(run)))
    run = done(tracked.made(tmp_path / "again"))
    shutil.rmtree(run / "train")
    done(tracked.trains(b"other weights").run(Training(base="/m", served_as="tiny"), tracked.context(run)))
    with pytest.raises(Conflict, match="was trained again after it was evaluated"):
        done(register.register.run(REGISTER, tracked.context(run)))
    assert done(registry.models(tracking)) == ()


def test_a_verdict_on_another_adapter_than_was_loaded_registers_nothing(tracking: Tracking, tmp_path: Path) -> None:
    run = done(tracked.made(tmp_path / "run", candidate="good"))

    async def work(parameters: load.Parameters, context: Context, folder: Path) -> load.Outputs:
        name = f"candidate-{(await asyncio.to_thread(train.train.of, context.run)).sha256[:12]}"
        return load.Outputs(name=name, base_model="tiny", replicas=1)

    loads = Step("load", load.Parameters, load.Outputs, work, needs=(train.train,))
    name = done(loads.run(load.Parameters(), tracked.context(run))).name
    with pytest.raises(Conflict, match=f"The adapter 'good' was evaluated, and '{name}' was trained"):
        done(register.register.run(REGISTER, tracked.context(run)))
    run = done(tracked.made(tmp_path / "run", candidate=name))
    assert done(register.register.run(REGISTER, tracked.context(run))).version == 1


def test_a_result_of_a_former_one_is_not_recorded(tracking: Tracking, tmp_path: Path) -> None:
    run = done(tracked.made(tmp_path / "run"))
    wanted = curate.Parameters(options=curation.Options(policy="default", test=0.3))
    done(curate.curate.run(wanted, tracked.context(run)))
    with pytest.raises(Conflict, match="'curate' was run again after 'train'"):
        done(record.record.run(RECORD, tracked.context(run)))
    assert done(all_runs(tracking)) == []


def test_a_file_that_was_replaced_is_not_recorded_as_what_was_given(tracking: Tracking, tmp_path: Path) -> None:
    run = done(tracked.made(tmp_path / "run"))
    golden = tmp_path / "golden.jsonl"
    former = golden.read_bytes()
    golden.write_bytes(former + b'{"input": "new", "output": "new"}\n')
    with pytest.raises(Conflict, match=r"golden.jsonl is not the file that 'curate' was run with as 'golden'"):
        done(record.record.run(RECORD, tracked.context(run)))
    golden.unlink()
    with pytest.raises(Conflict, match="Restore it, or run 'curate' and the steps after it again"):
        done(record.record.run(RECORD, tracked.context(run)))
    assert done(all_runs(tracking)) == []
    golden.write_bytes(former)
    assert done(record.record.run(RECORD, tracked.context(run))).run_id


def _deleted(mlflow: Any) -> list[Any]:
    return list(mlflow.search_runs([each.experiment_id for each in mlflow.search_experiments()], run_view_type=2))


def test_the_same_results_are_one_run_from_wherever_they_are_recorded(tracking: Tracking, tmp_path: Path) -> None:
    run = done(tracked.made(tmp_path / "run"))
    first = done(register.register.run(REGISTER, tracked.context(run)))
    other = tmp_path / "other pod"
    shutil.copytree(run, other)
    shutil.rmtree(other / "register")
    shutil.rmtree(other / "record")
    assert done(register.register.run(REGISTER, tracked.context(other))) == first
    run = done(tracked.made(tmp_path / "next", weights=b"next"))
    assert (done(register.register.run(REGISTER, tracked.context(run)))).version == 2
    assert len(done(all_runs(tracking))) == 2
    assert done(tracking.call(_deleted)) == []
    # An older one that is registered late is not the candidate.
    done(registry.add(tracking, "support", first.run_id, "file:///none", {}))
    candidate = done(tracking.call(lambda mlflow: mlflow.get_model_version_by_alias("support", "candidate")))
    assert int(candidate.version) == 2


# Kills, and two at once


@pytest.fixture(scope="module")
def processes() -> Any:
    """New processes that have everything imported: MLflow takes two seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.unit.pipelines.preloaded"])
    return context


def test_a_process_that_is_killed_at_each_kind_of_call_leaves_one_run_and_one_version(
    empty: Path, store: Path, tmp_path: Path, processes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = done(tracked.made(tmp_path / "run"))
    shutil.copytree(run, tmp_path / "whole")
    shutil.copytree(empty, tmp_path / "other")
    with monkeypatch.context() as patch:
        patch.setattr(client, "Tracking", Counted)
        registering.register_in(tmp_path / "whole", client.embedded(tmp_path / "other"))
    calls = Counted.called
    kinds = [at for at, name in enumerate(calls) if at == 0 or name != calls[at - 1]]
    points = [(calls[at], calls[: at + 1].count(calls[at]), at % 2 == 1) for at in kinds]
    assert len(points) >= 10
    for point in [*points, None]:
        process = processes.Process(target=registering.register_in, args=(run, client.embedded(store), point))
        process.start()
        process.join(60)
        assert process.exitcode == (0 if point is None else -signal.SIGKILL)
        if point is not None:
            shutil.rmtree(run / "record", ignore_errors=True)  # a pod's folder is lost with it
    tracking = Tracking(client.embedded(store), say=print)
    (found,) = done(all_runs(tracking))
    assert found.info.status == "FINISHED"
    history = done(tracking.call(lambda mlflow: mlflow.get_metric_history(found.info.run_id, "sft/train_loss")))
    assert [point.step for point in history] == list(range(250))
    traces = done(
        tracking.call(lambda mlflow: mlflow.search_traces(locations=[found.info.experiment_id], include_spans=False))
    )
    assert len(traces) == 8
    assert {each.info.trace_metadata["mlflow.sourceRun"] for each in traces} == {found.info.run_id}
    assert {len(each.info.assessments) for each in traces} == {3}
    model = done(registry.find(tracking, "support"))
    assert [(each.version, each.run_id) for each in model.versions] == [(1, found.info.run_id)]


def test_processes_at_once_make_one_run_and_one_version(store: Path, tmp_path: Path, processes: Any) -> None:
    run = done(tracked.made(tmp_path / "0"))
    for name in ("1", "2"):
        shutil.copytree(run, tmp_path / name)
    uri = client.embedded(store)
    started = [
        processes.Process(target=registering.register_in, args=(tmp_path / name, uri)) for name in ("0", "1", "2")
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
        assert process.exitcode == 0
    tracking = Tracking(uri, say=print)
    (found,) = done(all_runs(tracking))
    model = done(registry.find(tracking, "support"))
    assert [(each.version, each.run_id) for each in model.versions] == [(1, found.info.run_id)]
    for name in ("0", "1", "2"):
        assert register.register.of(tmp_path / name).run_id == found.info.run_id


def test_of_two_runs_that_were_made_at_once_the_finished_one_is_kept(tracking: Tracking, tmp_path: Path) -> None:
    run = done(tracked.made(tmp_path / "run"))
    first = done(record.record.run(RECORD, tracked.context(run)))
    (found,) = done(all_runs(tracking))
    done(
        tracking.call(
            lambda mlflow: mlflow.create_run(found.info.experiment_id, tags={runs.KEY: found.data.tags[runs.KEY]})
        )
    )
    assert len(done(all_runs(tracking))) == 2
    shutil.rmtree(run / "record")
    assert done(record.record.run(RECORD, tracked.context(run))) == first
    assert [each.info.run_id for each in done(all_runs(tracking))] == [first.run_id]


def test_a_version_that_another_process_has_removed_meanwhile_is_no_error(tracking: Tracking, tmp_path: Path) -> None:
    run = done(tracked.made(tmp_path / "run"))
    first = done(register.register.run(REGISTER, tracked.context(run)))
    adding = partial(registry.add, tracking, "support", first.run_id, "file:///adapter", {})
    done(tracking.call(lambda mlflow: mlflow.create_model_version("support", "file:///adapter", first.run_id)))

    def removed(mlflow: Any) -> None:
        looked, looks = mlflow.search_model_versions, []

        def look(*arguments: Any, **options: Any) -> Any:
            found = looked(*arguments, **options)
            looks.append(found)
            for each in found if len(looks) == 2 else ():  # between the look and the removal of what it has found
                if str(each.version) != "1":
                    mlflow.delete_model_version("support", each.version)
            return found

        mlflow.search_model_versions = look

    done(tracking.call(removed))
    assert done(adding()) == 1


# A store that is away, and one that is none


class Server(BaseHTTPRequestHandler):
    """MLflow's answer to one request, after two that fail."""

    asked: ClassVar[list[str]] = []
    statuses: ClassVar[list[int]] = []

    def do_GET(self) -> None:
        """An experiment."""
        self.asked.append(self.path)
        status = self.statuses.pop(0) if self.statuses else 200
        body = b"<html>hunter2</html>"
        if status == 200:
            body = json.dumps({"experiment": {"experiment_id": "7", "name": "retrain"}}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    """On a free port, not yet answering."""
    with HTTPServer(("127.0.0.1", 0), Server, bind_and_activate=False) as found:
        found.allow_reuse_address = True
        found.server_bind()
        Server.asked, Server.statuses = [], []
        yield found
        found.shutdown()


def test_a_server_that_is_away_is_waited_for(server: HTTPServer) -> None:
    said: list[str] = []
    host, port = server.server_address[:2]
    tracking = Tracking(f"http://someone:hunter2@{host!s}:{port}", say=said.append, patience_seconds=60)
    Server.statuses = [503, 500]

    def begin() -> None:
        server.server_activate()
        server.serve_forever(poll_interval=0.05)

    threading.Timer(1.0, begin).start()  # until then nobody listens there
    found = done(tracking.call(lambda mlflow: mlflow.get_experiment_by_name("retrain")))
    assert found is not None
    assert found.experiment_id == "7"
    assert len(Server.asked) == 3
    assert said == [f"MLflow at http://{host!s}:{port} cannot answer now (INTERNAL_ERROR). Waiting."]


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, Unauthenticated), (403, PermissionDenied), (404, InvalidArgument)],
)
def test_a_server_that_refuses_is_not_asked_again(
    server: HTTPServer, status: int, kind: type[FactoryError], capfd: pytest.CaptureFixture[str]
) -> None:
    server.server_activate()
    threading.Thread(target=server.serve_forever, args=(0.05,)).start()
    Server.statuses = [status]
    host, port = server.server_address[:2]
    tracking = Tracking(f"http://{host!s}:{port}", say=print)
    with pytest.raises(kind) as caught:
        done(tracking.call(lambda mlflow: mlflow.get_run("0123")))
    assert "hunter2" not in caught.value.message
    assert len(Server.asked) == 1


@pytest.mark.parametrize(("refusals", "repeated"), [(2, True), (99, False)])
def test_a_row_that_another_process_was_first_to_write_is_written_again_and_not_for_ever(
    tracking: Tracking, refusals: int, repeated: bool
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST

    asked: list[Any] = []

    def insert(mlflow: Any) -> str:
        asked.append(mlflow)
        if len(asked) <= refusals:
            raise MlflowException("UNIQUE constraint failed", error_code=BAD_REQUEST)
        return "written"

    if repeated:
        assert done(tracking.call(insert)) == "written"
        assert len(asked) == refusals + 1
        return
    with pytest.raises(InvalidArgument):
        done(tracking.call(insert))
    assert len(asked) < 10


def test_a_server_that_stays_away_ends_the_wait() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    tracking = Tracking(f"http://127.0.0.1:{port}", say=print, patience_seconds=0.2)
    with pytest.raises(Unavailable, match=f"MLflow at http://127.0.0.1:{port} cannot answer now"):
        done(tracking.call(lambda mlflow: mlflow.get_run("0123")))


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("", "MLFLOW_TRACKING_URI is not set"),
        ("postgresql://someone:hunter2@host/mlflow", "must begin with http://, https:// or sqlite:///"),
        ("/some/folder", "must begin with"),
        ("sqlite:////no/such/folder/mlflow.db", "/no/such/folder/mlflow.db cannot be opened"),
    ],
)
def test_a_place_that_is_none_is_refused(uri: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(client.URI, uri)
    with pytest.raises(InvalidArgument, match=expected) as caught:
        client.from_environment(print)
    assert "hunter2" not in caught.value.message


def test_a_file_that_is_no_database_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow.db").write_text("no database" * 100)
    with pytest.raises(InvalidArgument, match=r"mlflow.db cannot be opened as a database .*not a database"):
        Tracking(client.embedded(tmp_path), say=print)


def test_without_the_library_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as if it were not there
    with pytest.raises(
        Unimplemented, match=r"needs mlflow, .*genaifactory-pipelines\[tracking\], or run `make mlflow`"
    ):
        Tracking(client.embedded(tmp_path), say=print)
