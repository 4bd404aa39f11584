"""The orchestrator's settings: errors name the field and show no secret."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from genaifactory_orchestrator.settings import Settings


def test_the_environment_names_a_postgresql_database(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().database_url is None
    monkeypatch.setenv("GENAIFACTORY_DATABASE_URL", "postgresql://me:p%40ss@db:5432/factory")
    monkeypatch.setenv("GENAIFACTORY_STORE__CONNECTIONS", "20")
    settings = Settings()
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == "postgresql+asyncpg://me:p%40ss@db:5432/factory"
    assert settings.store.connections == 20
    assert settings.store.statement_timeout_seconds == 5, "a request waits for it"
    assert "p%40ss" not in repr(settings)


def test_a_wrong_database_url_is_refused_without_showing_it() -> None:
    with pytest.raises(ValidationError, match="must look like postgresql://USER") as refused:
        Settings.model_validate({"database_url": "mysql://me:s3cret@db/factory"})
    assert "s3cret" not in str(refused.value)
