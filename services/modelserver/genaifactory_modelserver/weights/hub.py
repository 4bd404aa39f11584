"""Weights from the Hugging Face hub, or from a server that speaks its API."""

from __future__ import annotations

import fnmatch
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genaifactory_common.backoff import Backoff
from genaifactory_common.errors import InvalidArgument, Unavailable
from genaifactory_common.redaction import without_secrets
from genaifactory_modelserver import threads
from genaifactory_modelserver.threads import Stop
from genaifactory_modelserver.weights import checksums, disk
from genaifactory_modelserver.weights.mirror import RETRIES
from genaifactory_modelserver.weights.progress import Meter

logger = logging.getLogger(__name__)

_ADDRESS = re.compile(r"hf://([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?/?", re.ASCII)
_TAKEN = ("*.safetensors", "*.json", "*.model", "*.tiktoken", "*.jinja", "*.py", "*.txt", checksums.FILE)
# In pickle, which older models have alone; vLLM loads them without running what is in them.
_TAKEN_ELSE = (*_TAKEN, "*.bin", "*.pt")
_LEFT = ("original/*", "onnx/*", "openvino/*", ".*")
_PARALLEL = 4
_TIMEOUT_SECONDS = 10.0


def parse(source: str) -> tuple[str, str | None]:
    """ORG/NAME and the revision of an hf:// address. Raises InvalidArgument."""
    matched = _ADDRESS.fullmatch(source)
    if matched is None or ".." in source:
        raise InvalidArgument(
            f"'{source}' is no model of a hub; write hf://ORG/NAME or hf://ORG/NAME@REVISION.", field="source"
        )
    return matched[1], matched[2]


def taken(name: str) -> bool:
    """Whether a file of a model is downloaded."""
    matches = any(fnmatch.fnmatch(name, pattern) for pattern in _TAKEN_ELSE)
    return matches and not any(fnmatch.fnmatch(name, pattern) for pattern in _LEFT)


async def snapshot(source: str, *, cache: Path, endpoint: str | None, meter: Meter, backoff: Backoff) -> Path:
    """Downloads what is needed of a model, or finds it in the cache; gives its folder.

    endpoint: address of the hub; None: the library's default. Raises InvalidArgument, Unavailable.
    """
    repo, revision = parse(source)
    asked = _Asked(repo, revision, cache, endpoint, meter, backoff)
    return await threads.run(asked.download)


class _Asked:
    """One download. Its methods block."""

    def __init__(
        self,
        repo: str,
        revision: str | None,
        cache: Path,
        endpoint: str | None,
        meter: Meter,
        backoff: Backoff,
    ) -> None:
        self._repo = repo
        self._revision = revision
        self._cache = cache
        self._endpoint = endpoint
        self._meter = meter
        self._backoff = backoff

    def download(self, stop: Stop) -> Path:
        """Tries until it is here. Raises InvalidArgument, Unavailable, Stopped."""
        import httpx2
        from huggingface_hub import errors

        logging.getLogger("httpx2").setLevel(logging.WARNING)  # it would log every request
        self._cache.mkdir(parents=True, exist_ok=True)
        for failures in range(1, RETRIES + 2):
            try:
                return self._once(stop)
            except errors.HFValidationError:
                raise InvalidArgument(f"'{self._shown}' is no name that a hub can have.", field="source") from None
            except errors.OfflineModeIsEnabled:
                kept = self._kept()
                if kept is None:
                    raise InvalidArgument(self._missing("HF_HUB_OFFLINE is set"), field="source") from None
                return kept
            except (httpx2.TransportError, OSError) as error:
                refusal = self._refusal(error)
                if refusal is not None:
                    raise refusal from None
                logger.warning("'%s' cannot be had from %s: %s", self._shown, self._hub, type(error).__name__)
                kept = self._kept()
                if kept is not None:
                    return kept
            if failures <= RETRIES:
                stop.wait(self._backoff.seconds(failures))
        raise Unavailable(self._missing(f"{self._hub} cannot be reached"))

    def _once(self, stop: Stop) -> Path:
        from huggingface_hub import HfApi

        info = HfApi(endpoint=self._endpoint).model_info(
            self._repo, revision=self._revision, files_metadata=True, timeout=_TIMEOUT_SECONDS
        )
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or () if taken(file.rfilename)}
        patterns = _TAKEN if any(name.endswith(".safetensors") for name in sizes) else _TAKEN_ELSE
        wanted = {name for name in sizes if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)}
        folder = self._cache / f"models--{self._repo.replace('/', '--')}" / "snapshots" / str(info.sha)
        here = sum(sizes[name] for name in wanted if (folder / name).exists())
        total = sum(sizes[name] for name in wanted)
        disk.check_room(self._cache, total - here)
        self._meter.expect(total)
        self._meter.add(here, self._repo)
        return self._snapshot(patterns, _bar(self._meter, self._repo, stop), offline=False)

    def _kept(self) -> Path | None:
        """What was downloaded before, if it is whole."""
        from huggingface_hub import errors

        try:
            folder = self._snapshot(_TAKEN, None, offline=True)
            if not any(folder.glob("*.safetensors")):
                folder = self._snapshot(_TAKEN_ELSE, None, offline=True)
        except (errors.LocalEntryNotFoundError, errors.IncompleteSnapshotError):
            return None
        logger.warning("'%s' is served as it was downloaded before", self._shown)
        return folder

    def _missing(self, why: str) -> str:
        return (
            f"{why}, and '{self._shown}' is not whole in the cache. Without a hub use a folder or an https:// mirror "
            f"with a {checksums.FILE} file, or set hub_endpoint to a hub that can be reached."
        )

    def _snapshot(self, patterns: Sequence[str], bar: type[Any] | None, *, offline: bool) -> Path:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(
                self._repo,
                revision=self._revision,
                cache_dir=self._cache,
                endpoint=self._endpoint,
                allow_patterns=list(patterns),
                ignore_patterns=list(_LEFT),
                max_workers=_PARALLEL,
                tqdm_class=bar,
                local_files_only=offline,
            )
        )

    def _refusal(self, error: Exception) -> Exception | None:
        """The error that only a person can put right; None: it may pass."""
        from huggingface_hub import errors

        status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
        if isinstance(error, errors.GatedRepoError):
            why = "is gated: accept its terms on the hub, and give the server a token of that account in HF_TOKEN"
        elif isinstance(error, errors.RevisionNotFoundError):
            why = f"has no revision '{self._revision or 'main'}'"
        elif isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403, 404):
            why = "is not there, or is private: check its name, and the token in HF_TOKEN if it needs one"
        elif status and status < 500 and status not in (408, 425, 429):
            why = f"cannot be had: the hub answered {status}"
        elif (
            isinstance(error, OSError)
            and not isinstance(error, errors.HfHubHTTPError | ConnectionError)
            and error.errno
        ):
            return error  # of our own disk
        else:
            return None
        return InvalidArgument(f"'{self._shown}' {why} ({self._hub}).", field="source")

    @property
    def _hub(self) -> str:
        return without_secrets(self._endpoint) if self._endpoint else "the Hugging Face hub"

    @property
    def _shown(self) -> str:
        return f"{self._repo}@{self._revision}" if self._revision else self._repo


def _bar(meter: Meter, repo: str, stop: Stop) -> type[Any]:
    """The library's progress bar. It shows none, counts bytes, and ends a download that is to stop."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    most = 0  # the library has two bars for bytes: received, and written; they may grow apart

    class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
        def __init__(self, *args: Any, **options: Any) -> None:
            self._bytes = 0
            self._counts = options.get("unit") == "B"
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal most
            stop.check()
            if self._counts:
                self._bytes += int(n or 0)
                if self._bytes > most:
                    grown, most = self._bytes - most, self._bytes
                    meter.add(grown, repo)

    return Bar
