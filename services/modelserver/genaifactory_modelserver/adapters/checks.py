"""Whether a LoRA adapter is one that this base model can serve: its configuration, its metadata, and every weight."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from genaifactory_common.errors import InvalidArgument
from genaifactory_modelserver.threads import Stop
from genaifactory_modelserver.weights import checksums, disk, tensors

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
METADATA = "metadata.json"
FILES = (CONFIG, METADATA, WEIGHTS)
"""The files of an adapter that are read."""

MAX_JSON_BYTES = 1 << 20

# What PEFT can do and vLLM 0.32 cannot (its lora/peft_helper.py). Each is false, empty or missing when off.
_UNSUPPORTED = {
    "use_dora": "DoRA",
    "lora_bias": "a bias",
    "modules_to_save": "whole modules trained beside LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "replicated layers",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
}
# Of the ways to begin a training, those that leave the base model's weights as they are.
_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_PREFIX = "base_model.model."
_LINEAR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_EMBEDDING = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<side>[AB])")
# The base's own weights, which PEFT saves along with a changed vocabulary and vLLM does not read.
_OF_BASE = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
# PEFT saves the experts of a mixture together, in shapes of their own.
_EXPERTS = ".experts"
_LAYER = re.compile(r"\.\d+\.")


@dataclass(frozen=True, slots=True)
class Base:
    """The model that adapters are for."""

    name: str
    """Under which requests use it."""
    source: str
    """Where its weights came from, as factory.yaml has it."""
    folder: Path
    """Holds its weights."""
    max_rank: int
    """Highest rank of an adapter."""
    max_bytes: int = 2 << 30
    """Of an adapter's weights."""
    aliases: tuple[str, ...] = ()
    """Other names that adapters may use for it."""

    def names(self) -> tuple[str, ...]:
        """Every name that an adapter's metadata.json may give for it."""
        found = [self.name, *self.aliases, self.source]
        if self.source.startswith("hf://"):
            repo = self.source.removeprefix("hf://")
            found += [repo, repo.partition("@")[0]]
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class Checked:
    """What is known of an adapter whose files were checked."""

    sha256: str
    """Of its weights, hex."""
    rank: int
    """The highest of its modules."""
    target_modules: tuple[str, ...]
    """Last names of the modules that it changes: q_proj, v_proj."""
    metadata: Mapping[str, Any]


def check(name: str, folder: Path, sha256: str, base: Base, stop: Stop) -> Checked:
    """Checks everything; blocks. sha256: that the weights must have, or empty. Raises InvalidArgument, Stopped."""
    config = _json(name, folder / CONFIG)
    _check_config(name, config)
    ranks = _ranks(name, config, base.max_rank)
    metadata = _json(name, folder / METADATA)
    _check_metadata(name, metadata, base)
    weights = folder / WEIGHTS
    if not weights.is_file():
        message = f"The adapter '{name}' has no {WEIGHTS}; save it with PEFT's save_pretrained."
        raise InvalidArgument(message, field=WEIGHTS)
    digest = checksums.of_file(weights, stop)
    for wanted, place in ((sha256, "sha256"), (metadata.get("sha256", ""), f"{METADATA}.sha256")):
        if wanted and wanted.lower() != digest:
            message = f"The weights of the adapter '{name}' have the SHA-256 {digest}, and {wanted} is asked for."
            raise InvalidArgument(message, field=place)
    rank, modules = _check_weights(name, weights, ranks, _shapes(base.folder), stop)
    return Checked(digest, rank, modules, metadata)


def _json(name: str, path: Path) -> dict[str, Any]:
    try:
        parsed = disk.read_object(path, MAX_JSON_BYTES, field=path.name)
    except FileNotFoundError:
        message = f"The adapter '{name}' has no {path.name}."
        if path.name == METADATA:
            message += ' It must hold {"base_model": NAME, "sha256": SHA-256 of ' + WEIGHTS + "}."
        raise InvalidArgument(message, field=path.name) from None
    if parsed is None:
        raise InvalidArgument(f"The {path.name} of the adapter '{name}' is no JSON object.", field=path.name)
    return parsed


def _check_config(name: str, config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise _refused_config(name, "peft_type", f"is of the type {config.get('peft_type')!r}; LORA is served")
    for key, what in _UNSUPPORTED.items():
        if config.get(key):
            raise _refused_config(name, key, f"uses {what}, which vLLM does not serve")
    if config.get("bias") not in (None, "none"):
        raise _refused_config(name, "bias", "has trained biases, which vLLM does not serve; train with bias='none'")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in _INITS:
        why = f"was begun with {init!r}, which changes the base model; convert it with PEFT to an ordinary LoRA"
        raise _refused_config(name, "init_lora_weights", why)
    if not isinstance(config.get("target_modules"), list | str):
        raise _refused_config(name, "target_modules", "does not say which modules it changes")
    if type(config.get("lora_alpha")) not in (int, float):
        raise _refused_config(name, "lora_alpha", "has no lora_alpha that is a number")


def _ranks(name: str, config: dict[str, Any], most: int) -> frozenset[int]:
    """The ranks that its modules may have."""
    patterns = config.get("rank_pattern") or {}
    if not isinstance(patterns, dict):
        raise _refused_config(name, "rank_pattern", "has a rank_pattern that is no object")
    ranks = {"r": config.get("r"), **{f"rank_pattern.{key}": rank for key, rank in patterns.items()}}
    for key, rank in ranks.items():
        if type(rank) is not int or rank < 1:
            raise _refused_config(name, key, f"has the rank {rank!r}; a rank is a whole number above 0")
        if rank > most:
            why = f"has the rank {rank}; this server takes up to {most} (adapters.max_rank in factory.yaml)"
            raise _refused_config(name, key, why)
    return frozenset(ranks.values())


def _refused_config(name: str, key: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"The adapter '{name}' {why}.", field=f"{CONFIG}.{key}")


def _check_metadata(name: str, metadata: dict[str, Any], base: Base) -> None:
    trained_for = metadata.get("base_model")
    if not isinstance(trained_for, str) or not trained_for:
        message = f"The {METADATA} of the adapter '{name}' must say in base_model which model it was trained for."
        raise InvalidArgument(message, field=f"{METADATA}.base_model")
    if trained_for not in base.names():
        raise InvalidArgument(
            f"The adapter '{name}' was trained for '{trained_for}'; this server has '{base.name}'.",
            field=f"{METADATA}.base_model",
        )
    sha256 = metadata.get("sha256", "")
    if sha256 != "" and not checksums.is_digest(sha256):
        message = f"The sha256 in the {METADATA} of the adapter '{name}' is no SHA-256 in hex."
        raise InvalidArgument(message, field=f"{METADATA}.sha256")


def _check_weights(
    name: str, path: Path, ranks: frozenset[int], base: Mapping[str, tuple[int, ...]], stop: Stop
) -> tuple[int, tuple[str, ...]]:
    """The highest rank, and the last names of the modules. base: the shape of each of its modules, (out, in)."""
    try:
        header = tensors.read_header(path)
    except tensors.Corrupt as error:
        message = f"The weights of the adapter '{name}' are damaged: {error}."
        raise InvalidArgument(message, field=WEIGHTS) from None
    used = {key: tensor for key, tensor in header.items() if not key.endswith(_OF_BASE)}
    sides: dict[tuple[str, bool], dict[str, tuple[int, ...]]] = {}
    for key, tensor in used.items():
        matched, embedding = _LINEAR.fullmatch(key), False
        if matched is None:
            matched, embedding = _EMBEDDING.fullmatch(key), True
        if matched is None:
            raise _refused(name, key, "is no weight of a LoRA that vLLM knows (…lora_A.weight, …lora_B.weight)")
        if tensor.dtype not in tensors.FLOATS:
            raise _refused(name, key, f"is {tensor.dtype}; {', '.join(tensors.FLOATS)} are taken")
        module = matched["module"].removeprefix(_PREFIX)
        sides.setdefault((module, embedding), {})[matched["side"]] = tensor.shape
    if not sides:
        raise InvalidArgument(f"The {WEIGHTS} of the adapter '{name}' holds no weights.", field=WEIGHTS)
    known = any(module in base for module, _ in sides)
    highest = max(
        _check_module(name, module, shapes, ranks, _in_base(name, module, embedding, base, known))
        for (module, embedding), shapes in sides.items()
    )
    bad = tensors.find_not_finite(path, used, stop)
    if bad is not None:
        raise _refused(name, bad, "holds values that are infinite or no numbers")
    return highest, tuple(sorted({module.rpartition(".")[2] for module, _ in sides}))


def _check_module(
    name: str, module: str, shapes: dict[str, tuple[int, ...]], ranks: frozenset[int], base: tuple[int, ...] | None
) -> int:
    """The module's rank. base: (out, in) of the base's module, if it is known."""
    if shapes.keys() != {"A", "B"}:
        raise _refused(name, module, f"has a lora_{next(iter(shapes))} alone")
    a, b = shapes["A"], shapes["B"]
    if len(a) != 2 or len(b) != 2 or 0 in (*a, *b):
        raise _refused(name, module, f"has the shapes {a} and {b}; (rank, in) and (out, rank) are right")
    if _EXPERTS in module:
        return max(ranks)
    if a[0] != b[1] or a[0] not in ranks:
        wanted = " or ".join(str(rank) for rank in sorted(ranks))
        raise _refused(name, module, f"has the ranks {a[0]} and {b[1]}; {CONFIG} says {wanted}")
    if base is not None and (b[0], a[1]) != base:
        raise _refused(name, module, f"is for a module of {(b[0], a[1])}, and the base model has one of {base}")
    return a[0]


def _in_base(
    name: str, module: str, embedding: bool, base: Mapping[str, tuple[int, ...]], known: bool
) -> tuple[int, ...] | None:
    """(out, in) of the base's module; None: its files do not contain it."""
    shape = base.get(module)
    if shape is not None:
        return shape[::-1] if embedding else shape
    # Models of several parts (vision, language) may name all modules otherwise: then nothing is known of any.
    if known and _LAYER.search(module) and _EXPERTS not in module:
        raise _refused(name, module, "is for a module that the base model has not")
    return None


@lru_cache(maxsize=8)  # a model's files stay as they are while it is served
def _shapes(folder: Path) -> Mapping[str, tuple[int, ...]]:
    """Shapes of a model's weights by module, from the headers of its files.

    Empty for a quantised model, whose weights have other shapes in the file, and for one without safetensors.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
        if "quantization_config" in config or "compression_config" in config:
            return {}
        headers = [tensors.read_header(path) for path in sorted(folder.glob("*.safetensors"))]
    except (OSError, ValueError, tensors.Corrupt):  # vLLM has read the model: its architecture is none of those above
        return {}
    return {
        name.removesuffix(".weight"): tensor.shape
        for header in headers
        for name, tensor in header.items()
        if name.endswith(".weight") and len(tensor.shape) == 2
    }


def _refused(name: str, what: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"The weights of the adapter '{name}' do not fit: '{what}' {why}.", field=WEIGHTS)
