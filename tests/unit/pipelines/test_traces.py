"""Answers of an evaluation are traces of its run: each once, failed ones first, without texts where none are wanted."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from genaifactory.types.v1 import types_pb2
from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines.evaluation import answered
from genaifactory_pipelines.evaluation.protocol import Answer, Candidate, Item
from genaifactory_pipelines.step import ATTEMPT
from genaifactory_pipelines.steps import gate, record, register
from genaifactory_pipelines.tracking import answers, traces
from genaifactory_pipelines.tracking.client import Tracking
from tests.unit.pipelines import tracked

# Of MLflow's store's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
done = asyncio.run


def recorded(run: Path, **values: Any) -> str:
    """The id of the run in MLflow."""
    parameters = record.Parameters.model_validate({"name": "november", **values})
    return done(record.record.run(parameters, tracked.context(run))).run_id


async def traces_of(tracking: Tracking, run_id: str) -> dict[tuple[str, str], Any]:
    """The traces of a run by their names and items."""

    def search(mlflow: Any) -> list[Any]:
        experiment = mlflow.get_run(run_id).info.experiment_id
        return list(mlflow.search_traces(locations=[experiment], run_id=run_id, max_results=500))

    found = await tracking.call(search)
    named = {(each.info.tags["mlflow.traceName"], each.info.tags["genaifactory.item"]): each for each in found}
    assert len(named) == len(found)
    return named


def scores(trace: Any) -> dict[str, Any]:
    return {each.name: (each.feedback or each.expectation).value for each in trace.info.assessments}


def test_an_answer_is_a_trace_with_its_question_passages_scores_and_slices(tracking: Tracking, tmp_path: Path) -> None:
    run = done(tracked.made(tmp_path / "run"))
    found = done(traces_of(tracking, recorded(run)))
    assert set(found) == {(who, f"g-{n}") for who in answered.WHO for n in range(tracked.ITEMS)}
    trace = found["candidate", "g-4"]
    assert (trace.info.request_preview, trace.info.response_preview) == ("golden item 4", "golden answer 4")
    assert (trace.info.state, trace.info.execution_duration) == ("OK", 2500)
    assert scores(trace) == {"exact_match": 1.0, "seconds": 2.5, "expected_response": "golden answer 4"}
    assert trace.info.tags["genaifactory.answered_by"] == "adapter trained"
    assert trace.info.tags["genaifactory.slice.language"] == "en"
    assert "genaifactory.slice.topic" not in trace.info.tags
    whole, search, model = trace.data.spans
    assert whole.inputs == {"messages": [{"role": "user", "content": "golden item 4"}]}
    assert (whole.outputs, whole.end_time_ns - whole.start_time_ns) == ("golden answer 4", 2_500_000_000)
    assert (search.span_type, search.parent_id) == ("RETRIEVER", whole.span_id)
    assert search.outputs == [{"page_content": "golden answer 4, as the guide has it", "metadata": {}}]
    assert (model.span_type, model.outputs) == ("LLM", "golden answer 4")
    assert [(each.name, each.timestamp - model.start_time_ns) for each in model.events] == [("first text", 500_000_000)]
    before = found["production", "g-5"]
    assert (before.info.tags["genaifactory.answered_by"], scores(before)["exact_match"]) == ("production", 0.0)


def test_an_answer_that_there_is_not_says_why(tracking: Tracking, tmp_path: Path) -> None:
    run = done(tracked.made(tmp_path / "run"))
    found = done(traces_of(tracking, recorded(run)))
    blocked, failed = found["candidate", "g-8"], found["candidate", "g-9"]
    assert (blocked.info.state, blocked.info.response_preview) == ("OK", "(blocked)")
    assert (failed.info.state, failed.info.response_preview) == ("ERROR", "(UPSTREAM_FAILED)")
    assert [each.info.tags["genaifactory.outcome"] for each in (blocked, failed)] == ["blocked", "UPSTREAM_FAILED"]
    assert [span.name for span in failed.data.spans] == ["answer"]
    assert failed.data.spans[0].status.description == "UPSTREAM_FAILED"


def test_a_run_that_is_recorded_again_and_elsewhere_has_each_trace_and_score_once(
    tracking: Tracking, tmp_path: Path
) -> None:
    run = done(tracked.made(tmp_path / "run"))
    run_id = recorded(run)
    before = done(traces_of(tracking, run_id))
    other = tmp_path / "other pod"
    shutil.copytree(run, other)
    shutil.rmtree(other / "record")
    assert recorded(other, name="december") == run_id  # another name is recorded, and the rest with it
    after = done(traces_of(tracking, run_id))
    assert {key: each.to_dict() for key, each in after.items()} == {key: each.to_dict() for key, each in before.items()}


def _counted(method: Any, name: str, found: list[str]) -> Any:
    def counted(*given: Any, **named: Any) -> Any:
        found.append(name)
        return method(*given, **named)

    return counted


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written to MLflow, by the names of its client's methods."""
    from mlflow import MlflowClient
    from mlflow.tracing.client import TracingClient

    found: list[str] = []
    for of in (MlflowClient, TracingClient):
        for name in (each for each in vars(of) if each.startswith(("log_", "set_", "start_", "update_", "create_"))):
            monkeypatch.setattr(of, name, _counted(getattr(of, name), name, found))
    return found


def test_what_mlflow_has_already_is_not_sent_again(tracking: Tracking, tmp_path: Path, written: list[str]) -> None:
    run = done(tracked.made(tmp_path / "run"))
    parameters = register.Parameters(model="support", record=record.Parameters(name="november", traces=4))
    recorded(run, traces=4)
    assert {"create_run", "log_batch", "log_inputs", "log_artifact", "start_trace", "log_spans"} <= {*written}
    written.clear()
    for folder in ("run", "another pod"):
        if folder != "run":
            shutil.copytree(run, tmp_path / folder)
        recorded(tmp_path / folder, traces=4)
        assert written == []
    outputs = done(register.register.run(parameters, tracked.context(run)))
    assert done(register.register.run(parameters, tracked.context(run))) == outputs
    assert not [name for name in written if name.startswith(("log_", "start_")) or name == "create_run"]
    done(tracking.call(lambda mlflow: mlflow.delete_run(outputs.run_id)))
    written.clear()
    assert recorded(run, traces=4) != outputs.run_id
    assert {"create_run", "log_batch", "log_artifact", "log_spans"} <= {*written}


@pytest.mark.parametrize(
    "changed", [{"name": "december"}, {"traces": 6}, {"dataset": "counts"}], ids=["name", "traces", "dataset"]
)
def test_what_is_recorded_with_other_parameters_is_sent(
    tracking: Tracking, tmp_path: Path, written: list[str], changed: dict[str, Any]
) -> None:
    run = done(tracked.made(tmp_path / "run"))
    given = {"name": "november", "traces": 4, **changed}
    recorded(run, name="november", traces=4)
    written.clear()
    run_id = recorded(run, **given)
    assert {"log_batch", "log_artifact", "log_spans"} <= {*written}
    assert len(done(traces_of(tracking, run_id))) == 2 * given["traces"]
    found = done(tracking.call(lambda mlflow: mlflow.get_run(run_id)))
    assert (found.info.run_name, found.info.status) == (given["name"], "FINISHED")
    written.clear()
    assert recorded(run, **given) == run_id
    assert written == []


def test_a_run_that_was_half_replaced_is_written_whole(
    tracking: Tracking, tmp_path: Path, written: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = done(tracked.made(tmp_path / "run"))
    run_id = recorded(run, traces=4)

    def stops(*given: Any, **named: Any) -> None:
        raise InvalidArgument("It stops here.")

    with monkeypatch.context() as patch:
        patch.setattr(traces, "log", stops)
        with pytest.raises(InvalidArgument, match="stops here"):
            recorded(run, traces=6)
    written.clear()
    assert recorded(run, traces=4) == run_id
    assert "log_spans" in written


def test_of_more_items_than_are_wanted_failed_ones_are_first_and_the_run_says_so(
    tracking: Tracking, tmp_path: Path
) -> None:
    run = done(tracked.made(tmp_path / "run", right=25))
    run_id = recorded(run, traces=10)
    failed = {f"g-{n}" for n in (9, 19, *range(25, 30))}
    chosen = {item for _, item in done(traces_of(tracking, run_id))}
    assert len(chosen) == 10
    assert chosen > failed
    note = done(tracking.call(lambda mlflow: mlflow.get_run(run_id).data.tags["mlflow.note.content"]))
    assert "Traces: the answers to 10 of 30 items, the 7 that failed first, then a sample of the others." in note
    run = done(tracked.made(tmp_path / "next", right=25, weights=b"next"))
    assert {item for _, item in done(traces_of(tracking, recorded(run, traces=10)))} == chosen
    run = done(tracked.made(tmp_path / "none", right=25, weights=b"none"))
    assert done(traces_of(tracking, recorded(run, traces=0))) == {}


def test_traces_of_counts_hold_scores_and_times_and_no_text(tracking: Tracking, tmp_path: Path, store: Path) -> None:
    run = done(tracked.made(tmp_path / "run"))
    found = done(traces_of(tracking, recorded(run, dataset="counts")))
    trace = found["candidate", "g-4"]
    assert (trace.info.request_preview, trace.info.response_preview) == ("Item g-4", "15 characters")
    assert scores(trace) == {"exact_match": 1.0, "seconds": 2.5}
    assert [(span.name, span.outputs) for span in trace.data.spans] == [
        ("answer", "15 characters"), ("search", "1 passages"), ("model", "15 characters"),
    ]  # fmt: skip
    for name, data in tracked.artifacts(store).items():
        for text in (b"golden item ", b"golden answer "):
            assert text not in data, name


def test_a_text_without_end_is_cut() -> None:
    asked = types_pb2.Message(role=types_pb2.ROLE_USER, content="z" * 1_000_000)
    item = Item("i", messages=[asked], expected=("x" * 20_000,))
    each = answered.Answered(
        "i", {"topic": "t" * 9_000}, {"production": Answer("y" * 1_000_000)}, {"production": {}}, False
    )
    (trace,) = answers.traces([each], {"i": item}, Candidate(), started=0)
    assert len(json.dumps([trace.inputs, trace.outputs, trace.expected])) < 40_000
    assert len(trace.tags["genaifactory.slice.topic"]) == 250


def test_a_text_with_nul_is_one_that_postgresql_stores() -> None:
    item = Item("i", messages=[types_pb2.Message(role=types_pb2.ROLE_USER, content="a\0b")], expected=("c",))
    each = answered.Answered("i", {"topic": "d\0e"}, {"production": Answer("f\0g")}, {"production": {}}, failed=False)
    (trace,) = answers.traces([each], {"i": item}, Candidate(), started=0)
    assert (trace.request, trace.response, trace.tags["genaifactory.slice.topic"]) == ("ab", "fg", "de")


class Server(BaseHTTPRequestHandler):
    """MLflow, as far as traces need it."""

    versions: ClassVar[list[str]] = []
    """Its answers to the question for its version; an empty one is none."""
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        """Its version."""
        self.respond(self.versions.pop(0) if len(self.versions) > 1 else self.versions[0])

    def do_POST(self) -> None:
        """A trace, or spans."""
        self.rfile.read(int(self.headers["Content-Length"]))
        location = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "7"}}
        info = {"trace_id": "tr-1", "trace_location": location, "request_time": "2026-11-01T00:00:00Z", "state": "OK"}
        self.respond(json.dumps({"trace": {"trace_info": info}}))

    def respond(self, text: str) -> None:
        self.asked.append(self.path)
        self.send_response(200 if text else 503)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[Tracking]:
    """One that answers."""
    with HTTPServer(("127.0.0.1", 0), Server) as found:
        Server.asked = []
        threading.Thread(target=found.serve_forever, args=(0.05,)).start()
        yield Tracking(f"http://127.0.0.1:{found.server_address[1]}", say=print, patience_seconds=60)
        found.shutdown()


def logs(tracking: Tracking) -> None:
    each = answered.Answered("i", {}, {"production": Answer("a")}, {"production": {}}, failed=False)
    made = tuple(answers.traces([each], None, Candidate(), started=0))
    done(tracking.call(partial(traces.log, experiment="7", run_id="r", key="k", traces=made)))


def test_a_server_that_was_too_busy_to_answer_is_asked_for_its_version_again(server: Tracking) -> None:
    Server.versions = ["", "3.17.2"]
    logs(server)
    assert [path for path in Server.asked if path in ("/version", "/v1/traces")] == ["/version"] * 2 + ["/v1/traces"]


def test_a_server_without_spans_is_reported_as_an_older_one(server: Tracking) -> None:
    Server.versions = ["3.1.0"]
    with pytest.raises(InvalidArgument, match="is no MLflow server, or an older one"):
        logs(server)


@pytest.mark.parametrize(
    ("better", "values", "failed"),
    [
        ("higher", [0.0, 0.5, 1.0], {0}),
        ("lower", [0.0, 0.5, 1.0], {2}),
        ("lower", [0.0, 1.0, 3.5], set()),  # seconds
    ],
)
def test_an_item_failed_by_the_worst_score_of_a_share(
    tmp_path: Path, better: str, values: list[float], failed: set[int]
) -> None:
    lines = [
        {"item": str(n), "slices": {}, "candidate": {"m": value}, "production": None} for n, value in enumerate(values)
    ]
    (tmp_path / "scores").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = [json.dumps({"item": str(n), **dataclasses.asdict(Answer("a"))}) for n in range(3)]
    (tmp_path / answered.file_of("production")).write_text("\n".join(said) + "\n")
    found = answered.read(tmp_path, "scores", {"m": better})
    assert {int(each.item) for each in found if each.failed} == failed
    assert [each.failed for each in found] == sorted((each.failed for each in found), reverse=True)
    assert {who for each in found for who in (*each.answers, *each.scores)} == {"production"}


def test_items_without_an_answer_come_before_those_with_a_bad_one(tmp_path: Path) -> None:
    lines = [{"item": str(n), "slices": {}, "candidate": {"m": 0.0}, "production": None} for n in range(50)]
    (tmp_path / "scores").write_text("".join(json.dumps(line) + "\n" for line in lines))
    errors = {"7", "23", "42"}
    said = [
        {"item": str(n), **dataclasses.asdict(Answer("a", error="INTERNAL" if str(n) in errors else ""))}
        for n in range(50)
    ]
    (tmp_path / answered.file_of("production")).write_text("".join(json.dumps(line) + "\n" for line in said))
    found = answered.read(tmp_path, "scores", {"m": "higher"})
    assert {each.item for each in found[:3]} == errors
    assert all(each.failed for each in found)


def test_an_item_failed_by_the_metrics_that_the_gate_judges(tmp_path: Path) -> None:
    """A model that writes sentences has an exact match of 0 nearly everywhere."""
    run = done(tracked.made(tmp_path / "run", right=0))
    for metric, failed in (("failed", 3), ("exact_match", tracked.ITEMS)):
        rules = [{"metric": metric, "at_least": 0}]
        judged = gate.gate.attempt(run).model_copy(update={"parameters": {"gate": {"name": "g", "rules": rules}}})
        (run / "gate" / ATTEMPT).write_text(judged.model_dump_json())
        assert sum(each.failed for each in record._answered(run)) == failed
