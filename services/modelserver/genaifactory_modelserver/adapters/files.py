"""Keeps LoRA adapters on disk: fetched from where they are, verified, and then never changed."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from genaifactory_common.backoff import Backoff
from genaifactory_common.errors import InvalidArgument, NotFound, Unavailable, Unimplemented
from genaifactory_modelserver import threads
from genaifactory_modelserver.adapters import checks, sources
from genaifactory_modelserver.adapters.checks import CONFIG, FILES, METADATA, Base
from genaifactory_modelserver.threads import Stop
from genaifactory_modelserver.weights import checksums, disk, mirror

__all__ = ["Adapter", "Base", "fetch_adapter", "remove_unreferenced"]

logger = logging.getLogger(__name__)

_INCOMING = ".incoming-"
_KEY = re.compile(r"[0-9a-f]{64}-[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Adapter:
    """A verified adapter on disk."""

    folder: Path
    """Holds exactly the files that were verified; its name differs for other weights and for another configuration."""
    sha256: str
    """Of its weights, hex."""
    rank: int
    """The highest of its modules."""
    target_modules: tuple[str, ...]
    """Last names of the modules that it changes: q_proj, v_proj."""
    metadata: Mapping[str, Any]
    """Its metadata.json."""


async def fetch_adapter(
    name: str,
    source_uri: str,
    sha256: str,
    *,
    store: Path,
    base: Base,
    backoff: Backoff = mirror.BACKOFF,
) -> Adapter:
    """Copies an adapter into the store and verifies it there, so that what was verified is what is served.

    source_uri: a folder (absolute, or file://), https://MIRROR/FOLDER/ with a SHA256SUMS file, models:/NAME/VERSION,
    models:/NAME@ALIAS, runs:/RUN/PATH, s3://, gs:// or az://. sha256: of its weights, hex; empty: as its metadata.json
    says. When it is given, and the source is gone or cannot be asked, the store's copy is used.

    Raises InvalidArgument, NotFound, Unimplemented, or Unavailable for what may pass; then, as when it is cancelled,
    the store is as before. Processes may share a store.
    """
    if sha256 and not checksums.is_digest(sha256):
        raise InvalidArgument("The sha256 is no SHA-256 in hex.", field="sha256")
    sha256 = sha256.lower()
    try:
        try:
            async with _incoming(store) as folder:
                await sources.copy(source_uri, folder, base.max_bytes, backoff)
                return await threads.run(partial(_take_in, name, folder, sha256, store, base))
        except (NotFound, Unavailable, Unimplemented) as error:
            kept = await threads.run(partial(_kept, name, sha256, store, base)) if sha256 else None
            if kept is None:
                raise
            logger.warning("%s The adapter '%s' is served as it was fetched before.", error.message, name)
            return kept
    except OSError as error:
        raise disk.explained(error, field="source_uri") from error


def remove_unreferenced(store: Path, keep: Collection[str], *, min_age_seconds: float = 3600.0) -> None:
    """Removes adapters from the store, and what a killed process left; blocks.

    keep: SHA-256 of the weights that stay. Spared is what came, was fetched again or grew in the last
    `min_age_seconds`: it may belong to another replica that has not registered it yet.
    """
    before = time.time() - min_age_seconds
    try:
        entries = list(os.scandir(store))
    except FileNotFoundError:
        return
    for entry in entries:
        ours = entry.name.startswith(_INCOMING) or (_KEY.fullmatch(entry.name) and entry.name[:64] not in keep)
        if ours and _newest(Path(entry.path)) < before:
            shutil.rmtree(entry.path, ignore_errors=True)


@asynccontextmanager
async def _incoming(store: Path) -> AsyncIterator[Path]:
    """A folder for files that are not verified, gone after the block."""
    folders: list[Path] = []  # filled in the thread, so that a cancelled wait for the thread loses none

    def make(_: Stop) -> None:
        store.mkdir(parents=True, exist_ok=True)
        folders.append(Path(tempfile.mkdtemp(prefix=_INCOMING, dir=store)))

    try:
        await threads.run(make)
        yield folders[0]
    finally:
        for folder in folders:
            await threads.run(lambda _, folder=folder: shutil.rmtree(folder, ignore_errors=True))  # type: ignore[misc]


def _take_in(name: str, folder: Path, sha256: str, store: Path, base: Base, stop: Stop) -> Adapter:
    checked = checks.check(name, folder, sha256, base, stop)
    verified = folder / "verified"
    verified.mkdir()
    for file in FILES:
        os.replace(folder / file, verified / file)
        os.chmod(verified / file, 0o444)
        _sync(verified / file)
    _sync(verified)
    key = _key(folder=verified, sha256=checked.sha256)
    target = store / key
    stop.check()
    if target.is_dir() and not _intact(target, verified):
        os.replace(target, folder / "damaged")
    try:
        os.rename(verified, target)
    except OSError:  # another process, or an earlier request, has put the same there
        if not _intact(target, verified):
            raise
        os.utime(target)
    _sync(store)
    return _adapter(target, checked)


def _kept(name: str, sha256: str, store: Path, base: Base, stop: Stop) -> Adapter | None:
    """What the store has with these weights; of several configurations the one that was fetched last."""
    folders = sorted(store.glob(f"{sha256}-*"), key=_newest, reverse=True)
    for folder in folders:
        with suppress(InvalidArgument):  # damaged: then it is as if it were not there
            checked = checks.check(name, folder, sha256, base, stop)
            if folder.name == _key(folder, checked.sha256):
                return _adapter(folder, checked)
    return None


def _key(folder: Path, sha256: str) -> str:
    """Two adapters with the same weights differ when their configurations do: their scale is there."""
    rest = hashlib.sha256()
    for file in (CONFIG, METADATA):
        rest.update(hashlib.sha256((folder / file).read_bytes()).digest())
    return f"{sha256}-{rest.hexdigest()[:16]}"


def _intact(folder: Path, like: Path) -> bool:
    """Whether it holds the same files with the same bytes."""
    try:
        if sorted(path.name for path in folder.iterdir()) != sorted(FILES):
            return False
        return all(_digest(folder / file) == _digest(like / file) for file in FILES)
    except OSError:
        return False


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _newest(folder: Path) -> float:
    """When something in it was last changed; seconds since the epoch."""
    newest = float("-inf")
    for path in (folder, *folder.rglob("*")):
        with suppress(FileNotFoundError):
            newest = max(newest, path.lstat().st_mtime)
    return newest


def _adapter(folder: Path, checked: checks.Checked) -> Adapter:
    return Adapter(folder, checked.sha256, checked.rank, checked.target_modules, checked.metadata)
