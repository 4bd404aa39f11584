"""An adapter as the model server reads it: PEFT's two files, and the metadata."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genaifactory_common import files
from genaifactory_pipelines.values import Values

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
METADATA = "metadata.json"


class About(Values):
    """What the metadata says, beside the hash of the weights."""

    base_model: str
    """The server refuses the adapter for another base."""
    data_version: str
    prompt_version: str
    metrics: dict[str, float]


def export(checkpoint: Path, folder: Path, about: About) -> str:
    """Replaces the folder with the adapter of a checkpoint: whole or not at all. The SHA-256 of its weights, hex.

    Blocks. Raises OSError.
    """
    new = folder.with_name(f".{folder.name}.new")
    for path in (new, folder):
        shutil.rmtree(path, ignore_errors=True)
    new.mkdir()
    weights = (checkpoint / WEIGHTS).read_bytes()
    sha256 = hashlib.sha256(weights).hexdigest()
    files.write(new / WEIGHTS, weights, mode=0o644)
    config = json.loads((checkpoint / CONFIG).read_bytes())
    _write(new / CONFIG, _reproducible(config, about.base_model))
    _write(new / METADATA, {**about.model_dump(mode="json"), "sha256": sha256})
    os.replace(new, folder)
    return sha256


def _reproducible(config: Mapping[str, Any], base_model: str) -> dict[str, Any]:
    """PEFT writes a set in any order, and the base's folder on this machine."""
    modules = config["target_modules"]
    return {
        **config,
        "base_model_name_or_path": base_model,
        "revision": None,
        "target_modules": modules if isinstance(modules, str) else sorted(modules),
    }


def _write(path: Path, values: Mapping[str, Any]) -> None:
    files.write(path, json.dumps(values, indent=2, sort_keys=True).encode() + b"\n", mode=0o644)
