"""The base model: found, checked and loaded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2  # huggingface-hub's own dependency, as it is transformers'
import torch
from huggingface_hub import errors, snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from genaifactory_common.errors import InvalidArgument, Unavailable
from genaifactory_pipelines.training.options import HUB, base_folder

_FILES = ("*.safetensors", "*.json", "*.model", "*.tiktoken", "*.jinja", "*.txt")


@dataclass(frozen=True)
class Base:
    """A base model that can be trained on."""

    folder: Path
    tokenizer: Any
    ends: frozenset[int]
    """Tokens at which generation stops."""
    context: int
    """Tokens of a conversation; sys.maxsize where the configuration sets no bound."""


def find(source: str) -> Base:
    """Looks at everything but the weights. Blocks; it downloads a model of the hub.

    Raises InvalidArgument for what is no causal language model with a chat template, Unavailable without the hub.
    """
    folder = base_folder(_downloaded(source) if source.startswith(HUB) else Path(source))
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError):
        raise _refused(f"The config.json of {source} is not one that transformers knows.") from None
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if not known & set(config.architectures or ()):
        found = ", ".join(config.architectures or ()) or "none"
        raise _refused(f"{source} is no causal language model; its architecture is: {found}.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError):
        raise _refused(f"{source} has no tokenizer that transformers can load.") from None
    if tokenizer.chat_template is None:
        raise _refused(f"{source} has no chat template: take the model's chat variant (often named -Instruct or -it).")
    if tokenizer.eos_token is None:
        raise _refused(f"The tokenizer of {source} has no token that ends an answer (eos_token).")
    context = getattr(config.get_text_config(), "max_position_embeddings", sys.maxsize)
    return Base(folder, tokenizer, _ends(folder, tokenizer), context)


def load(base: Base, quantisation: str, targets: str | Sequence[str]) -> Any:
    """The model, in float32 on a CPU and bfloat16 on a GPU. Blocks.

    targets: modules that it must have. Raises InvalidArgument.
    """
    gpu = torch.cuda.is_available()
    wanted: dict[str, Any] = {"dtype": torch.bfloat16 if gpu else torch.float32}
    if quantisation == "4bit":  # as in Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023
        wanted["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        wanted["device_map"] = {"": 0}
    try:
        model = AutoModelForCausalLM.from_pretrained(base.folder, trust_remote_code=False, **wanted)
    except (OSError, ValueError, RuntimeError) as error:
        raise _refused(f"The weights in {base.folder} cannot be loaded ({type(error).__name__}).") from None
    _check_targets(model, targets)
    return model


def _downloaded(source: str) -> Path:
    name, _, revision = source.removeprefix(HUB).partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(_FILES)))
    except errors.HFValidationError:
        raise _refused(f"'{source}' is no model of a hub; write hf://ORG/NAME or hf://ORG/NAME@REVISION.") from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise _refused(f"The hub has no {source}, or shows it to nobody without the right HF_TOKEN.") from None
    except (httpx2.HTTPError, OSError) as error:  # what is not there and cannot be asked for is an OSError
        raise Unavailable(f"The hub cannot give {source} now ({type(error).__name__}).") from None


def _ends(folder: Path, tokenizer: Any) -> frozenset[int]:
    try:
        found = GenerationConfig.from_pretrained(folder).eos_token_id
    except OSError:
        found = None
    return frozenset([tokenizer.eos_token_id, *([found] if isinstance(found, int) else found or [])])


def _check_targets(model: Any, targets: str | Sequence[str]) -> None:
    output = model.get_output_embeddings()
    linear = (
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not output
    )
    known = sorted(set(linear))
    if missing := [] if isinstance(targets, str) else sorted(set(targets) - set(known)):
        raise InvalidArgument(
            f"The base has no linear layer {', '.join(missing)} that an adapter could change; it has: "
            f"{', '.join(known)}.",
            field="lora.target_modules",
        )


def _refused(message: str) -> InvalidArgument:
    return InvalidArgument(message, field="base")
