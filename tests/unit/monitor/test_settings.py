"""The monitor's settings: errors are clear and show no secret."""

from __future__ import annotations

import sys

import pytest
from pydantic import ValidationError

from genaifactory_monitor.settings import Settings


def test_the_environment_names_a_postgresql_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENAIFACTORY_DATABASE_URL", "postgresql://me:p%40ss@db:5432/monitor?ssl=verify-full")
    monkeypatch.setenv("GENAIFACTORY_RETENTION__DAYS", "30")
    settings = Settings()
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == "postgresql+asyncpg://me:p%40ss@db:5432/monitor?ssl=verify-full"
    assert settings.retention.days == 30
    assert "p%40ss" not in repr(settings)
    assert "p@ss" not in repr(settings)


@pytest.mark.parametrize(
    "url", ["mysql://me:s3cret@db/monitor", "postgresql://me:s3cret@db", "s3cret", "postgresql://me:s3cret@db:x/m"]
)
def test_a_wrong_database_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ValidationError, match="must look like postgresql://USER") as refused:
        Settings(database_url=url)
    assert "s3cret" not in str(refused.value)


def test_postgresql_without_its_driver_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of `make run` lacks it."""
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(ValidationError, match=r"install genaifactory-common\[postgresql\]") as refused:
        Settings(database_url="postgresql://me:s3cret@db/monitor")
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("days", [0, -1])
def test_a_retention_below_one_day_is_refused(days: int) -> None:
    with pytest.raises(ValidationError, match=r"retention\.days"):
        Settings.model_validate({"retention": {"days": days}})
