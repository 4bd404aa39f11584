"""The issuer against a Kubernetes API: its changes, waits and messages."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from genaifactory_common import certificates
from genaifactory_common.errors import FactoryError, InvalidArgument
from genaifactory_operator import __main__, issuer
from genaifactory_operator.cluster import Secrets
from genaifactory_operator.context_key import PRIVATE
from genaifactory_operator.issuer import Clock
from tests.unit.operator.api import Api, kubeconfig, serving
from tests.unit.operator.wanted import AUTHORITY, NOW, SERVICES, wanted

GATEWAY = "factory-gateway-tls"
CONTEXT_KEY = "factory-context-key"


class Time:
    """A clock that advances only with waits."""

    def __init__(self) -> None:
        self.now = NOW
        self.waits: list[float] = []

    def clock(self) -> Clock:
        """For the issuer."""
        return Clock(now=lambda: self.now, sleep=self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """A cluster with the chart's empty Secrets; KUBECONFIG names it."""
    api = Api(wanted().secrets)
    with serving(api, tmp_path) as file:
        monkeypatch.setenv("KUBECONFIG", str(file))
        yield api


def _run(time: Time, *, rotate: bool = False, renew_all: bool = False) -> list[str]:
    lines: list[str] = []
    with Secrets("genai") as secrets:
        issuer.run(wanted(), secrets, lines.append, rotate=rotate, renew_all=renew_all, clock=time.clock())
    return lines


def _begin_rotation(time: Time) -> None:
    """A run that is ended when it begins to wait."""

    def ended(_: float) -> None:
        raise KeyboardInterrupt

    with Secrets("genai") as secrets, pytest.raises(KeyboardInterrupt):
        issuer.run(wanted(), secrets, print, rotate=True, clock=Clock(now=lambda: time.now, sleep=ended))


def _value(api: Api, name: str, key: str) -> bytes:
    return base64.b64decode(api.secrets[name]["data"][key])


def test_the_first_run_fills_every_secret_at_once_and_the_second_changes_nothing(api: Api) -> None:
    time = Time()
    lines = _run(time)
    assert sorted(api.patched) == sorted(wanted().secrets)
    assert len(lines) == len(api.patched)
    assert time.waits == []
    assert api.secrets[GATEWAY]["metadata"]["annotations"] == {"genaifactory.dev/changed": NOW.isoformat()}
    assert _run(time) == []
    assert sorted(api.patched) == sorted(wanted().secrets)


def test_no_line_holds_a_key(api: Api) -> None:
    text = "\n".join(_run(Time()))
    for secret in api.secrets.values():
        for value in secret["data"].values():
            assert value not in text
            assert base64.b64decode(value).decode() not in text


def test_a_rotation_replaces_the_authority_and_every_certificate_with_two_waits(api: Api) -> None:
    time = Time()
    _run(time)
    authority, before = _value(api, AUTHORITY, "ca.crt"), _value(api, GATEWAY, "tls.crt")
    lines = _run(time, rotate=True)
    assert time.waits == [120, 120]
    assert sum(line.startswith("waiting 120 s") for line in lines) == 2
    assert api.secrets[AUTHORITY]["data"].keys() == {"ca.crt", "ca.key"}
    assert _value(api, AUTHORITY, "ca.crt") != authority
    assert _value(api, GATEWAY, "ca.crt") == _value(api, AUTHORITY, "ca.crt")
    assert _value(api, GATEWAY, "tls.crt") != before


def test_a_rotation_of_certificates_does_not_wait_for_old_tokens_to_expire(api: Api) -> None:
    time = Time()
    _run(time)
    key = _value(api, CONTEXT_KEY, PRIVATE)
    with Secrets("genai") as secrets:
        issuer.run(wanted(), secrets, print, rotate_key=True, patient=False, clock=time.clock())
    authority = _value(api, AUTHORITY, "ca.crt")
    lines = _run(time, rotate=True)
    assert sum(time.waits) == 240
    assert _value(api, AUTHORITY, "ca.crt") != authority
    assert _value(api, CONTEXT_KEY, PRIVATE) != key  # what became due meanwhile was applied
    assert "a later run takes it" in lines[-1]


def test_the_next_run_completes_a_rotation_that_was_interrupted(api: Api) -> None:
    time = Time()
    _run(time)
    _begin_rotation(time)
    following = _value(api, AUTHORITY, "next.crt")
    time.now += timedelta(seconds=50)
    _run(time)
    assert time.waits == [70, 120]
    assert _value(api, AUTHORITY, "ca.crt") == following


def test_a_rotation_that_is_requested_while_one_is_under_way_begins_no_second_one(api: Api) -> None:
    time = Time()
    _run(time)
    _begin_rotation(time)
    following = _value(api, AUTHORITY, "next.crt")
    _run(time, rotate=True)
    assert _value(api, AUTHORITY, "ca.crt") == following


def test_all_certificates_are_renewed_by_the_same_authority(api: Api) -> None:
    time = Time()
    _run(time)
    authority, before = api.secrets[AUTHORITY], _value(api, GATEWAY, "tls.crt")
    time.now += timedelta(hours=1)
    assert len(_run(time, renew_all=True)) == len(SERVICES)
    assert api.secrets[AUTHORITY] == authority
    assert _value(api, GATEWAY, "tls.crt") != before


def test_a_secret_that_changed_since_it_was_read_is_read_again(api: Api) -> None:
    api.overtaken = {AUTHORITY, GATEWAY}
    lines = _run(Time())
    assert sum("has changed since it was read" in line for line in lines) == 2
    assert sorted(api.patched) == sorted(wanted().secrets)


def test_concurrent_runs_end_with_one_authority_that_signed_every_certificate(api: Api) -> None:
    with ThreadPoolExecutor(4) as pool:
        for run in [pool.submit(_run, Time()) for _ in range(4)]:
            run.result()
    authority = certificates.Authority.load(_value(api, AUTHORITY, "ca.crt"), _value(api, AUTHORITY, "ca.key"))
    for name in SERVICES:
        secret = f"factory-{name}-tls"
        assert certificates.signed_by(_value(api, secret, "tls.crt"), authority)
        assert _value(api, secret, "ca.crt") == authority.pem


@pytest.mark.parametrize(
    ("method", "name", "status", "message"),
    [
        ("GET", GATEWAY, 403, "genai/factory-gateway-tls is forbidden to the issuer: its Role needs the verb 'get'"),
        ("PATCH", AUTHORITY, 403, "genai/factory-ca is forbidden to the issuer: its Role needs the verb 'patch'"),
        ("GET", AUTHORITY, 404, "genai/factory-ca does not exist"),
        ("PATCH", AUTHORITY, 422, "genai/factory-ca: the Kubernetes API refuses patch: as the test wants"),
        ("GET", AUTHORITY, 500, "genai/factory-ca: the Kubernetes API refuses get: as the test wants"),
    ],
)
def test_an_error_of_the_api_is_reported_with_the_name_of_the_secret(
    api: Api, method: str, name: str, status: int, message: str
) -> None:
    api.refused[method, name] = status
    with pytest.raises(FactoryError) as caught:
        _run(Time())
    assert message in caught.value.message


def test_a_secret_that_something_reverts_each_time_ends_the_run(api: Api) -> None:
    before = dict(api.secrets[GATEWAY])

    def report(line: str) -> None:
        if line.startswith(GATEWAY):
            api.secrets[GATEWAY] = before

    with Secrets("genai") as secrets, pytest.raises(FactoryError, match="does something revert them"):
        issuer.run(wanted(), secrets, report, clock=Time().clock())


def test_an_external_authority_cannot_be_rotated(api: Api) -> None:
    external = wanted(authority={"secret": AUTHORITY, "external": True})
    with Secrets("genai") as secrets, pytest.raises(InvalidArgument, match="not the issuer's own"):
        issuer.run(external, secrets, print, rotate=True)
    assert api.patched == []


def _main(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["genaifactory_operator", *arguments])
    try:
        __main__.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _file(folder: Path) -> str:
    file = folder / "issuer.json"
    file.write_text(json.dumps(wanted(propagation_seconds=0).model_dump(mode="json")))
    return str(file)


def test_the_command_fills_and_rotates(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _file(tmp_path)
    assert _main(["certificates", "--config", file], monkeypatch) == 0
    assert f"{GATEWAY}: a new certificate until " in capsys.readouterr().out
    made = datetime.fromisoformat(api.secrets[AUTHORITY]["metadata"]["annotations"]["genaifactory.dev/changed"])
    assert made.tzinfo is not None
    assert _main(["certificates", "rotate", "--leaves", "--config", file], monkeypatch) == 0
    assert _main(["certificates", "rotate", "--config", file], monkeypatch) == 0
    assert "forgets the previous authority" in capsys.readouterr().out


def test_the_command_rotates_the_key_of_callers_tokens_alone_and_leaves_what_is_not_due_to_a_later_run(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "issuer.json"
    file.write_text(json.dumps(wanted(propagation_seconds=3600).model_dump(mode="json")))
    assert _main(["certificates", "--config", str(file)], monkeypatch) == 0
    before = {name: api.secrets[name] for name in (AUTHORITY, GATEWAY)}
    capsys.readouterr()
    rotate = ["certificates", "rotate", "--context-key", "--without-waiting", "--config", str(file)]
    assert _main(rotate, monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "factory-context-key: the next key of callers' tokens" in printed
    assert "factory-context-public-key: trusts 2 keys of callers' tokens" in printed
    assert "a later run takes it" in printed
    assert {name: api.secrets[name] for name in (AUTHORITY, GATEWAY)} == before
    assert _main(["certificates", "rotate", "--context-key", "--leaves", "--config", str(file)], monkeypatch) == 2
    assert "not allowed with argument" in capsys.readouterr().err


def test_a_failure_is_one_line_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, 1)))
    assert _main(["certificates", "--config", _file(tmp_path)], monkeypatch) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("genaifactory_operator: The Kubernetes API does not answer (ConnectError")
    assert printed.err.count("\n") == 1
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    assert _main(["certificates", "--config", _file(tmp_path)], monkeypatch) == 1
    assert "There is no Kubernetes cluster to connect to" in capsys.readouterr().err
