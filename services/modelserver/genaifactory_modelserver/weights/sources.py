"""Where a model's weights come from: a folder, a mirror, or the hub; a bad one is found before vLLM starts."""

from __future__ import annotations

import hashlib
import logging
import os
from functools import partial
from pathlib import Path

from genaifactory_common import files
from genaifactory_common.backoff import Backoff
from genaifactory_common.errors import InvalidArgument, NotFound, Unavailable
from genaifactory_common.redaction import without_secrets
from genaifactory_modelserver import threads
from genaifactory_modelserver.threads import Stop
from genaifactory_modelserver.weights import addresses, checksums, disk, hub, locks, mirror, tensors
from genaifactory_modelserver.weights.progress import Meter, Progress, Report

__all__ = ["Progress", "fetch_model"]

logger = logging.getLogger(__name__)

_WEIGHTS = (".safetensors", ".bin", ".pt")
_MAX_CONFIG_BYTES = 64 << 20


async def fetch_model(
    source: str,
    sha256: str,
    *,
    cache: Path,
    hub_endpoint: str | None,
    report: Report,
    backoff: Backoff = mirror.BACKOFF,
) -> Path:
    """Gives the folder of a model's weights; downloads them into `cache` if they are not there.

    source: a folder (absolute, or file://), https://MIRROR/FOLDER/ with a SHA256SUMS file, or hf://ORG/NAME[@REVISION].
    sha256: of the source's SHA256SUMS file, hex; empty: any. report: gets the progress, at most once a second.
    Raises InvalidArgument for what the configuration must put right, Unavailable for what may pass. Processes may share
    a cache; what a cancelled download has got is kept for the next one.
    """
    try:
        match addresses.scheme(source):
            case "" | "file":
                folder = addresses.folder(source, field="source")
                await threads.run(partial(_check_folder, folder, sha256))
            case "hf":
                meter = Meter(report)
                folder = await hub.snapshot(
                    source, cache=cache / "hub", endpoint=hub_endpoint, meter=meter, backoff=backoff
                )
                await meter.finish()
                await threads.run(partial(_check_snapshot, folder, sha256))
            case "https" | "http":
                folder = await _from_mirror(source, sha256.lower(), cache / "mirror", report, backoff)
            case other:
                message = f"'{other}://' is no place for weights; a folder, hf:// and https:// are."
                raise InvalidArgument(message, field="source")
    except NotFound as error:
        raise InvalidArgument(error.message, field="source") from None
    except OSError as error:
        raise disk.explained(error, field="source") from error
    return folder


async def _from_mirror(source: str, pin: str, cache: Path, report: Report, backoff: Backoff) -> Path:
    await threads.run(lambda _: cache.mkdir(parents=True, exist_ok=True))
    known = await threads.run(lambda _: (cache / pin).is_dir()) if pin else False
    if known:
        return cache / pin
    async with mirror.connect(source, field="source", backoff=backoff) as server:
        last = cache / f"{hashlib.sha256(without_secrets(source).encode()).hexdigest()}.last"
        try:
            data = await server.sums()
        except Unavailable as error:
            before = None if pin else await threads.run(lambda _: _last(last))
            if before is None:
                raise
            logger.warning("%s What was downloaded before is served.", error.message)
            return before
        checksums.check_pin(data, pin)
        sums = checksums.parse(data, field="source")
        _check_names(sums)
        folder = cache / hashlib.sha256(data).hexdigest()
        async with locks.locked(cache / f"{folder.name}.lock"):
            if not await threads.run(lambda _: folder.is_dir()):
                await _download(server, sums, data, folder, report)
            await threads.run(lambda _: files.write(last, folder.name.encode(), mode=disk.MODE))
    return folder


async def _download(server: mirror.Mirror, sums: dict[str, str], data: bytes, folder: Path, report: Report) -> None:
    """Gets every file; `folder` appears when all are there. What is there is kept next to it for the next try."""
    unfinished = folder.with_suffix(".unfinished")
    whole, parts = unfinished / "whole", unfinished / "parts"
    places = {name: (whole / name, parts / str(number)) for number, name in enumerate(sums)}
    meter = Meter(report)
    here = await threads.run(lambda _: {name: _size(target) for name, (target, _) in places.items()})
    missing = [name for name in sums if here[name] is None]
    sizes = await server.sizes(missing)
    done = sum(size or 0 for size in here.values())
    if len(sizes) == len(missing):
        meter.expect(done + sum(sizes.values()))
    started = await threads.run(lambda _: sum(_size(parts_of) or 0 for _, parts_of in places.values()))
    await threads.run(lambda _: disk.check_room(folder.parent, max(sum(sizes.values()) - started, 0)))
    meter.add(done, next(iter(sums)))

    async def fetch(name: str) -> None:
        target, part = places[name]
        await server.fetch(name, sums[name], part, target, lambda count: meter.add(count, name))

    await mirror.together(fetch(name) for name in missing)

    def publish(stop: Stop) -> None:
        for left in whole.glob(files.UNFINISHED):
            left.unlink()
        files.write(whole / checksums.FILE, data, mode=disk.MODE)
        _check_model(whole)
        os.replace(whole, folder)
        _remove_empty(unfinished)

    await threads.run(publish)
    await meter.finish()


def _check_folder(folder: Path, pin: str, stop: Stop) -> None:
    if not folder.is_dir():
        raise InvalidArgument(f"There is no folder {folder}; if it is a volume, is it mounted?", field="source")
    _check_model(folder)
    checksums.verify_folder(folder, pin, stop, field="source")


def _check_snapshot(folder: Path, pin: str, stop: Stop) -> None:
    _check_model(folder)
    if pin:  # else the hub's own sizes and hashes have been checked
        checksums.verify_folder(folder, pin, stop, field="source", read=hub.taken)


def _check_names(names: dict[str, str]) -> None:
    """Whether a list of files is a model's, before they are downloaded."""
    if not {"config.json", "params.json"} & names.keys():
        raise InvalidArgument(f"The mirror's {checksums.FILE} names no config.json.", field="source")
    if not any(name.endswith(_WEIGHTS) for name in names):
        raise InvalidArgument(f"The mirror's {checksums.FILE} names no weights (*.safetensors).", field="source")


def _check_model(folder: Path) -> None:
    """Whether vLLM could load it: a config, and weights that are whole."""
    names = {path.name for path in folder.iterdir()}
    if not {"config.json", "params.json"} & names:
        raise InvalidArgument(f"There is no config.json in {folder}: it holds no model.", field="source")
    if "config.json" in names:
        _json(folder / "config.json")
    weights = sorted(name for name in names if name.endswith(_WEIGHTS))
    if not weights:
        raise InvalidArgument(f"There are no weights (*.safetensors, *.bin or *.pt) in {folder}.", field="source")
    for name in weights:
        if name.endswith(".safetensors"):
            try:
                tensors.read_header(folder / name)
            except tensors.Corrupt as error:
                raise InvalidArgument(f"'{name}' in {folder} is not whole: {error}.", field="source") from None
    if "model.safetensors.index.json" in names:
        index = _json(folder / "model.safetensors.index.json").get("weight_map")
        for name in sorted(set(index.values())) if isinstance(index, dict) else ():
            if name not in names:
                raise InvalidArgument(f"'{name}', a part of the weights, is not in {folder}.", field="source")


def _json(path: Path) -> dict[str, object]:
    parsed = disk.read_object(path, _MAX_CONFIG_BYTES, field="source")
    if parsed is None:
        raise InvalidArgument(f"'{path.name}' in {path.parent} is no JSON object.", field="source")
    return parsed


def _last(pointer: Path) -> Path | None:
    """What was downloaded last from an address, if it is still there."""
    try:
        folder = pointer.with_name(pointer.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return folder if folder.is_dir() else None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _remove_empty(unfinished: Path) -> None:
    for path in (*(unfinished / "parts").glob("*"), *unfinished.glob("*.new")):
        path.unlink()
    for path in (unfinished / "parts", unfinished):
        if path.is_dir():
            path.rmdir()
