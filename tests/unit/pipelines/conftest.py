"""An MLflow store for tests of tracking."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from genaifactory_pipelines.tracking import client
from genaifactory_pipelines.tracking.client import Tracking


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that MLflow has made: that takes it seconds."""
    folder = tmp_path_factory.mktemp("store")
    tracking = Tracking(client.embedded(folder), say=print)
    asyncio.run(tracking.call(lambda mlflow: mlflow.search_experiments()))
    return folder


@pytest.fixture
def store(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store, which the environment names."""
    folder = tmp_path / "mlflow"
    shutil.copytree(empty, folder)
    monkeypatch.setenv(client.URI, client.embedded(folder))
    return folder


@pytest.fixture
def tracking(store: Path) -> Tracking:
    """The store."""
    return client.from_environment(print)
