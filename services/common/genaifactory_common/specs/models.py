"""Models: their backends, prices, timeouts and retries."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AnyHttpUrl, Field, StringConstraints, model_validator

from genaifactory_common.engine_specs import ModelName, Spec

EnvironmentName = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]*$")]
"""Name of an environment variable."""


class Price(Spec):
    """A model's price."""

    input_per_million_tokens: float = Field(default=0.0, ge=0)
    output_per_million_tokens: float = Field(default=0.0, ge=0)
    cached_input_per_million_tokens: float | None = Field(default=None, ge=0, description="None: as input.")
    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$")


class ModelServerBackend(Spec):
    """A model of the platform's own model server."""

    type: Literal["modelserver"] = "modelserver"
    model: ModelName = Field(description="Name at the model server.")


class OpenAIBackend(Spec):
    """A model behind any OpenAI-compatible API."""

    type: Literal["openai"]
    base_url: AnyHttpUrl = Field(description="Up to and with /v1.")
    model: ModelName = Field(description="Name at that API.")
    api_key_env: EnvironmentName | None = Field(default=None, description="Environment variable that holds its key.")
    dialect: Literal["compatible", "openai", "vllm"] = Field(
        default="compatible",
        description="Its API beyond the common parameters: 'openai' (OpenAI's own) names the output limit "
        "max_completion_tokens; 'vllm' continues unfinished answers exactly and accepts regex, choice, grammar, top_k, "
        "min_p, repetition_penalty and chat_template_kwargs.",
    )


class Retry(Spec):
    """Retries of a failing backend."""

    attempts: int = Field(default=3, ge=1, le=10, description="Attempts at one backend, the first included.")
    initial_backoff_seconds: float = Field(default=0.2, gt=0, le=60)
    max_backoff_seconds: float = Field(default=5.0, gt=0, le=300)


class CircuitBreaker(Spec):
    """When a failing backend is not called."""

    failures: int = Field(default=5, ge=1, description="Failures in a row that open the circuit.")
    open_seconds: float = Field(default=10.0, gt=0, description="How long it stays open before one trial call.")


class Model(Spec):
    """A model that routes can name, and its backend."""

    name: ModelName
    kind: Literal["chat", "embedding"] = "chat"
    description: str = ""
    vision: bool = Field(
        default=False,
        description="Whether it accepts images. Requests with images go to those models of a route that do.",
    )
    backend: Annotated[ModelServerBackend | OpenAIBackend, Field(discriminator="type")]
    price: Price = Price()
    timeout_seconds: float = Field(default=60.0, gt=0, le=3600, description="For one attempt, from start to end.")
    first_token_timeout_seconds: float = Field(
        default=20.0, gt=0, le=3600, description="Until the first token of one attempt."
    )
    idle_timeout_seconds: float = Field(default=15.0, gt=0, le=3600, description="Between two pieces of a stream.")
    retry: Retry = Retry()
    circuit_breaker: CircuitBreaker = CircuitBreaker()

    @model_validator(mode="after")
    def _can_see(self) -> Self:
        if self.vision and self.kind != "chat":
            raise ValueError("vision: an embedding model accepts texts alone; leave it out")
        if self.vision and self.backend.type == "modelserver":
            raise ValueError(
                "vision: the model server's engines accept no images; name an OpenAI-compatible API of a model that "
                "does (vLLM's own server is one, with dialect: vllm)"
            )
        return self
