"""What is trained, and how."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field

from genaifactory_common.engine_specs import LoraRank
from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines.values import Values

StageName = Literal["sft", "dpo"]
Method = Literal["sft", "dpo", "sft+dpo"]
HUB = "hf://"
"""What the address of a model on a hub begins with."""
Name = Annotated[str, Field(min_length=1, max_length=256)]


class Lora(Values):
    """The adapter (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021)."""

    rank: int = Field(default=16, ge=1, le=max(get_args(LoraRank)))
    """`adapters.max_rank` of the engine that serves it must be as high."""
    alpha: int = Field(default=32, ge=1)
    """The adapter's weight is alpha / rank."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    target_modules: Literal["all-linear"] | Annotated[tuple[Name, ...], Field(min_length=1)] = "all-linear"
    """Last names of the linear layers that it changes (q_proj, v_proj), or every one but the output layer."""


class Schedule(Values):
    """How long and how fast a stage learns."""

    epochs: float = Field(default=3.0, gt=0, le=1000)
    batch_size: int = Field(default=8, ge=1)
    """Examples that are in memory at once."""
    accumulation: int = Field(default=1, ge=1)
    """Batches in one step."""
    learning_rate: float = Field(default=2e-4, gt=0, allow_inf_nan=False)
    """The highest; it falls linearly to 0."""
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps in which the rate rises."""
    evaluate_every: int = Field(default=50, ge=1)
    """Steps between evaluations on the validation split, each with a checkpoint; the last step has one too."""
    patience: int = Field(default=3, ge=1)
    """Evaluations in a row without a lower loss after which the stage stops."""

    def steps(self, examples: int) -> int:
        """Optimizer steps of the whole stage."""
        return math.ceil(self.epochs * math.ceil(math.ceil(examples / self.batch_size) / self.accumulation))


class Preference(Schedule):
    """DPO (Rafailov et al., "Direct Preference Optimization", 2023)."""

    learning_rate: float = Field(default=1e-5, gt=0, allow_inf_nan=False)
    beta: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    """How strongly the model is held to what it was before the stage."""


class Training(Values):
    """How a base is trained, whichever it is."""

    method: Method = "sft"
    """To imitate the outputs (sft), to prefer them to the rejected ones (dpo), or one after the other."""
    quantisation: Literal["none", "4bit"] = "none"
    """Of the base while it is trained on: 4bit is QLoRA, which needs CUDA."""
    lora: Lora = Lora()
    sft: Schedule = Schedule()
    dpo: Preference = Preference()
    max_tokens: int = Field(default=2048, ge=2)
    """Of a prompt and its output. Longer examples are left out, and counted; the base's context is a bound too."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    prompt_version: str = ""
    """Of the prompts that the adapter is meant for; it is noted in the adapter's metadata."""

    def stages(self) -> tuple[tuple[StageName, Schedule], ...]:
        """The stages of the method, in their order."""
        known: tuple[tuple[StageName, Schedule], ...] = (("sft", self.sft), ("dpo", self.dpo))
        return tuple((name, schedule) for name, schedule in known if name in self.method.split("+"))


class Options(Training):
    """What is trained, and how."""

    base: str = Field(min_length=1, max_length=4096)
    """The base model: a folder, or hf://ORG/NAME[@REVISION]. Not a mirror: a model server's download of one is a
    folder."""
    served_as: str = ""
    """The name under which `factory.yaml` serves the base, or an alias or source of it; empty: as `base`."""


def base_folder(folder: Path) -> Path:
    """The folder of a base. Blocks. Raises InvalidArgument when there is no model in it."""
    if not (folder / "config.json").is_file():
        raise InvalidArgument(f"There is no model in {folder}: it has no config.json.", field="base")
    return folder
