"""vLLM's engine arguments out of an entry of factory.yaml, checked before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext

from genaifactory_common.engine_specs import Vllm
from genaifactory_common.errors import InvalidArgument

_MAX_REASON_CHARACTERS = 400
_ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


def config(spec: Vllm, folder: Path, *, path: str) -> VllmConfig:
    """The whole configuration of the engine. Blocks for seconds. Raises InvalidArgument that names the argument.

    folder: where the weights are. path: of the entry in factory.yaml ("engines[0]").
    """
    try:
        return _create(spec, folder, spec.args)
    except Exception as error:
        name = _culprit(spec, folder, error)
        reason = _reason(error)
        if name is None:
            raise InvalidArgument(f"vLLM cannot serve this model so: {reason}", field=f"{path}.args") from error
        raise InvalidArgument(
            f"vLLM refuses the argument '{name}' ({spec.args[name]!r}): {reason}", field=f"{path}.args.{name}"
        ) from error


def _create(spec: Vllm, folder: Path, args: Mapping[str, Any]) -> VllmConfig:
    """Ours are defaults; the entry's override them."""
    merged = {
        "scheduling_policy": "priority",
        # A small model that may put white space between JSON's parts can write nothing else until its tokens are spent.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        **args,
    }
    if current_platform.is_cpu():
        merged.setdefault("worker_cls", "genaifactory_modelserver.engines.vllm.cpu.Worker")
        if not _several_workers(args):
            # In the engine's own process: a second one for the only worker costs a gigabyte, ten seconds of the start,
            # and a message for every step. ("uni" by its short name is not let through; OMP_NUM_THREADS must be set
            # before the start, as it is for us.)
            merged.setdefault("distributed_executor_backend", _ONE_PROCESS)
    if spec.adapters is not None:
        # On a CPU the row of a request without an adapter is computed with the last slot's weights (index -1), so
        # that slot must stay empty: there is one more than adapters. GPU kernels pass such rows over.
        slots = spec.adapters.max_loaded + (1 if current_platform.is_cpu() else 0)
        merged |= {
            "enable_lora": True,
            "max_loras": slots,
            "max_cpu_loras": slots,
            "max_lora_rank": spec.adapters.max_rank,
        }
    engine_args = AsyncEngineArgs(model=str(folder), served_model_name=[spec.model], **merged)
    return engine_args.create_engine_config(UsageContext.ENGINE_CONTEXT)


def _several_workers(args: Mapping[str, Any]) -> bool:
    return any(args.get(name, 1) != 1 for name in ("tensor_parallel_size", "pipeline_parallel_size"))


def _culprit(spec: Vllm, folder: Path, error: Exception) -> str | None:
    """The argument that the error is about: the one it names, or else the one without which it does not come."""
    if isinstance(error, ValidationError):
        for found in error.errors(include_url=False, include_input=False, include_context=False):
            for part in found["loc"]:
                if part in spec.args:
                    return str(part)
    text = str(error)
    named = [name for name in spec.args if re.search(rf"\b{name}\b", text)]
    if len(named) == 1:
        return named[0]
    for name in named or spec.args:
        try:
            _create(spec, folder, {each: value for each, value in spec.args.items() if each != name})
        except Exception as other:
            if str(other) != text:
                return name
        else:
            return name
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        message = "; ".join(found["msg"] for found in error.errors(include_url=False, include_input=False))
    else:
        message = str(error) or type(error).__name__
    message = " ".join(message.removeprefix("Value error, ").split())
    return message if len(message) <= _MAX_REASON_CHARACTERS else message[: _MAX_REASON_CHARACTERS - 1] + "…"
