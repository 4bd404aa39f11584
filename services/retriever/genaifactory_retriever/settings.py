"""The retriever's settings: where it stores its state, and the bounds of documents and calls."""

from __future__ import annotations

from pathlib import Path

from pydantic import AnyHttpUrl, Field, SecretStr

from genaifactory_common import formats
from genaifactory_common import settings as common


class Documents(common.Settings):
    """Bounds of one document; beyond them it is rejected with a message that names the bound."""

    max_bytes: int = Field(default=formats.MAX_DOCUMENT_BYTES, ge=1, description="Of the file.")
    max_text_characters: int = Field(default=2_000_000, ge=1, description="Of the cleaned text.")
    max_pages: int = Field(default=2000, ge=1, description="Of a PDF.")
    max_unpacked_bytes: int = Field(
        default=128 * 1024 * 1024, ge=1, description="Of an Office file's or e-book's parts together."
    )
    parse_timeout_seconds: float = Field(default=60.0, gt=0, description="For reading one document.")
    parse_memory_bytes: int = Field(
        default=1024 * 1024 * 1024, ge=64 * 1024 * 1024, description="Address space of the process that reads it."
    )


class Ingestion(common.Settings):
    """How uploads are processed."""

    threads: int = Field(default=2, ge=1, le=64, description="Documents parsed and embedded at once.")
    documents_in_flight: int = Field(default=8, ge=1, le=1000, description="Of one upload; bounds its memory.")
    bytes_in_flight: int = Field(
        default=64 * 1024 * 1024, ge=1, description="Of all uploads together; further documents wait for their turn."
    )
    data_timeout_seconds: float = Field(
        default=60.0, gt=0, description="Longest pause of an upload in the middle of a document."
    )


class Search(common.Settings):
    """How queries are answered."""

    threads: int = Field(default=2, ge=1, le=64, description="Queries embedded and looked up at once.")
    default_limit: int = Field(default=10, ge=1, le=100, description="Passages when a query names no limit.")
    candidates: int = Field(default=50, ge=10, le=1000, description="Passages of each method for the fusion.")


class Qdrant(common.Settings):
    """A Qdrant server in place of the embedded store."""

    url: AnyHttpUrl = Field(description="Of its REST port, http://HOST:6333.")
    grpc_port: int = Field(default=6334, ge=1, le=65535)
    api_key: SecretStr | None = Field(default=None)
    timeout_seconds: int = Field(default=10, ge=1, le=600, description="For one call.")


class Settings(common.Common):
    """All settings of the retriever."""

    data_dir: Path = Field(
        default=Path(".genaifactory/retriever"), description="Documents, indexes and the model's graph."
    )
    model_cache_dir: Path | None = Field(
        default=None, description="Cache of MiniLM's graph (58 MB); None: data_dir/models. Services may share it."
    )
    space: common.Space = common.Space()
    documents: Documents = Documents()
    ingestion: Ingestion = Ingestion()
    search: Search = Search()
    qdrant: Qdrant | None = Field(default=None, description="None: vectors are stored in data_dir by Qdrant Edge.")
