"""The command line: help with examples, errors in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from genaifactory_common import specs
from genaifactory_local import cli, configuration

DEFAULT = Path(configuration.__file__).with_name("factory.yaml")


def _genaifactory(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["genaifactory", *arguments])
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.parametrize(
    "command",
    [
        ["run"],
        ["ask"],
        ["ingest"],
        ["documents", "list"],
        ["documents", "sources"],
        ["documents", "show"],
        ["documents", "remove"],
        ["sources", "list"],
        ["sources", "sync"],
        ["indexes", "list"],
        ["indexes", "rollback"],
        ["indexes", "drop"],
        ["reindex"],
        ["usage"],
        ["export"],
        ["dataset"],
        ["train"],
        ["drift"],
        ["evaluate"],
        ["retrain"],
        ["adapters", "load"],
        ["adapters", "unload"],
        ["registry", "list"],
        ["registry", "show"],
        ["registry", "promote"],
        ["registry", "archive"],
        ["registry", "rollback"],
        ["registry", "open"],
        ["reproduce"],
        ["splits", "list"],
        ["splits", "show"],
        ["trace"],
        ["blocked"],
        ["watch"],
        ["smoke"],
        ["config", "check"],
        ["config", "hash-key"],
        ["config", "schema"],
    ],
    ids=" ".join,
)
def test_the_help_of_every_command_has_an_example(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = _genaifactory([*command, "--help"], monkeypatch, capsys)
    assert code == 0
    assert f"Example: genaifactory {' '.join(command)}" in out


def test_the_version_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _genaifactory(["--version"], monkeypatch, capsys) == (0, "genaifactory 0.1.0\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", "hello"], "No platform runs on"),
        (["usage"], "No platform runs on"),
        (["export"], "No platform runs on"),
        (["remove", "a.md"], "No platform runs on"),
        (["ingest", "."], "No platform runs on"),
        (["ingest", "--samples"], "No platform runs on"),
        (["ingest"], "Give a PATH to read, or --samples"),
        (["smoke"], "No platform runs on"),
        (["watch"], "No platform runs on"),
        (["splits", "list"], "No platform runs on"),
        (["splits", "show", "trial"], "No platform runs on"),
        (["splits", "show", "trial", "--since", "then"], "'then' is not a time"),
        (["blocked"], "No platform runs on"),
        (["blocked", "--since", "then"], "'then' is not a time"),
        (["usage", "--plot", "--json"], "give one of them"),
        (["trace", "last"], "No spans of 'last' are in"),
        (["trace", "req-1"], "'req-1' is not the id of a request. Give the x-request-id of a response (req-...)"),
        (["ask", "hello", "--url", "http://127.0.0.1:1"], "--url needs --key"),
        (["ask", "hello", "--url", "http://127.0.0.1:1", "--key", "k"], "http://127.0.0.1:1 does not answer"),
        (["ask", "hello", "--url", "ftp://x", "--key", "k"], "'ftp://x' is not an http:// or https:// address"),
        (["ask", "hello", "--url", "http://127.0.0.1:1", "--key", "khóa"], "characters that no key has"),
        (["ingest", "nowhere"], "nowhere does not exist"),
        (["ingest", ".", "--metadata", "year"], "'year' is not metadata; write NAME=VALUE"),
        (["usage", "--since", "then"], "'then' is not a time"),
        (["export", "--until", "then"], "'then' is not a time"),
        (["run", "nowhere"], "nowhere does not exist"),
        (["run", "--port", "70000"], "--port (PORT) must be from 0"),
        (["run", "--port", "70", "--grpc-port", "70"], "--port (PORT) and --grpc-port (GRPC_PORT) are both 70;"),
        (["run", "--config", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (
            ["run", "--knowledge-base", "secrets"],
            "no knowledge base 'secrets' that the tenant may use; there are: doc",
        ),
        (["run", "--host", "no.such.host.invalid"], "is not an address to listen on"),
        (["run", "--state", "file/below"], "cannot be used: Not a directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_is_an_error_of_one_line_on_stderr(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    code, out, err = _genaifactory(arguments, monkeypatch, capsys)
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_bad_environment_variable_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENAIFACTORY_TELEMETRY__SAMPLE_RATIO", "2")
    code, _, err = _genaifactory(["run"], monkeypatch, capsys)
    assert code == 1
    assert "GENAIFACTORY_TELEMETRY__SAMPLE_RATIO is wrong" in err


def test_config_check_names_every_bad_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "factory.yaml"
    text = DEFAULT.read_text(encoding="utf-8")
    file.write_text(text.replace("passages: 5", "passages: many").replace("task: chat", "task: talk"), encoding="utf-8")
    code, out, err = _genaifactory(["config", "check", str(file)], monkeypatch, capsys)
    assert (code, out) == (1, "")
    assert "routes[0].passages: " in err
    assert "routes[1].task: " in err


def test_config_check_reports_wrong_templates_and_entities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "factory.yaml"
    text = DEFAULT.read_text(encoding="utf-8").replace("{% endfor %}", "{% endfur %}").replace("[SECRET]", "[SHOE]")
    file.write_text(text, encoding="utf-8")
    code, _, err = _genaifactory(["config", "check", str(file)], monkeypatch, capsys)
    assert code == 1
    assert "prompts[0].system: " in err
    assert "policies[0].rules[0].entities[0]: unknown entity" in err


def test_config_check_accepts_the_default(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _genaifactory(["config", "check", str(DEFAULT)], monkeypatch, capsys)
    assert code == 0
    assert "is valid: routes rag, chat" in out


def test_config_check_reads_the_file_that_the_services_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENAIFACTORY_FACTORY_FILE", str(DEFAULT))
    code, out, _ = _genaifactory(["config", "check"], monkeypatch, capsys)
    assert code == 0
    assert out.startswith(f"{DEFAULT} is valid")


def test_config_check_without_a_file_reads_the_one_that_the_platform_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GENAIFACTORY_FACTORY_FILE", raising=False)
    code, _, err = _genaifactory(["config", "check"], monkeypatch, capsys)
    assert code == 1
    assert "There is no factory.yaml here" in err
    (tmp_path / ".genaifactory").mkdir()
    (tmp_path / ".genaifactory" / "factory.yaml").write_bytes(DEFAULT.read_bytes())
    code, out, _ = _genaifactory(["config", "check"], monkeypatch, capsys)
    assert code == 0
    assert ".genaifactory/factory.yaml is valid" in out


def test_a_run_with_a_bad_factory_yaml_ends_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "factory.yaml").write_text("routes: 5\n")
    code, _, err = _genaifactory(["run"], monkeypatch, capsys)
    assert code == 1
    assert "routes: " in err
    assert err.count("\n") == 1


def test_a_new_key_is_printed_with_its_hash(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = _genaifactory(["config", "hash-key"], monkeypatch, capsys)
    key = out.split()[1]
    assert code == 0
    assert out.splitlines()[1] == f"sha256: {specs.hash_key(key)}"


def test_the_schema_has_the_parts_of_factory_yaml(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = _genaifactory(["config", "schema"], monkeypatch, capsys)
    assert {"tenants", "routes", "models", "policies"} <= json.loads(out)["properties"].keys()


def test_a_closed_pipe_ends_quietly() -> None:
    command = f"{sys.executable} -m genaifactory_local config schema | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
