"""Settings of the model server: which engines it holds and how much each may do at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from genaifactory_common.settings import Common
from genaifactory_common.settings import Settings as Group
from genaifactory_common.specs import ModelName


class Engine(Group):
    """What every engine has."""

    max_running: int = Field(default=64, ge=1, description="Requests that the engine works on at once.")
    max_queued: int = Field(default=256, ge=0, description="Requests that may wait; more are refused as overloaded.")


class Extractive(Engine):
    """Answers with sentences of the given documents; no weights."""

    type: Literal["extractive"] = "extractive"
    model: ModelName = Field(default="extractive", description="Name under which requests use it.")
    context_tokens: int = Field(
        default=32_768, ge=256, le=262_144, description="Longest prompt with its documents, in white-space words."
    )


class MiniLM(Engine):
    """Embeds with all-MiniLM-L6-v2 on the CPU."""

    type: Literal["minilm"] = "minilm"
    model: ModelName = Field(default="minilm", description="Name under which requests use it.")
    threads: int = Field(default=1, ge=1, le=64, description="Requests that are computed at once, one core each.")
    max_running: int = Field(default=8, ge=1, description="Requests that share the threads, a few texts at a time.")


class Fake(Engine):
    """Scripted; for tests."""

    type: Literal["fake"] = "fake"
    models: tuple[ModelName, ...] = Field(default=("fake",), min_length=1, description="Names that it serves.")
    script_file: Path | None = Field(
        default=None, description="JSON script (see fake.py); None: it echoes the last user message."
    )


EngineSettings = Annotated[Extractive | MiniLM | Fake, Field(discriminator="type")]


class Settings(Common):
    """The model server's."""

    data_dir: Path = Field(
        default=Path(".genaifactory/modelserver"), description="Cache of prepared graphs; may be lost."
    )
    engines: tuple[EngineSettings, ...] = Field(
        default=(Extractive(), MiniLM()), min_length=1, description="What is served; a JSON list in the environment."
    )
    max_embedding_characters: int = Field(
        default=2_000_000, ge=1, description="All texts of one Embed call together, in Unicode code points."
    )

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [n for e in self.engines for n in (e.models if isinstance(e, Fake) else (e.model,))]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"engines: the model name '{name}' stands twice")
        return self
