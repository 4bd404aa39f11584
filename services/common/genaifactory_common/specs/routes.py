"""Routes, which clients name as models, and the prompts and knowledge bases that they use."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from genaifactory_common.engine_specs import ModelName, Spec
from genaifactory_common.specs.embedders import AnyEmbedder, MiniLMEmbedder
from genaifactory_common.specs.names import Name

TaskName = Literal["chat", "rag"]
PromptReference = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*(@[0-9]+)?$")]
"""NAME or NAME@VERSION."""
PassageCount = Annotated[int, Field(ge=1, le=50)]


class Cache(Spec):
    """Whether a route answers a repeated question from the cache."""

    enabled: bool = True
    max_age_seconds: float = Field(default=3600.0, gt=0)


class Route(Spec):
    """What a client names as `model`: a task with everything it needs."""

    name: ModelName
    task: TaskName
    description: str = ""
    models: tuple[ModelName, ...] = Field(min_length=1, description="The model and its fallbacks, in order.")
    prompt: PromptReference | None = Field(default=None, description="NAME or NAME@VERSION; no version: the newest.")
    knowledge_base: Name | None = Field(default=None, description="The knowledge base that a rag route searches.")
    passages: PassageCount = Field(default=5, description="Passages given to the model.")
    min_term_coverage: float = Field(
        default=0.55,
        ge=0,
        le=1,
        description="A rag route refuses when a smaller share of the question's terms is found.",
    )
    policy: Name = Field(default="default", description="Guardrail policy of input and output.")
    cache: Cache = Cache()
    history_messages: int = Field(default=20, ge=0, le=1000, description="Messages kept of a stored conversation.")
    timeout_seconds: float = Field(default=120.0, gt=0, le=3600, description="For the whole answer.")
    max_output_tokens: int = Field(
        default=1024,
        ge=1,
        le=1_000_000,
        description="When the client sets no max_tokens; admission reserves as many.",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.task == "rag" and self.knowledge_base is None:
            raise ValueError("a rag route needs knowledge_base")
        if self.task == "rag" and self.prompt is None:
            raise ValueError("a rag route needs prompt")
        return self


class Prompt(Spec):
    """One version of a prompt template (Jinja, sandboxed). Variables: question, passages, tenant, today, refusal."""

    name: Name
    version: int = Field(ge=1)
    system: str = Field(min_length=1, max_length=100_000)
    refusal: dict[str, str] = Field(
        default_factory=dict, description="The answer when the passages do not hold one, by language."
    )

    @property
    def reference(self) -> str:
        """NAME@VERSION."""
        return f"{self.name}@{self.version}"

    @field_validator("system")
    @classmethod
    def _compiles(cls, system: str) -> str:
        from genaifactory_common import templates  # 80 ms, which commands without a document do not need

        templates.compiled(system)
        return system


class KnowledgeBase(Spec):
    """A set of documents with its own index versions."""

    name: Name
    description: str = ""
    tenants: tuple[str, ...] = Field(
        default=("*",), description="Tenants that may use it; '*' is all. Each has its own documents."
    )
    chunk_tokens: int = Field(default=200, ge=32, le=2000, description="Longest passage, in embedding tokens.")
    chunk_overlap_tokens: int = Field(default=30, ge=0, le=500)
    embedder: AnyEmbedder = Field(
        default=MiniLMEmbedder(), description="The model that makes its vectors; a change needs a new index version."
    )

    @model_validator(mode="after")
    def _overlap(self) -> Self:
        if self.chunk_overlap_tokens >= self.chunk_tokens:
            raise ValueError("chunk_overlap_tokens must be smaller than chunk_tokens")
        return self
