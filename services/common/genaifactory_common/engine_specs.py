"""The part of factory.yaml for the model server: engines, their models, adapters and bounds."""

from __future__ import annotations

import difflib
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator

from genaifactory_common.vllm_arguments import NAMES

ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")]
"""A model's name: letters, digits and . _ : / -, at most 128 characters."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")]
"""SHA-256 in lower-case hex; empty: not checked."""

# What vLLM's engine allows as max_lora_rank.
LoraRank = Literal[1, 8, 16, 32, 64, 128, 256, 320, 512]

# Arguments of vLLM's engine that another field of the entry sets, and the field.
_DECIDED_ELSEWHERE = {
    "model": "source",
    "served_model_name": "model",
    "enable_lora": "adapters",
    "max_loras": "adapters.max_loaded",
    "max_cpu_loras": "adapters.max_loaded",
    "max_lora_rank": "adapters.max_rank",
}


def _argument(name: str) -> str:
    if name in _DECIDED_ELSEWHERE:
        raise ValueError(f"is set by the engine's field {_DECIDED_ELSEWHERE[name]}; leave it out here")
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "arguments have their Python names (max_model_len)"
        raise ValueError(f"vLLM has no engine argument of this name; {hint}")
    return name


ArgumentName = Annotated[str, AfterValidator(_argument)]
"""An argument of vLLM's engine that no other field of the entry sets."""


class Spec(BaseModel):
    """Base of every part: immutable; an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class Ray(Spec):
    """Replicas of an engine on a Ray cluster, scaled with the load."""

    min_replicas: int = Field(default=1, ge=1, le=1000, description="Replicas at all times.")
    max_replicas: int = Field(default=1, ge=1, le=1000, description="Replicas under load.")
    target_ongoing_requests: float = Field(
        default=16.0, gt=0, description="Requests for each replica; the number of replicas is scaled to it."
    )
    upscale_delay_seconds: float = Field(
        default=30.0, ge=0, description="How long load must stay high before a replica is added."
    )
    downscale_delay_seconds: float = Field(
        default=600.0, ge=0, description="How long load must stay low before a replica is removed."
    )
    num_cpus: float = Field(default=1.0, ge=0, description="Processor cores reserved for a replica.")
    num_gpus: float = Field(
        default=0.0, ge=0, description="GPUs reserved for a replica; on one node, as many as tensor_parallel_size."
    )
    resources: dict[str, float] = Field(default_factory=dict, description="Further resources of the cluster's own.")
    bundles: tuple[dict[str, float], ...] = Field(
        default=(),
        description="Placement group of a replica whose engine spans nodes, as [{CPU: 1, GPU: 1}, {GPU: 1}]; the first "
        "holds the replica itself.",
    )
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        default="PACK", description="How Ray places the bundles."
    )
    drain_seconds: float = Field(
        default=30.0, ge=0, description="Time for the requests of a replica that is removed or replaced to finish."
    )

    @model_validator(mode="after")
    def _replicas_fit(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas must be at least min_replicas ({self.min_replicas})")
        return self


class Engine(Spec):
    """The fields of every engine."""

    max_running: int = Field(default=64, ge=1, description="Requests that the engine works on at once.")
    max_queued: int = Field(default=256, ge=0, description="Requests that may wait; more are refused as overloaded.")
    max_per_tenant: int | None = Field(
        default=None, ge=1, description="Requests of one tenant that run or wait; None: as many as the engine accepts."
    )
    ray: Ray | None = Field(
        default=None,
        description="Replicas on a Ray cluster, with max_running each; None: in the model server's own process.",
    )

    def names(self) -> tuple[str, ...]:
        """The names under which requests use its models and declared adapters."""
        raise NotImplementedError


class Extractive(Engine):
    """Answers with sentences of the given documents; no weights."""

    type: Literal["extractive"] = "extractive"
    model: ModelName = Field(default="extractive", description="Name under which requests use it.")
    context_tokens: int = Field(
        default=32_768, ge=256, le=262_144, description="Longest prompt with its documents, in white-space words."
    )

    def names(self) -> tuple[str, ...]:
        """The one model."""
        return (self.model,)


class MiniLM(Engine):
    """Embeds with all-MiniLM-L6-v2 on the CPU."""

    type: Literal["minilm"] = "minilm"
    model: ModelName = Field(default="minilm", description="Name under which requests use it.")
    threads: int = Field(default=1, ge=1, le=64, description="Requests that are computed at once, one core each.")
    max_running: int = Field(default=8, ge=1, description="Requests that share the threads, a few texts at a time.")

    def names(self) -> tuple[str, ...]:
        """The one model."""
        return (self.model,)


class Fake(Engine):
    """Scripted; for tests."""

    type: Literal["fake"] = "fake"
    models: tuple[ModelName, ...] = Field(default=("fake",), min_length=1, description="Names that it serves.")
    script_file: str | None = Field(
        default=None, description="JSON script (see fake.py); None: it echoes the last user message."
    )

    def names(self) -> tuple[str, ...]:
        """The scripted models."""
        return self.models


class Adapter(Spec):
    """A LoRA adapter that every replica serves from its start."""

    name: ModelName = Field(description="Name under which requests use it.")
    source: str = Field(
        min_length=1,
        description="A folder, an https:// folder with SHA256SUMS, an MLflow model (models:/NAME/VERSION) or object "
        "storage (s3://, gs://, az://).",
    )
    sha256: Sha256 = Field(default="", description="Of its weights; empty: that of its metadata.json.")


class Adapters(Spec):
    """LoRA adapters of a base model. Present: the engine loads them, from here and through LoadAdapter."""

    max_loaded: int = Field(
        default=8, ge=1, le=256, description="In the engine at once; of more, the least recently used is unloaded."
    )
    max_known: int = Field(
        default=256,
        ge=1,
        le=10_000,
        description="Adapters that may be loaded through LoadAdapter and are kept on disk.",
    )
    max_rank: LoraRank = Field(default=16, description="Highest rank of an adapter; memory is reserved for it.")
    serve: tuple[Adapter, ...] = Field(default=(), description="Adapters that every replica serves from its start.")


class Vllm(Engine):
    """A model with weights, on vLLM."""

    type: Literal["vllm"]
    model: ModelName = Field(description="Name under which requests use it.")
    source: str = Field(
        min_length=1,
        description="Where the weights are: a folder (also of a mounted volume), hf://ORG/NAME[@REVISION], or "
        "https://MIRROR/FOLDER/ with a SHA256SUMS file.",
    )
    sha256: Sha256 = Field(default="", description="Of the source's SHA256SUMS file, which then must be there.")
    args: dict[ArgumentName, JsonValue] = Field(
        default_factory=dict,
        description="Arguments of vLLM's engine by their Python names: max_model_len, quantization, "
        "tensor_parallel_size, speculative_config, and every other.",
    )
    max_running: int = Field(
        default=256, ge=1, description="Requests that vLLM gets at once; it batches them as its memory allows."
    )
    max_queued: int = Field(default=1024, ge=0, description="Requests that may wait; more are refused as overloaded.")
    adapters: Adapters | None = Field(default=None, description="LoRA adapters; None: the engine loads none.")
    tool_parser: str | None = Field(
        default=None, description="vLLM's parser of the model's tool calls, by name (hermes, llama3_json, mistral, …)."
    )
    chat_template: str | None = Field(
        default=None,
        description="Jinja template of conversations; None: the model's own, or a plain form and a warning where it "
        "has none.",
    )
    prefix_cache: Literal["tenant", "shared"] = Field(
        default="tenant",
        description="Whether tenants share computed prompt prefixes. Shared saves more, but lets a tenant infer from "
        "the time to the first token what others have asked.",
    )
    start_timeout_seconds: float = Field(
        default=1800.0, gt=0, description="For vLLM to load the weights and answer once; the download is not counted."
    )

    def names(self) -> tuple[str, ...]:
        """The base model and the declared adapters."""
        return (self.model, *(adapter.name for adapter in self.adapters.serve)) if self.adapters else (self.model,)

    @model_validator(mode="after")
    def _adapters_fit(self) -> Self:
        if self.adapters is not None and len(self.adapters.serve) > self.adapters.max_known:
            raise ValueError("adapters.serve: there are more than adapters.max_known")
        return self


AnyEngine = Annotated[Extractive | MiniLM | Fake | Vllm, Field(discriminator="type")]

TYPES = tuple(get_args(each.model_fields["type"].annotation)[0] for each in get_args(get_args(AnyEngine)[0]))
"""Names of the union's branches, which are in the path of a pydantic error and not in the document."""
