"""Prompts in MLflow: one that passed its gate is a version by its number in factory.yaml, with stages like adapters."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from genaifactory_common.errors import Conflict, NotFound, Unavailable
from genaifactory_common.specs.routes import Prompt
from genaifactory_local import cli
from genaifactory_local.commands.evaluate import in_mlflow
from genaifactory_pipelines import tracked as commands
from genaifactory_pipelines.evaluation.gate import Verdict
from genaifactory_pipelines.evaluation.protocol import Candidate
from genaifactory_pipelines.steps import evaluate as evaluating
from genaifactory_pipelines.steps import record_evaluation, register_prompt
from genaifactory_pipelines.tracking import registry, runs
from genaifactory_pipelines.tracking.client import Tracking
from genaifactory_pipelines.tracking.kinds import PROMPTS
from tests.unit.pipelines import tracked

# Of MLflow's store's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
done = asyncio.run
ROUTES_OWN = "You are the help desk of Acme; never say so."


def prompt(
    version: int,
    text: str = "Answer from {{ passages | length }} passages.{% if today %} It is {{ today }}.{% endif %}",
) -> Prompt:
    return Prompt(name="rag", version=version, system=f"{text}\nVersion {version}.", refusal={"vi": "Không có."})


def registered(folder: Path, wanted: Prompt, **values: Any) -> register_prompt.Outputs:
    """A prompt that was evaluated and registered. evaluated: fields of the prompt as it was evaluated, where they were
    others."""
    evaluated = wanted.model_copy(update=values.pop("evaluated", {}))
    candidate = values.pop("candidate", Candidate(prompt=wanted.reference))
    hidden = (ROUTES_OWN, evaluated.system)
    run = done(tracked.evaluated(folder, candidate, hidden=hidden, prompt=evaluated, **values))
    record = record_evaluation.Parameters(name="rag", traces=0)
    return done(
        register_prompt.register_prompt.run(
            register_prompt.Parameters(prompt=wanted, record=record), tracked.context(run)
        )
    )


def find(tracking: Tracking) -> registry.Model:
    return done(registry.find(tracking, "rag", PROMPTS))


def test_a_prompt_that_passed_is_a_version_with_its_text_and_its_evaluation(
    tracking: Tracking, tmp_path: Path, store: Path
) -> None:
    outputs = registered(tmp_path / "run", prompt(2))
    assert (outputs.prompt, outputs.uri) == ("rag@2", "prompts:/prompt.rag/1")
    found = done(registry.details(tracking, "rag", None, PROMPTS))
    (version,) = found.versions
    assert (version.version, version.stage, version.gate, version.run_id) == (2, "None", "passed", outputs.run_id)
    assert (version.text, version.refusal) == (prompt(2).system, {"vi": "Không có."})
    assert found.run is not None
    assert (found.run.experiment, found.run.gate) == ("evaluate", "passed")
    assert found.run.metrics["exact_match/candidate"] == 1.0
    own = done(tracking.call(lambda mlflow: mlflow.get_prompt_version_by_alias("prompt.rag", "candidate")))
    assert (own.template, own.version) == (prompt(2).system, 1)
    run = done(tracking.call(lambda mlflow: mlflow.get_run(outputs.run_id)))
    assert json.loads(run.data.tags["mlflow.linkedPrompts"]) == [{"name": "prompt.rag", "version": "1"}]
    for name, data in tracked.artifacts(store).items():
        assert ROUTES_OWN.encode() not in data, name


def test_a_prompt_is_one_version_however_often_and_by_whichever_run_it_is_registered(
    tracking: Tracking, tmp_path: Path
) -> None:
    first = registered(tmp_path / "run", prompt(2))
    assert registered(tmp_path / "run", prompt(2)) == first
    assert registered(tmp_path / "another" / "run", prompt(2)).uri == first.uri
    assert registered(tmp_path / "next", prompt(10)).uri == "prompts:/prompt.rag/2"
    registered(tmp_path / "older", prompt(1))
    found = find(tracking)
    assert [(each.version, each.uri) for each in found.versions] == [
        (10, "prompts:/prompt.rag/2"), (2, "prompts:/prompt.rag/1"), (1, "prompts:/prompt.rag/3"),
    ]  # fmt: skip
    assert found.versions[1].run_id == first.run_id
    candidate = done(tracking.call(lambda mlflow: mlflow.get_prompt_version_by_alias("prompt.rag", "candidate")))
    assert candidate.version == 2


def test_of_two_versions_that_were_made_at_once_the_first_is_kept(tracking: Tracking, tmp_path: Path) -> None:
    registered(tmp_path / "run", prompt(2))
    tags = {"genaifactory.version": "2", "genaifactory.refusal": "{}"}
    done(tracking.call(lambda mlflow: mlflow.create_prompt_version("prompt.rag", "other", tags=tags)))
    registered(tmp_path / "again" / "run", prompt(2))
    assert [each.text for each in find(tracking).versions] == [prompt(2).system]


def test_another_text_under_the_number_of_a_version_is_refused(tracking: Tracking, tmp_path: Path) -> None:
    first = registered(tmp_path / "run", prompt(2))
    changed = prompt(2, "Say yes.")
    with pytest.raises(Conflict, match=f"rag@2 was registered with another text, by the run {first.run_id}"):
        registered(tmp_path / "changed", changed)
    with pytest.raises(Conflict, match="Give the changed prompt a version of its own"):
        registered(tmp_path / "refusal", prompt(2).model_copy(update={"refusal": {"vi": "Có."}}))
    assert [each.text for each in find(tracking).versions] == [prompt(2).system]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"right": 3}, "gate 'release' was not passed: nothing is registered. The run is recorded as"),
        (
            {"candidate": Candidate(prompt="rag@1")},
            "What was evaluated is 'prompt rag@1', and not the prompt rag@2 alone",
        ),
        ({"candidate": Candidate(prompt="rag@2", adapter="a")}, "'adapter a, prompt rag@2', and not the prompt rag@2"),
        ({"evaluated": {"system": "Say no."}}, "The text of rag@2, or a refusal of it, is not what was evaluated"),
        ({"evaluated": {"refusal": {"vi": "Có."}}}, "The text of rag@2, or a refusal of it, is not what was evaluated"),
    ],
)
def test_a_verdict_on_something_else_registers_no_prompt(
    tracking: Tracking, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(Conflict, match=message):
        registered(tmp_path / "run", prompt(2), **values)
    assert done(registry.models(tracking, PROMPTS)) == ()
    with pytest.raises(NotFound, match="There is no registered prompt 'rag'"):
        find(tracking)


def test_an_evaluation_that_does_not_say_what_its_prompt_was_registers_none(tracking: Tracking, tmp_path: Path) -> None:
    candidate, wanted = Candidate(prompt="rag@2"), prompt(2)
    run = done(tracked.evaluated(tmp_path / "run", candidate, hidden=(ROUTES_OWN, wanted.system)))
    given = register_prompt.Parameters(prompt=wanted, record=record_evaluation.Parameters(name="rag", traces=0))
    with pytest.raises(Conflict, match="Evaluate it again"):
        done(register_prompt.register_prompt.run(given, tracked.context(run)))
    assert done(registry.models(tracking, PROMPTS)) == ()


def test_an_evaluation_without_a_prompt_is_the_attempt_that_it_was(tmp_path: Path) -> None:
    given = evaluating.Parameters(name="e", route="rag", golden=tmp_path)
    assert "prompt_sha256" not in given.model_dump()
    again = given.model_copy(update={"prompt_sha256": evaluating.digest_of(prompt(2))})
    assert again.model_dump(mode="json")["prompt_sha256"] == again.prompt_sha256
    assert len(again.prompt_sha256) == 64
    turned = Prompt(name="rag", version=2, system="x", refusal={"vi": "a", "en": "b"})
    assert evaluating.digest_of(turned) == evaluating.digest_of(
        turned.model_copy(update={"refusal": {"en": "b", "vi": "a"}})
    )
    assert evaluating.digest_of(turned) != evaluating.digest_of(turned.model_copy(update={"refusal": {"en": "b"}}))


def test_prompts_have_the_stages_and_the_record_of_models_and_both_may_have_one_name(
    tracking: Tracking, tmp_path: Path
) -> None:
    run_id = registered(tmp_path / "1", prompt(1)).run_id
    registered(tmp_path / "2" / "run", prompt(2))
    done(registry.add(tracking, "rag", run_id, "file:///adapter", {runs.GATE: runs.PASSED}))
    change = partial(registry.change, tracking, "rag", by="an", kind=PROMPTS)
    for version in (1, 2):
        done(change(version, "promote", reason=f"better {version}"))
    with pytest.raises(Conflict, match="Version 2 is in Production already"):
        done(change(2, "promote", reason="again"))
    with pytest.raises(NotFound, match="The prompt 'rag' has no version 3; it has: 2, 1"):
        done(change(3, "promote", reason="x"))
    found = done(change(None, "rollback", reason="wrong dates"))
    assert {each.version: each.stage for each in found.versions} == {2: "Archived", 1: "Production"}
    assert [(each.action, each.version, each.reason) for each in found.changes] == [
        ("promote", 1, "better 1"), ("promote", 2, "better 2"), ("rollback", 2, "wrong dates"),
    ]  # fmt: skip
    own = done(tracking.call(lambda mlflow: mlflow.get_prompt_version_by_alias("prompt.rag", "production")))
    assert own.template == prompt(1).system
    assert done(registry.find(tracking, "rag")).changes == ()
    done(tracking.call(lambda mlflow: mlflow.create_prompt_version("prompt.rag", "by hand")))
    assert [each.version for each in find(tracking).versions] == [2, 1]
    assert [each.kind for each in done(registry.models(tracking))] == ["model"]


def test_an_evaluation_is_recorded_without_a_training_whatever_its_gate_says(
    tracking: Tracking, tmp_path: Path
) -> None:
    run = done(tracked.evaluated(tmp_path / "run", Candidate(model="other"), right=3, hidden=(ROUTES_OWN,)))
    record = record_evaluation.Parameters(name="other", traces=2)
    run_id = done(record_evaluation.record_evaluation.run(record, tracked.context(run))).run_id
    found = done(tracking.call(lambda mlflow: mlflow.get_run(run_id)))
    assert (found.data.tags[runs.GATE], found.data.params["evaluate.route"]) == ("not passed", "rag")
    assert found.data.metrics["exact_match/candidate"] == 0.1
    assert found.inputs is not None
    assert found.inputs.dataset_inputs == []
    artifacts = tracked.artifacts(Path(found.info.artifact_uri.removeprefix("file://")))
    assert {"evaluate/report.html", "gate/report.html", "inputs/evaluate.golden/golden.jsonl"} <= artifacts.keys()
    traces = done(
        tracking.call(lambda mlflow: mlflow.search_traces(locations=[found.info.experiment_id], run_id=run_id))
    )
    assert len(traces) == 4


def test_a_name_that_a_model_has_and_a_tag_that_was_changed_by_hand_are_named(
    tracking: Tracking, tmp_path: Path
) -> None:
    done(tracking.call(lambda mlflow: mlflow.create_registered_model("prompt.rag")))
    with pytest.raises(Conflict, match=r"'prompt\.rag' is taken in MLflow by something else than a prompt"):
        registered(tmp_path / "run", prompt(2))
    done(tracking.call(lambda mlflow: mlflow.delete_registered_model("prompt.rag")))
    registered(tmp_path / "run", prompt(2))
    for key, value in (("genaifactory.refusal", "[]"), ("genaifactory.version", "9" * 5000)):
        tag = partial(_tag, key=key, value=value)
        done(tracking.call(tag))
        if key == "genaifactory.refusal":
            with pytest.raises(
                Conflict, match=r"The tag 'genaifactory\.refusal' of the version 1 of 'prompt\.rag' was"
            ):
                find(tracking)
    assert find(tracking).versions == ()


def _tag(mlflow: Any, key: str, value: str) -> None:
    mlflow.set_prompt_version_tag("prompt.rag", "1", key, value)


def test_a_server_that_is_away_is_not_one_without_the_prompt(
    tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        away = Tracking(f"http://127.0.0.1:{found.getsockname()[1]}", say=print, patience_seconds=0)
        with pytest.raises(Unavailable, match="cannot answer now"):
            done(registry.find(away, "rag", PROMPTS))
    registered(tmp_path / "run", prompt(2))

    def store_of(mlflow: Any) -> Any:
        return mlflow._get_registry_client().store

    store = done(tracking.call(store_of))

    def fail(*arguments: Any) -> None:
        raise requests.ConnectionError

    monkeypatch.setattr(store, "get_prompt_version", fail)
    tracking._patience_seconds = 0
    with pytest.raises(Unavailable, match="cannot answer now"):
        done(registry.change(tracking, "rag", 2, "promote", by="an", reason="better", kind=PROMPTS))
    monkeypatch.undo()
    assert find(tracking).production == 2


def genaifactory(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> tuple[str, str]:
    """Standard output and error of a command."""
    monkeypatch.setattr(sys, "argv", ["genaifactory", "registry", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    with contextlib.suppress(SystemExit):
        cli.main()
    printed = capfd.readouterr()
    return printed.out, printed.err


def test_the_command_line_shows_a_prompts_text_what_differs_and_who_approved_it(
    tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    registered(tmp_path / "1", prompt(1))
    run_id = registered(tmp_path / "2" / "run", prompt(2, "Answer in \x1b[31mred."))
    promote = ["promote", "rag", "2", "--prompt", "--by", "an", "--reason", "clearer"]
    out, _ = genaifactory(promote, monkeypatch, capfd)
    assert "rag: in Production is version 2." in out
    assert "Nothing that is served has changed: factory.yaml says what is." in out
    assert "write `prompt: rag@2` at each of its routes there" in out
    out, error = genaifactory(["show", "rag", "--prompt"], monkeypatch, capfd)
    assert error == ""
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "gate: passed" in lines
    assert any(line.startswith("approved by: an, 20") and line.endswith("UTC: clearer") for line in lines)
    assert any(line.startswith(f"run: rag ({run_id.run_id})") and "experiment evaluate" in line for line in lines)
    assert "exact_match 1 0.25" in lines
    assert lines[lines.index("Text") :] == [
        "Text", "", "Answer in %1B[31mred.", "Version 2.", "refusal vi: Không có.", "",
        "What differs from version 1", "", "--- rag@1", "+++ rag@2", "@@ -1,3 +1,3 @@",
        "-Answer from {{ passages | length }} passages.{% if today %} It is {{ today }}.{% endif %}", "-Version 1.",
        "+Answer in %1B[31mred.", "+Version 2.", "refusal vi: Không có.",
    ]  # fmt: skip


def test_the_commands_print_prompts_as_json(
    tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[Any, str]:
        monkeypatch.setattr(sys, "argv", ["tracked", *arguments])
        with contextlib.suppress(SystemExit):
            commands.main()
        printed = capsys.readouterr()
        return json.loads(printed.out or "null"), printed.err

    for version in (1, 2):
        registered(tmp_path / str(version) / "run", prompt(version))
    capsys.readouterr()
    found, _ = run("show", "rag", "--version", "1", "--prompt")
    assert (found["kind"], found["production"], found["shown"]["version"]) == ("prompt", None, 1)
    assert found["run"]["metrics"]["exact_match/candidate"] == 1.0
    (listed,), _ = run("list")
    assert (listed["kind"], listed["name"], len(listed["versions"])) == ("prompt", "rag", 2)
    assert run("show", "rag") == (None, "genaifactory: There is no registered model 'rag'.\n")


@pytest.mark.parametrize(("texts", "dataset"), [(True, "examples"), (False, "counts")])
def test_an_evaluation_and_its_prompt_are_recorded_without_texts_where_none_are_wanted(
    tmp_path: Path, texts: bool, dataset: str
) -> None:
    wanted = evaluating.Parameters(name="e", route="rag", golden=tmp_path, candidate=Candidate(prompt="rag@2"))
    verdict = Verdict(gate="release", passed=True, findings=())
    (_, recorded), (_, given) = in_mlflow(wanted, prompt(2), texts, verdict)
    assert isinstance(recorded, record_evaluation.Parameters)
    assert isinstance(given, register_prompt.Parameters)
    assert (recorded.dataset, given.record) == (dataset, recorded)


def test_an_evaluation_without_a_gate_is_not_recorded_and_says_what_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "-o", str(tmp_path), "--golden", "g", "--route", "rag", "--mlflow"]
    monkeypatch.setattr(sys, "argv", ["genaifactory", *command])
    with contextlib.suppress(SystemExit):
        cli.main()
    assert "--mlflow records what a gate says of the answers: give --gate as well." in capfd.readouterr().err
