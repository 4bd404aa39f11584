"""Embedders: the models that turn the passages of a knowledge base and the questions about them into vectors."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AnyHttpUrl, Field, StringConstraints

from genaifactory_common.engine_specs import ModelName, Spec
from genaifactory_common.specs.models import EnvironmentName

# The space at its end counts.
_Prefix = Annotated[str, StringConstraints(strip_whitespace=False, max_length=256)]


class MiniLMEmbedder(Spec):
    """all-MiniLM-L6-v2, 384 dimensions, for English; part of every installation."""

    type: Literal["minilm"] = "minilm"

    @property
    def model(self) -> str:
        """Its name, for people."""
        return "minilm"


class E5Embedder(Spec):
    """multilingual-e5-small, 384 dimensions, for a hundred languages; needs the retriever's extra `e5`."""

    type: Literal["e5"]

    @property
    def model(self) -> str:
        """Its name, for people."""
        return "e5"


class OnnxEmbedder(Spec):
    """A sentence-transformers model with an ONNX graph; pooling, prefixes and length are read from its files."""

    type: Literal["onnx"]
    path: str = Field(
        pattern=r"^/", max_length=4096, description="Where the retriever finds it: absolute, also of a mounted volume."
    )

    @property
    def model(self) -> str:
        """Its name, for people."""
        return self.path.rstrip("/").rpartition("/")[2] or "onnx"


class OpenAIEmbedder(Spec):
    """A model behind any OpenAI-compatible API. It gets the text of every document and of every question."""

    type: Literal["openai"]
    base_url: AnyHttpUrl = Field(description="Up to and with /v1.")
    model: ModelName = Field(description="Name at that API.")
    dimensions: int = Field(ge=1, le=4096, description="Components of its vectors; others are refused.")
    api_key_env: EnvironmentName | None = Field(
        default=None, description="Environment variable of the retriever that holds its key."
    )
    query_prefix: _Prefix = Field(default="", description="Put before a question, as 'query: '.")
    passage_prefix: _Prefix = Field(default="", description="Put before a passage, as 'passage: '.")
    texts_at_once: int = Field(default=32, ge=1, le=2048, description="Passages of one call.")
    timeout_seconds: float = Field(default=20.0, gt=0, le=600, description="For one call.")


AnyEmbedder = Annotated[MiniLMEmbedder | E5Embedder | OnnxEmbedder | OpenAIEmbedder, Field(discriminator="type")]

TYPES = tuple(get_args(each.model_fields["type"].annotation)[0] for each in get_args(get_args(AnyEmbedder)[0]))
"""Names of the union's branches, which are in the path of a pydantic error and not in the document."""
