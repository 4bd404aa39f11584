"""Starts vLLM's engine: its surroundings, its processes, and why it could not start, in words for a person."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from genaifactory_common.errors import FactoryError, InvalidArgument, Unavailable

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.engine.async_llm import AsyncLLM

T = TypeVar("T")

_NO_MEMORY = re.compile(
    r"out of memory|OutOfMemory|MemoryError|can't allocate memory|Cannot allocate memory|not enough memory"
    r"|KV cache memory|KV cache is needed|No available memory|less than (?:desired|requested) .*memory|bad_alloc",
    re.IGNORECASE,
)
_LAST_LINE = re.compile(r"^(?:[\w.]+(?:Error|Exception|Warning)): (.+)$", re.MULTILINE)
_MAX_REASON_CHARACTERS = 600


def surround(log_folder: Path, *, log_level: str, start_timeout_seconds: float) -> Path:
    """Sets what vLLM reads from the environment, in this process and for those that it starts.

    Returns the file in which errors of its processes are found.
    """
    # Read here first: models are fetched by us, and vLLM must not ask a hub for what it has in a folder.
    import huggingface_hub  # noqa: F401

    log_folder.mkdir(parents=True, exist_ok=True)
    errors, config = log_folder / "vllm-errors.log", log_folder / "vllm-logging.json"
    errors.unlink(missing_ok=True)
    config.write_text(json.dumps(_logging(errors, log_level)))
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork of a process with gRPC's threads hangs
        "VLLM_LOGGING_CONFIG_PATH": str(config),
        "VLLM_ENGINE_READY_TIMEOUT_S": str(int(start_timeout_seconds)),
    }
    # Bound to cores, replicas on one machine would share one; a container's limit is no core either.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    return errors


def _logging(errors: Path, log_level: str) -> dict[str, Any]:
    json_lines = {"()": "genaifactory_common.telemetry.JsonFormatter"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": json_lines},
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "formatter": "json", "level": log_level},
            "errors": {
                "class": "logging.FileHandler",
                "formatter": "json",
                "filename": str(errors),
                "level": "ERROR",
                "delay": True,
            },
        },
        "loggers": {"vllm": {"handlers": ["stderr", "errors"], "level": log_level, "propagate": False}},
    }


def start(config: VllmConfig, errors: Path, *, path: str) -> AsyncLLM:
    """The engine, its weights loaded. Blocks. Raises FactoryError: why it could not start.

    errors: the file of `surround`. path: of the engine's entry in factory.yaml.
    """
    from vllm.v1.engine.async_llm import AsyncLLM

    try:
        with _eager(config.model_config.enforce_eager):
            return AsyncLLM.from_vllm_config(config)
    except Exception as error:
        reason = _recorded(errors) or _last_line(str(error))
        if "-9" in str(error):
            reason = f"its process was killed, as the kernel does when memory runs out ({reason})"
        raise _explained(reason, path) from error


@contextlib.contextmanager
def _eager(eager: bool) -> Iterator[None]:
    """Starts the engine's process without torch.compile where it is to run eagerly.

    vLLM's enforce_eager is about the model alone; its sampler would still stop everybody for 20 s when it first meets
    log probabilities, and again for other sizes of a batch.
    """
    if not eager:
        yield
        return
    os.environ["TORCH_COMPILE_DISABLE"] = "1"
    try:
        yield
    finally:
        del os.environ["TORCH_COMPILE_DISABLE"]


def _explained(reason: str, path: str) -> FactoryError:
    if _NO_MEMORY.search(reason) or "memory runs out" in reason:
        return Unavailable(
            f"There is not enough memory for the model: {reason} Give it more memory, or lower "
            f"{path}.args.max_model_len, max_num_seqs, gpu_memory_utilization or kv_cache_memory_bytes.",
            field=f"{path}.args",
        )
    return InvalidArgument(f"vLLM could not start the model: {reason}", field=path)


def _recorded(errors: Path) -> str:
    """The deepest cause that vLLM's processes have logged."""
    try:
        lines = errors.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if found := _LAST_LINE.findall(str(record.get("exception") or "")):
            return _last_line(str(found[-1]))
    return ""


def _last_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_REASON_CHARACTERS else line[: _MAX_REASON_CHARACTERS - 1] + "…"


async def in_thread(work: Callable[[], T], *, name: str) -> T:
    """Runs what blocks for minutes; a server that stops does not wait for it, as it would for a pool's."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # the work's own, when there is no error

    def run() -> None:
        try:
            result, failure = work(), None
        except BaseException as error:
            result, failure = None, error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await future
