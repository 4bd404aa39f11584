"""What the environment says, checked once and without showing a secret."""

from __future__ import annotations

import base64

import pytest
from pydantic import ValidationError

from genaifactory_common.settings import Common

KEY = bytes(range(32))


def test_the_environment_is_read_by_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENAIFACTORY_SERVER__METRICS_PORT", "9100")
    monkeypatch.setenv("GENAIFACTORY_TELEMETRY__LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("GENAIFACTORY_CONTEXT_PUBLIC_KEY", base64.b64encode(KEY).decode())
    settings = Common()
    assert (settings.server.metrics_port, settings.telemetry.log_level) == (9100, "DEBUG")
    assert settings.context_public_key == KEY


WRONG = {
    "GENAIFACTORY_SERVER__METRICS_PORT": ("99999", r"server\.metrics_port"),
    "GENAIFACTORY_SERVER__DRAIN_SECONDS": ("-1", r"server\.drain_seconds"),
    "GENAIFACTORY_SERVER__ADRESS": ("x", r"server\.adress"),
    "GENAIFACTORY_TELEMETRY__SAMPLE_RATIO": ("2", r"telemetry\.sample_ratio"),
    "GENAIFACTORY_TELEMETRY__LOG_LEVEL": ("LOUD", r"telemetry\.log_level"),
    "GENAIFACTORY_SERVER__TLS__CERTIFICATE": ("/tls.crt", r"server\.tls\.private_key"),
    "GENAIFACTORY_CONTEXT_PUBLIC_KEY": ("c2hvcnQ=", "must be 32 bytes, base64"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_variable_is_named_and_its_value_is_not_shown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value, message = WRONG[name]
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=message) as refused:
        Common()
    assert "input_value" not in str(refused.value)


def test_a_key_that_is_no_base64_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENAIFACTORY_CONTEXT_PUBLIC_KEY", "not base64!")
    with pytest.raises(ValidationError, match="must be base64"):
        Common()


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Common().server = None  # type: ignore[assignment, misc]
