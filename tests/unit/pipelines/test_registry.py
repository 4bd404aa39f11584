"""Stages: one version in Production, a record of who moved which one and why, and nothing promoted past its gate."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest

from genaifactory_common.errors import Conflict, NotFound
from genaifactory_common.specs.routes import Prompt
from genaifactory_local import cli, interpreters
from genaifactory_local import tracking as tracking_here
from genaifactory_pipelines import tracked
from genaifactory_pipelines.tracking import client, kinds, registry, runs, stages
from genaifactory_pipelines.tracking.client import Tracking
from genaifactory_pipelines.tracking.kinds import Kind
from genaifactory_pipelines.tracking.stages import Action, Change

# Of MLflow's store's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
done = asyncio.run
NOW = datetime(2026, 11, 1, tzinfo=UTC)


def change(action: Action, version: int, **values: Any) -> Change:
    fields = {"at": NOW, "by": "an", "action": action, "version": version, "reason": "better", "run_id": "r"}
    return Change.model_validate({**fields, **values})


def test_a_promotion_archives_the_former_version_and_rollbacks_go_back_one_by_one() -> None:
    record = [change("promote", version) for version in (1, 2, 3)]
    found = stages.after(record)
    assert (found.production, found.of) == (3, {1: "Archived", 2: "Archived", 3: "Production"})
    found = stages.after([*record, change("rollback", 3)])
    assert (found.production, found.of[3]) == (2, "Archived")
    found = stages.after([*record, change("rollback", 3), change("rollback", 2)])
    assert (found.production, found.former) == (1, [])


def test_a_rollback_never_returns_to_what_was_archived() -> None:
    record = [change("promote", 1), change("promote", 2), change("promote", 3), change("archive", 2)]
    assert stages.after([*record, change("rollback", 3)]).production == 1


def test_of_two_changes_at_once_the_one_that_no_longer_applies_has_no_effect() -> None:
    record = [change("promote", 1), change("promote", 2), change("promote", 3)]
    twice = stages.after([*record, change("rollback", 3), change("rollback", 3)])
    assert twice == stages.after([*record, change("rollback", 3)])
    assert stages.after([*record, change("archive", 3)]).production == 3


def test_whatever_is_recorded_at_most_one_version_is_in_production() -> None:
    dice = random.Random(7)
    for _ in range(300):
        record = [change(dice.choice(get_args(Action)), dice.randint(1, 4)) for _ in range(dice.randint(1, 20))]
        found = stages.after(record)
        assert list(found.of.values()).count("Production") <= 1
        assert found.production not in found.former
        assert len(set(found.former)) == len(found.former)
        for version in found.former:
            assert found.of[version] in ("Archived", "Staging")


@pytest.mark.parametrize(
    ("record", "wanted", "message"),
    [
        ([], change("rollback", 0), "No version is in Production"),
        ([change("promote", 1)], change("rollback", 1), "Version 1 is the first in Production"),
        ([change("promote", 1)], change("promote", 1), "Version 1 is in Production already"),
        ([change("promote", 1)], change("archive", 1), "Version 1 is in Production. Promote another one, or roll back"),
        ([change("promote", 1)], change("stage", 1), "Version 1 is in Production. Promote another one, or roll back"),
        ([change("stage", 1)], change("stage", 1), "Version 1 is in Staging already"),
        ([change("archive", 1)], change("archive", 1), "Version 1 is archived already"),
    ],
)
def test_a_change_without_effect_is_refused(record: list[Change], wanted: Change, message: str) -> None:
    with pytest.raises(Conflict, match=message):
        stages.require_applies(stages.after(record), wanted)


@pytest.fixture
def model(tracking: Tracking, tmp_path: Path) -> str:
    """Three versions, of which the run of the last one did not pass its gate."""

    def runs_of(mlflow: Any) -> list[str]:
        experiment = mlflow.create_experiment("retrain", artifact_location=f"file://{tmp_path}/artifacts")
        return [mlflow.create_run(experiment).info.run_id for _ in range(3)]

    for run_id, gate in zip(done(tracking.call(runs_of)), ("passed", "passed", "not passed"), strict=True):
        done(registry.add(tracking, "support", run_id, f"file://{tmp_path}/artifacts/{run_id}", {runs.GATE: gate}))
    return "support"


def alias(tracking: Tracking, name: str) -> str | None:
    aliases: dict[str, str] = done(tracking.call(lambda mlflow: mlflow.get_registered_model("support").aliases))
    return None if name not in aliases else str(aliases[name])


def test_the_record_has_who_and_why_and_the_alias_follows_it(tracking: Tracking, model: str) -> None:
    assert done(registry.find(tracking, model)).production is None
    for version in (1, 2):
        done(registry.change(tracking, model, version, "promote", by="an", reason=f"better {version}"))
    assert alias(tracking, registry.PRODUCTION) == "2"
    found = done(registry.change(tracking, model, None, "rollback", by="binh", reason="wrong dates"))
    assert (found.production, alias(tracking, registry.PRODUCTION)) == (1, "1")
    assert [(each.by, each.action, each.version, each.reason) for each in found.changes] == [
        ("an", "promote", 1, "better 1"), ("an", "promote", 2, "better 2"), ("binh", "rollback", 2, "wrong dates"),
    ]  # fmt: skip
    assert [each.run_id for each in found.changes] == [found.versions[2].run_id] + [found.versions[1].run_id] * 2
    assert all(timedelta() <= datetime.now(UTC) - each.at < timedelta(minutes=5) for each in found.changes)
    assert {each.version: each.stage for each in found.versions} == {3: "None", 2: "Archived", 1: "Production"}


def test_what_did_not_pass_its_gate_is_promoted_only_despite_it(tracking: Tracking, model: str) -> None:
    for action in ("promote", "stage"):
        with pytest.raises(Conflict, match="The run of version 3 did not pass its gate"):
            done(registry.change(tracking, model, 3, action, by="an", reason="in a hurry"))
    assert done(registry.find(tracking, model)).changes == ()
    found = done(registry.change(tracking, model, 3, "promote", by="an", reason="by hand", despite_gate=True))
    assert found.production == 3
    assert [each.despite_gate for each in found.changes] == [True]
    found = done(registry.change(tracking, model, 1, "promote", by="an", reason="passed", despite_gate=True))
    assert [each.despite_gate for each in found.changes] == [True, False]


def test_a_version_that_somebody_made_in_mlflow_has_no_gate(tracking: Tracking, model: str) -> None:
    def make(mlflow: Any) -> None:
        run = mlflow.create_run("0")
        mlflow.create_model_version("support", f"{run.info.artifact_uri}/adapter", run.info.run_id)

    done(tracking.call(make))
    with pytest.raises(Conflict, match="The run of version 4 has no gate"):
        done(registry.change(tracking, model, 4, "promote", by="an", reason="x"))


def test_an_alias_that_a_killed_command_left_behind_is_put_right(tracking: Tracking, model: str) -> None:
    done(registry.change(tracking, model, 1, "promote", by="an", reason="better"))
    done(tracking.call(lambda mlflow: mlflow.set_registered_model_alias(model, registry.PRODUCTION, "2")))
    with pytest.raises(Conflict, match="in Production already"):
        done(registry.change(tracking, model, 1, "promote", by="an", reason="again"))
    assert alias(tracking, registry.PRODUCTION) == "1"


@pytest.fixture(params=["model", "prompt"])
def deleting(request: pytest.FixtureRequest, tracking: Tracking, tmp_path: Path) -> tuple[Kind, Callable[[int], None]]:
    """A kind with two versions of the name `support` that passed, and what deletes one in MLflow."""
    if request.param == "prompt":

        def delete(version: int) -> None:
            done(tracking.call(lambda mlflow: mlflow.delete_prompt_version("prompt.support", str(version))))

        run_id = done(tracking.call(lambda mlflow: mlflow.create_run("0").info.run_id))
        for version in (1, 2):
            prompt = Prompt(name="support", version=version, system=f"Version {version}.")
            done(registry.add_prompt(tracking, prompt, run_id, {runs.GATE: runs.PASSED}))
        return kinds.PROMPTS, delete

    for number in (1, 2):
        run_id = done(tracking.call(lambda mlflow: mlflow.create_run("0").info.run_id))
        done(registry.add(tracking, "support", run_id, f"file://{tmp_path}/{number}", {runs.GATE: runs.PASSED}))
    return kinds.MODELS, lambda version: done(
        tracking.call(lambda mlflow: mlflow.delete_model_version("support", str(version)))
    )


def test_after_the_version_in_production_was_deleted_in_mlflow_another_one_is_promoted(
    tracking: Tracking, deleting: tuple[Kind, Callable[[int], None]]
) -> None:
    kind, delete = deleting
    change = partial(registry.change, tracking, "support", by="an", reason="better", kind=kind)
    done(change(1, "promote"))
    delete(1)
    with pytest.raises(Conflict, match="Version 1 is the first in Production"):
        done(change(None, "rollback"))
    assert done(change(2, "stage")).production == 1
    assert done(change(2, "promote")).production == 2
    before = done(registry.find(tracking, "support", kind))
    with pytest.raises(Conflict, match="Version 1, to which a rollback returns, was deleted in MLflow; promote anoth"):
        done(change(None, "rollback"))
    assert done(registry.find(tracking, "support", kind)) == before


def test_a_version_that_was_deleted_while_it_was_in_production_is_rolled_back_from(
    tracking: Tracking, deleting: tuple[Kind, Callable[[int], None]]
) -> None:
    kind, delete = deleting
    change = partial(registry.change, tracking, "support", by="an", reason="wrong dates", kind=kind)
    done(change(1, "promote"))
    done(change(2, "promote"))
    delete(2)
    found = done(change(None, "rollback"))
    assert (found.production, found.versions[0].stage) == (1, "Production")
    assert [(each.action, each.version, each.run_id) for each in found.changes[2:]] == [("rollback", 2, "")]


def test_what_is_in_production_and_was_deleted_is_shown_as_such(
    tracking: Tracking, model: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    done(registry.change(tracking, model, 1, "promote", by="an", reason="better"))
    done(tracking.call(lambda mlflow: mlflow.delete_model_version(model, "1")))
    status, out, _ = genaifactory(["show", model], monkeypatch, capfd)
    assert status == 0
    assert out.startswith("support: in Production is version 1, which was deleted in MLflow: promote another one.\n")


def add(mlflow: Any, wanted: Change) -> None:
    """What another command does, up to its alias."""
    tag = f"genaifactory.change.{wanted.at:%Y%m%dT%H%M%S.%f}-0000000{wanted.version}"
    mlflow.set_registered_model_tag("support", tag, wanted.model_dump_json())


def test_a_change_takes_effect_after_one_of_a_clock_that_was_ahead(tracking: Tracking, model: str) -> None:
    ahead = datetime.now(UTC) + timedelta(hours=2)
    for version in (1, 2):
        wanted = change("promote", version, at=ahead + timedelta(seconds=version))
        done(tracking.call(partial(add, wanted=wanted)))
    found = done(registry.change(tracking, model, None, "rollback", by="binh", reason="wrong dates"))
    assert (found.production, alias(tracking, registry.PRODUCTION)) == (1, "1")
    assert [each.action for each in found.changes] == ["promote", "promote", "rollback"]


@pytest.mark.allow_blocking  # the other command's writing
def test_a_change_that_another_command_forestalls_is_reported(
    tracking: Tracking, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in (1, 2):
        done(registry.change(tracking, model, version, "promote", by="an", reason="better"))
    check = stages.require_applies

    def slowly(found: stages.Stages, wanted: Change) -> None:
        """The other one reads the record before this one's change is in it, and its own is in it first."""
        check(found, wanted)
        first = wanted.model_copy(update={"at": wanted.at - timedelta(microseconds=1), "by": "binh"})
        add(mlflow, first)

    mlflow = done(tracking.call(lambda found: found))
    monkeypatch.setattr(stages, "require_applies", slowly)
    with pytest.raises(Conflict, match="Another change of the model 'support' came first"):
        done(registry.change(tracking, model, None, "rollback", by="an", reason="wrong dates"))
    found = done(registry.find(tracking, model))
    assert (found.production, alias(tracking, registry.PRODUCTION)) == (1, "1")
    assert [each.by for each in found.changes] == ["an", "an", "binh", "an"]


def test_the_alias_follows_the_record_of_a_faster_command(
    tracking: Tracking, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done(registry.change(tracking, model, 1, "promote", by="an", reason="better"))
    others = [change("promote", 2, at=datetime.now(UTC) + timedelta(seconds=1))]

    def slowly(mlflow: Any, **values: Any) -> None:
        """Between the reading of the record and this setting of the alias another command does both."""
        if others:
            add(mlflow, others.pop())
            mlflow.set_registered_model_alias(model, registry.PRODUCTION, "2")
        mlflow.set_registered_model_alias(model, values["alias"], str(values["number"]))

    monkeypatch.setattr(kinds.MODELS, "point", slowly)
    assert done(registry.settle(tracking, model)).production == 2
    assert alias(tracking, registry.PRODUCTION) == "2"


def test_what_is_not_there_and_a_record_that_was_changed_by_hand_are_named(tracking: Tracking, model: str) -> None:
    for name in ("other", "it's' or name != '", "support\n"):
        with pytest.raises(NotFound, match="There is no registered model"):
            done(registry.find(tracking, name))
    with pytest.raises(NotFound, match="has no version 9; it has: 3, 2, 1"):
        done(registry.change(tracking, model, 9, "promote", by="an", reason="x"))
    done(tracking.call(lambda mlflow: mlflow.set_registered_model_tag(model, "genaifactory.change.1", "{}")))
    with pytest.raises(Conflict, match=r"The tag 'genaifactory.change.1' of the model 'support' was changed"):
        done(registry.find(tracking, model))


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    """What python -m genaifactory_pipelines.tracked prints, and its error."""
    monkeypatch.setattr(sys, "argv", ["tracked", *arguments])
    with contextlib.suppress(SystemExit):
        tracked.main()
    printed = capsys.readouterr()
    return json.loads(printed.out or "null"), printed.err


def test_the_commands_print_json_and_an_error_is_a_line(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change = ["change", "promote", "support", "--version", "2", "--by", "an", "--reason"]
    found, _ = run([*change, "câu trả lời đúng hơn"], monkeypatch, capsys)
    assert (found["production"], found["changes"][0]["reason"]) == (2, "câu trả lời đúng hơn")
    shown, _ = run(["show", "support", "--version", "2"], monkeypatch, capsys)
    assert shown.items() >= found.items()
    assert (shown["shown"], shown["run"]["experiment"]) == (found["versions"][1], "retrain")
    assert run(["show", "support"], monkeypatch, capsys)[0]["shown"]["version"] == 3
    assert run(["list"], monkeypatch, capsys)[0] == [found]
    for reason in (" ", "x" * 1001):
        assert run([*change, reason], monkeypatch, capsys)[1].endswith("The reason must have 1 to 1000 characters.\n")
    _, error = run(["show", "other"], monkeypatch, capsys)
    assert error == "genaifactory: There is no registered model 'other'.\n"


def genaifactory(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit status, standard output and error of a command."""
    monkeypatch.setattr(sys, "argv", ["genaifactory", "registry", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    status = 0
    try:
        cli.main()
    except SystemExit as end:
        status = int(end.code or 0)
    printed = capfd.readouterr()
    return status, printed.out, printed.err


def test_the_command_line_shows_versions_and_their_record(
    model: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    promote = ["promote", model, "2", "--by", "an", "--reason", "better [bold]"]
    status, out, _ = genaifactory(promote, monkeypatch, capfd)
    assert status == 0
    assert "support: in Production is version 2." in out
    rows = [" ".join(line.split()) for line in out.splitlines()]
    assert any(row.startswith("2 Production passed ") and row.endswith("models:/support/2") for row in rows)
    assert any(row.endswith("an promote 2 better [bold]") for row in rows)
    status, out, error = genaifactory(promote, monkeypatch, capfd)
    assert (status, out, error) == (1, "", "genaifactory: Version 2 is in Production already.\n")


def test_a_reason_and_a_name_that_begin_with_a_dash_are_kept(
    model: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    promote = ["promote", model, "2", "--by=-an", "--reason=--despite-gate", "--json"]
    status, out, error = genaifactory(promote, monkeypatch, capfd)
    assert (status, error) == (0, "")
    (kept,) = json.loads(out)["changes"]
    assert (kept["by"], kept["reason"], kept["despite_gate"]) == ("-an", "--despite-gate", False)


def test_a_user_without_a_name_is_asked_for_one(
    model: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 65532)  # of the image of the tools, which has no entry for it
    status, out, error = genaifactory(["promote", model, "2", "--reason", "better"], monkeypatch, capfd)
    assert (status, out, error) == (1, "", "genaifactory: Give --by: this user has no name.\n")


def test_what_was_written_to_mlflow_by_hand_is_shown_as_text(
    tracking: Tracking, model: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    text = "[/x] \x1b[31mred"

    def write(mlflow: Any) -> None:
        run = mlflow.create_run("0")
        mlflow.create_model_version(model, f"{run.info.artifact_uri}/a", run.info.run_id, tags={runs.GATE: text})
        add(mlflow, change("promote", 1, by=text, reason=text))

    done(tracking.call(write))
    status, out, error = genaifactory(["show", model], monkeypatch, capfd)
    assert (status, error) == (0, "")
    assert "\x1b[31m" not in out
    assert out.count("[/x] %1B[31mred") == 4


def test_mlflows_ui_is_served_where_the_address_of_a_server_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(client.URI, "")
    monkeypatch.setattr(interpreters, "having", lambda module, beside: Path(sys.executable))
    command, _ = tracking_here.server(tmp_path, 5001)
    assert command[:4] == [sys.executable, "-m", "mlflow", "server"]


def test_the_command_line_without_a_store_or_without_mlflow_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(client.URI, raising=False)
    assert genaifactory(["list", "--state", str(tmp_path)], monkeypatch, capfd)[1].startswith(
        "No model or prompt is registered yet: "
    )
    assert genaifactory(["list", "--state", str(tmp_path), "--json"], monkeypatch, capfd)[1] == "[]\n"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(interpreters, "having", lambda module, beside: None)  # nothing has it
    for command in (["show", "support"], ["open"]):
        status, _, error = genaifactory([*command, "--state", str(tmp_path)], monkeypatch, capfd)
        assert (status, "`make mlflow` installs it" in error) == (1, True)
    monkeypatch.setenv(client.URI, "http://mlflow:5000")
    status, _, error = genaifactory(["open", "--state", str(tmp_path)], monkeypatch, capfd)
    assert (status, error) == (1, "genaifactory: MLFLOW_TRACKING_URI is set: open that address, or unset it.\n")
