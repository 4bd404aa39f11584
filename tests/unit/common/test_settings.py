"""Settings of the environment, checked once and without showing a secret."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from genaifactory_common import settings, testing, tokens
from genaifactory_common.errors import InvalidArgument, Unauthenticated
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
        Common().server = None  # type: ignore[assignment, misc]  # as it must not


class Qdrant(settings.Settings):
    """A nested group with a secret in it."""

    url: str
    api_key: SecretStr


class Store(Common):
    """Settings of a service with secrets."""

    database_url: SecretStr | None = None
    qdrant: Qdrant | None = None


@pytest.fixture
def secrets_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as Kubernetes mounts Secrets, with one that is no setting."""
    data = tmp_path / "..2026_11_25"
    data.mkdir()
    (tmp_path / "..data").symlink_to(data.name)
    files = {
        "GENAIFACTORY_DATABASE_URL": "postgresql://u:p@h/d\n",
        "GENAIFACTORY_CONTEXT_PUBLIC_KEY": base64.b64encode(KEY).decode() + "\n",
        "GENAIFACTORY_QDRANT__API_KEY": "nested",
        "GENAIFACTORY_NOBODYS": "x",
        "LLM_API_KEY": "sk-1\n",
    }
    for name, content in files.items():
        (data / name).write_text(content, encoding="utf-8")
        (tmp_path / name).symlink_to(f"..data/{name}")
    monkeypatch.setenv(settings.SECRETS_DIR, str(tmp_path))
    return tmp_path


def test_a_file_among_the_secrets_replaces_a_variable(secrets_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENAIFACTORY_QDRANT__URL", "http://qdrant")
    store = Store()
    assert store.database_url is not None
    assert store.database_url.get_secret_value() == "postgresql://u:p@h/d"
    assert store.context_public_key == KEY
    assert store.qdrant is not None
    assert (store.qdrant.url, store.qdrant.api_key.get_secret_value()) == ("http://qdrant", "nested")


def test_a_variable_overrides_the_file_of_its_name(secrets_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENAIFACTORY_DATABASE_URL", "sqlite://")
    monkeypatch.setenv("LLM_API_KEY", "sk-2")
    store = Store(qdrant=None)
    assert store.database_url is not None
    assert store.database_url.get_secret_value() == "sqlite://"
    assert settings.secret("LLM_API_KEY") == "sk-2"


def test_the_present_content_of_a_secret_is_read(secrets_dir: Path) -> None:
    assert settings.secret("LLM_API_KEY") == "sk-1"
    (secrets_dir / "LLM_API_KEY").write_text("sk-3\r\n", encoding="utf-8")
    assert settings.secret("LLM_API_KEY") == "sk-3"
    assert settings.secret("NO_API_KEY") is None


def test_without_a_folder_there_are_only_variables() -> None:
    assert settings.secret("LLM_API_KEY", {"LLM_API_KEY": "sk-4"}) == "sk-4"
    assert settings.secret("LLM_API_KEY", {}) is None


def test_secrets_that_cannot_be_read_are_named(secrets_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (secrets_dir / "LLM_API_KEY").write_bytes(b"\xff\xfe secret")
    with pytest.raises(InvalidArgument, match="LLM_API_KEY in GENAIFACTORY_SECRETS_DIR") as refused:
        settings.secret("LLM_API_KEY")
    assert "\\xff" not in str(refused.value)
    monkeypatch.setenv(settings.SECRETS_DIR, str(secrets_dir / "missing"))
    with pytest.raises(InvalidArgument, match="GENAIFACTORY_SECRETS_DIR names no folder"):
        Common()


def test_the_error_of_a_wrong_file_names_its_setting(secrets_dir: Path) -> None:
    (secrets_dir / "GENAIFACTORY_CONTEXT_PUBLIC_KEY").write_text("c2hvcnQ=", encoding="utf-8")
    with pytest.raises(ValidationError, match="must be 32 bytes, base64") as refused:
        Common()
    assert refused.value.errors()[0]["loc"] == ("context_public_key",)
    assert "c2hvcnQ" not in str(refused.value)


def test_callers_are_a_json_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENAIFACTORY_SERVER__CALLERS", '["spiffe://a/ns/b/sa/c", "spiffe://a/ns/b/sa/d"]')
    assert Common().server.callers == ("spiffe://a/ns/b/sa/c", "spiffe://a/ns/b/sa/d")


OTHER = bytes(reversed(KEY))
KEY_SET = "GENAIFACTORY_CONTEXT_PUBLIC_KEYS"


async def trusts(verifier: tokens.Verifier, key: bytes) -> bool:
    """Whether a token that this private key signed is accepted."""
    try:
        await verifier.verify(testing.signed("/a.B/C", signer=tokens.Signer(key)), "/a.B/C")
    except Unauthenticated:
        return False
    return True


def public(*keys: bytes) -> list[bytes]:
    return [tokens.Signer(key).public_key for key in keys]


async def test_one_key_or_a_set_of_the_environment_verifies_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENAIFACTORY_CONTEXT_PUBLIC_KEY", base64.b64encode(*public(KEY)).decode())
    verifier = Common().verifier()
    assert (await trusts(verifier, KEY), await trusts(verifier, OTHER)) == (True, False)
    monkeypatch.setenv(KEY_SET, tokens.jwks(public(OTHER)))
    verifier = Common().verifier()
    assert (await trusts(verifier, KEY), await trusts(verifier, OTHER)) == (False, True)


@pytest.mark.allow_blocking
async def test_a_key_set_among_the_secrets_is_followed_also_after_the_single_key_of_a_former_version(
    secrets_dir: Path,
) -> None:
    one = secrets_dir / "GENAIFACTORY_CONTEXT_PUBLIC_KEY"
    one.write_text(base64.b64encode(*public(KEY)).decode())
    verifier = Common().verifier()
    assert (await trusts(verifier, KEY), await trusts(verifier, OTHER)) == (True, False)
    for keys in ((KEY,), (KEY, OTHER), (OTHER,)):
        (secrets_dir / KEY_SET).write_text(tokens.jwks(public(*keys)) + "\n")
        await asyncio.sleep(0.21)
        await verifier._followed.look()
        assert [await trusts(verifier, key) for key in (KEY, OTHER)] == [key in keys for key in (KEY, OTHER)]
    (secrets_dir / KEY_SET).write_text("{}")
    await asyncio.sleep(0.21)
    await verifier._followed.look()
    assert await trusts(verifier, OTHER)


def test_an_invalid_key_set_is_refused_when_a_service_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_SET, '{"keys": []}')
    with pytest.raises(ValidationError, match="1 to 3 keys") as refused:
        Common()
    assert refused.value.errors()[0]["loc"] == ("context_public_keys",)


def test_without_a_key_a_service_does_not_start() -> None:
    with pytest.raises(InvalidArgument, match="GENAIFACTORY_CONTEXT_PUBLIC_KEYS, or GENAIFACTORY_CONTEXT_PUBLIC_KEY,"):
        Common().verifier()
