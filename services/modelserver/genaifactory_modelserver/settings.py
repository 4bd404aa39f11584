"""Settings of the model server: where it keeps files, how much one call may bring. Engines are in factory.yaml."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from genaifactory_common.settings import Common


class Settings(Common):
    """The model server's."""

    data_dir: Path = Field(
        default=Path(".genaifactory/modelserver"),
        description="Downloaded weights, verified adapters and prepared graphs. Replicas may share one.",
    )
    hub_endpoint: str | None = Field(
        default=None,
        description="Address of the Hugging Face hub or of a mirror of it, for hf:// sources; None: the hub.",
    )
    ray_address: str | None = Field(
        default=None,
        description="HOST:PORT of the Ray cluster for engines with `ray`, or auto for the one that this machine is a "
        "node of; None: one is started on this machine and ends with the server.",
    )
    max_embedding_characters: int = Field(
        default=2_000_000, ge=1, description="All texts of one Embed call together, in Unicode code points."
    )
