"""Copies an adapter's files from where they are: a folder, a mirror, MLflow, or object storage."""

from __future__ import annotations

import logging
import os
import re
import stat
from functools import partial
from pathlib import Path
from typing import Any

from genaifactory_common import object_storage
from genaifactory_common.backoff import Backoff
from genaifactory_common.errors import FactoryError, InvalidArgument, NotFound, TooLarge, Unavailable, Unimplemented
from genaifactory_common.redaction import without_secrets
from genaifactory_modelserver import threads
from genaifactory_modelserver.adapters.checks import FILES, MAX_JSON_BYTES, WEIGHTS
from genaifactory_modelserver.threads import Stop
from genaifactory_modelserver.weights import addresses, checksums, mirror

logger = logging.getLogger(__name__)

_FIELD = "source_uri"
_PIECE_BYTES = 1 << 20
_RANGE_BYTES = 8 << 20
_MLFLOW = re.compile(r"(models:/[^/@:]+(/[1-9]\d*|@[^/@:]+)|runs:/[0-9a-zA-Z]+/[^?#]+?)/?")


async def copy(source_uri: str, folder: Path, max_bytes: int, backoff: Backoff) -> None:
    """Copies those of an adapter's files that are there into an empty folder; the caller checks which are required.

    max_bytes: most that its weights may have. Raises NotFound when there is no such place, InvalidArgument, TooLarge,
    Unavailable for what may pass, Unimplemented when a library is not installed.
    """
    bounds = {name: max_bytes if name == WEIGHTS else MAX_JSON_BYTES for name in FILES}
    match addresses.scheme(source_uri):
        case "" | "file":
            source = addresses.folder(source_uri, field=_FIELD)
            await threads.run(partial(_from_folder, source, folder, bounds))
        case "https" | "http":
            await _from_mirror(source_uri, folder, bounds, backoff)
        case "s3" | "gs" | "az":
            await _from_storage(source_uri, folder, bounds)
        case "models" | "runs":
            await threads.run(partial(_from_mlflow, source_uri, folder, bounds))
        case other:
            raise InvalidArgument(
                f"'{other}:' is no place for adapters: give a folder, https://, models:/, runs:/, s3://, gs:// or az://.",
                field=_FIELD,
            )
    if not await threads.run(lambda _: any((folder / name).exists() for name in FILES)):
        raise NotFound(f"There is no adapter in {without_secrets(source_uri)}: no {', '.join(FILES)}.", field=_FIELD)


def _from_folder(source: Path, folder: Path, bounds: dict[str, int], stop: Stop) -> None:
    if not source.is_dir():
        raise NotFound(f"There is no folder {source}.", field=_FIELD)
    for name, most in bounds.items():
        try:
            # Not blocking: should it be a pipe, opening it would wait for a writer.
            descriptor = os.open(source / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            continue
        with os.fdopen(descriptor, "rb") as file, (folder / name).open("wb") as target:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InvalidArgument(f"'{name}' in {source} is no file.", field=_FIELD)
            size = 0
            while piece := file.read(_PIECE_BYTES):
                stop.check()
                size += len(piece)
                _check_size(name, size, most)
                target.write(piece)


async def _from_mirror(source: str, folder: Path, bounds: dict[str, int], backoff: Backoff) -> None:
    async with mirror.connect(source, field=_FIELD, backoff=backoff) as server:
        sums = checksums.parse(await server.sums(), field=_FIELD)
        for name, most in bounds.items():
            if name in sums:
                part = folder / f"{name}.part"
                await server.fetch(name, sums[name], part, folder / name, lambda _: None, max_bytes=most)


async def _from_storage(source: str, folder: Path, bounds: dict[str, int]) -> None:
    try:
        import obstore
    except ImportError:
        raise _not_installed("storage", "object storage") from None

    async def fetch(name: str, most: int) -> None:
        try:
            about = await obstore.head_async(place, name)
        except FileNotFoundError:
            return
        size, version = about["size"], about["e_tag"]
        _check_size(name, size, most)
        # In pieces, since the library bounds the time of a request, and all of the same version.
        for start in range(0, size, _RANGE_BYTES) or (0,):
            options: Any = {"if_match": version, "range": (start, min(start + _RANGE_BYTES, size))} if size else None
            got = await obstore.get_async(place, name, options=options)
            await threads.run(partial(_append, folder / name, await got.bytes_async()))

    with object_storage.translated(source, field=_FIELD):
        place = await threads.run(lambda _: object_storage.opened(source))
        for name, most in bounds.items():
            await fetch(name, most)


def _append(path: Path, piece: Any, _: Stop) -> None:
    with path.open("ab") as file:
        file.write(piece)


def _from_mlflow(source: str, folder: Path, bounds: dict[str, int], stop: Stop) -> None:
    if _MLFLOW.fullmatch(source) is None:
        message = (
            f"'{source}' is no adapter in MLflow; write models:/NAME/VERSION, models:/NAME@ALIAS or runs:/RUN/PATH."
        )
        raise InvalidArgument(message, field=_FIELD)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read at the import: it would call home
    try:
        import mlflow
        import requests
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise _not_installed("mlflow", "MLflow") from None
    if not mlflow.is_tracking_uri_set():  # type: ignore[no-untyped-call]  # MLflow's
        message = "MLFLOW_TRACKING_URI is not set in this server's environment, so it does not know an MLflow server."
        raise InvalidArgument(message, field=_FIELD)
    try:
        source = _of_version(source.rstrip("/"))
        found = {entry.path.rpartition("/")[2]: entry for entry in mlflow.artifacts.list_artifacts(artifact_uri=source)}
        for name, most in bounds.items():
            stop.check()
            if name not in found or found[name].is_dir:
                continue
            _check_size(name, found[name].file_size or 0, most)
            got = mlflow.artifacts.download_artifacts(artifact_uri=f"{source}/{name}", dst_path=str(folder / "mlflow"))
            _check_size(name, os.path.getsize(got), most)
            os.replace(got, folder / name)
    except MlflowException as error:
        raise _of_mlflow(source, error) from None
    except (requests.RequestException, ConnectionError, TimeoutError) as error:
        raise Unavailable(f"MLflow cannot be reached ({type(error).__name__}).") from None


def _of_version(source: str) -> str:
    """An alias may move while the files are read; a version does not."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    name, at, alias = source.partition("@")
    if not at:
        return source
    try:
        version = MlflowClient().get_model_version_by_alias(name.removeprefix("models:/"), alias).version
    except MlflowException as error:
        if error.error_code == "INVALID_PARAMETER_VALUE":  # its word for an alias that is not there
            raise NotFound(f"MLflow has no {source}.", field=_FIELD) from None
        raise
    return f"{name}/{version}"


def _of_mlflow(source: str, error: Any) -> FactoryError:
    message = without_secrets(str(error.message))
    match error.error_code:
        case "RESOURCE_DOES_NOT_EXIST" | "NOT_FOUND":
            return NotFound(f"MLflow has no {source}: {message}", field=_FIELD)
        case "INVALID_PARAMETER_VALUE" | "BAD_REQUEST":
            return InvalidArgument(f"MLflow does not take {source}: {message}", field=_FIELD)
        case "PERMISSION_DENIED" | "UNAUTHENTICATED" | "CUSTOMER_UNAUTHORIZED":
            return InvalidArgument(f"MLflow refuses access to {source}; check this server's credentials.", field=_FIELD)
        case code:
            logger.warning("reading %s from MLflow failed: %s", source, message)
            return Unavailable(f"MLflow cannot give {source} now ({code}); the server's log says why.")


def _check_size(name: str, size: int, most: int) -> None:
    if size > most:
        raise TooLarge(f"'{name}' is larger than {most} bytes, the most taken.", field=_FIELD)


def _not_installed(extra: str, what: str) -> Unimplemented:
    return Unimplemented(f"Adapters from {what} need genaifactory-modelserver[{extra}] installed here.", field=_FIELD)
