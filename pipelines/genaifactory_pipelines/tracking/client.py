"""MLflow as the pipelines use it: its settings, waiting while it is away, and its errors as ours."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from genaifactory_common.errors import (
    Conflict,
    FactoryError,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from genaifactory_pipelines.gateway import PATIENCE_SECONDS, Patience

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

T = TypeVar("T")

URI = "MLFLOW_TRACKING_URI"
DATABASE = "mlflow.db"
_SQLITE = "sqlite:///"
# A request that fails is repeated here, not in MLflow's library.
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "300",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
"""Variables that MLflow reads when it is imported or sends a request, where the environment does not set them."""
GONE, MADE = "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"
"""Codes of MLflow's errors."""
_ERRORS: dict[str, type[FactoryError]] = {
    GONE: NotFound,
    "NOT_FOUND": NotFound,
    MADE: Conflict,
    "ALREADY_EXISTS": Conflict,
    "RESOURCE_CONFLICT": Conflict,
    "INVALID_PARAMETER_VALUE": InvalidArgument,
    "BAD_REQUEST": InvalidArgument,
    "INVALID_STATE": InvalidArgument,
    "PERMISSION_DENIED": PermissionDenied,
    "UNAUTHENTICATED": Unauthenticated,
    "CUSTOMER_UNAUTHORIZED": Unauthenticated,
    "TEMPORARILY_UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": Unavailable,
    "REQUEST_LIMIT_EXCEEDED": Unavailable,
    "RESOURCE_EXHAUSTED": Unavailable,
}
# Its database refuses a row that another process has written a moment before. The work finds it when it is repeated.
_REFUSED = "BAD_REQUEST"
_CLASHES = 5
_CLASH_SECONDS = 0.1


class Tracking:
    """An MLflow server, or an embedded store."""

    def __init__(self, uri: str, *, say: Callable[[str], None], patience_seconds: float = PATIENCE_SECONDS) -> None:
        """say: prints a line. Blocks: it imports MLflow. Raises Unimplemented without it, InvalidArgument."""
        self._shown = _shown(uri)
        self._embedded = uri.startswith(_SQLITE)
        _prepare(uri)
        from mlflow import MlflowClient

        self._client = MlflowClient(uri)
        self._say = say
        self._patience_seconds = patience_seconds
        self.artifacts = artifacts(uri) if self._embedded else None
        """Where a new experiment keeps its artifacts; None: where the server says."""

    async def call(self, work: Callable[[MlflowClient], T]) -> T:
        """What `work` returns. It blocks, runs in a thread, and runs again while MLflow is away: it must be idempotent.

        Raises FactoryError.
        """
        patience = Patience(self._patience_seconds)
        said = False
        while True:
            try:
                return await asyncio.to_thread(self._translated, work)
            except FactoryError as error:
                if patience.passes(error) and not said:
                    self._say(f"{error.message} Waiting.")
                    said = True
                await patience.wait(error)

    def _translated(self, work: Callable[[MlflowClient], T]) -> T:
        import requests
        from mlflow.exceptions import MlflowException

        try:
            for _ in range(_CLASHES):
                try:
                    return work(self._client)
                except MlflowException as error:
                    if error.error_code != _REFUSED:
                        raise
                    time.sleep(_CLASH_SECONDS)
            return work(self._client)
        except MlflowException as error:
            raise self._error(error) from None
        except (requests.RequestException, ConnectionError, TimeoutError) as error:
            raise self._away(type(error).__name__) from None

    def _error(self, error: Any) -> FactoryError:
        # Its own text may hold addresses, paths and statements: the log has it.
        logger.warning("MLflow at %s: %s: %s", self._shown, error.error_code, error)
        if error.error_code == "ENDPOINT_NOT_FOUND":
            return InvalidArgument(f"What answers at {self._shown} is no MLflow server, or an older one.", field=URI)
        kind = _ERRORS.get(error.error_code, Internal)
        if kind is Unavailable or (kind is Internal and not self._embedded):  # its client's word for no connection
            return self._away(error.error_code)
        if kind in (Unauthenticated, PermissionDenied):
            return kind(f"MLflow at {self._shown} refuses access; check MLFLOW_TRACKING_TOKEN.", field=URI)
        return kind(f"MLflow at {self._shown} answered {error.error_code}; the log has its reason.")

    def _away(self, why: str) -> Unavailable:
        return Unavailable(f"MLflow at {self._shown} cannot answer now ({why}).")


@contextmanager
def unless(code: str) -> Iterator[None]:
    """Ignores MLflow's error of this code in the block: another process was first to do the same."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != code:
            raise


def embedded(folder: Path) -> str:
    """The URI of the store in a folder, which is made where there is none yet. Blocks. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return f"{_SQLITE}{folder.absolute() / DATABASE}"


def artifacts(uri: str) -> str:
    """Where an embedded store keeps artifacts: beside its database."""
    return f"file://{Path(uri.removeprefix(_SQLITE)).parent}/artifacts"


def is_named() -> bool:
    """Whether the environment names an MLflow, in MLFLOW_TRACKING_URI."""
    return bool(os.environ.get(URI))


def from_environment(say: Callable[[str], None]) -> Tracking:
    """The one that MLFLOW_TRACKING_URI names. Blocks. Raises Unimplemented, InvalidArgument."""
    uri = os.environ.get(URI, "")
    if not uri:
        raise InvalidArgument(
            f"{URI} is not set: it must hold the address of an MLflow server, http://HOST:PORT, or "
            f"{_SQLITE}/FOLDER/mlflow.db.",
            field=URI,
        )
    return Tracking(uri, say=say)


def _prepare(uri: str) -> None:
    needed = ["mlflow"]
    if uri.startswith(_SQLITE):
        needed += ["sqlalchemy", "alembic"]
    elif urlsplit(uri).scheme not in ("http", "https"):
        raise InvalidArgument(
            f"{URI} must begin with http://, https:// or {_SQLITE}/; it begins with '{uri.partition(':')[0][:20]}:'.",
            field=URI,
        )
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise Unimplemented(
            f"MLflow needs {', '.join(missing)}, which this environment lacks. Install "
            "genaifactory-pipelines[tracking], or run `make mlflow`."
        )
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if uri.startswith(_SQLITE):
        _keep_readers_from_waiting(Path(uri.removeprefix(_SQLITE)))


def _keep_readers_from_waiting(database: Path) -> None:
    """For a writer: the file keeps the mode."""
    try:
        with closing(sqlite3.connect(database, timeout=20)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
    except sqlite3.Error as error:
        raise InvalidArgument(f"{database} cannot be opened as a database of MLflow ({error}).", field=URI) from None


def _shown(uri: str) -> str:
    """Without credentials."""
    parts = urlsplit(uri)
    return uri if parts.scheme == "sqlite" else f"{parts.scheme}://{parts.hostname}:{parts.port or ''}".rstrip(":")
