"""Settings of the orchestrator: addresses, files, timeouts and bounds."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from genaifactory_common import database, settings
from genaifactory_common.database import DatabaseUrl
from genaifactory_common.settings import Tls


class Upstreams(settings.Settings):
    """Addresses of the services that it calls: dns:///NAME:PORT or unix:PATH."""

    safety: str = "dns:///safety:50051"
    retriever: str = "dns:///retriever:50051"
    modelserver: str = "dns:///modelserver:50051"
    monitor: str = "dns:///monitor:50051"
    tls: Tls | None = Field(default=None, description="The client's certificate; None only for unix sockets.")
    patience_seconds: float = Field(
        default=30.0, ge=0, description="How long calls wait for a service that restarts; 0: they fail at once."
    )
    modelserver_patience_seconds: float = Field(
        default=5.0,
        ge=0,
        description="As patience_seconds, for modelserver: there may be a fallback model.",
    )


class Timeouts(settings.Settings):
    """The timeouts of inner calls; the request's own deadline shortens them."""

    check_seconds: float = Field(default=5.0, gt=0, description="One text through safety.")
    search_seconds: float = Field(default=5.0, gt=0, description="One search.")
    record_seconds: float = Field(default=10.0, gt=0, description="One batch to monitor.")
    embed_seconds: float = Field(default=60.0, gt=0, description="One call for vectors.")


class Outbox(settings.Settings):
    """The queue of interactions for monitor."""

    max_records: int = Field(default=200_000, ge=1, description="With a full queue new requests are refused.")
    max_bytes: int = Field(default=1 << 30, ge=1, description="As max_records, by size.")
    batch_records: int = Field(default=200, ge=1, le=500, description="Records of one call to monitor.")
    gather_seconds: float = Field(default=0.05, ge=0, le=10, description="How long records are collected for a batch.")
    max_backoff_seconds: float = Field(default=5.0, gt=0, description="Longest pause while monitor is down.")
    flush_seconds: float = Field(default=5.0, ge=0, description="How long a stopping process continues to send.")
    max_poison_records: int = Field(default=10_000, ge=1, description="Refused records that are kept for inspection.")


class Cache(settings.Settings):
    """The cache of answers; routes enable it and set its age."""

    memory_bytes: int = Field(default=64 << 20, ge=0, description="Size of the tier in memory.")
    disk_entries: int = Field(default=100_000, ge=0, description="Entries of the tier on disk.")
    max_entry_bytes: int = Field(default=256 << 10, ge=1, description="A larger answer is not stored.")
    upkeep_seconds: float = Field(default=10.0, gt=0, description="How often hits are written and old entries removed.")


class Conversations(settings.Settings):
    """Stored conversations."""

    max_messages: int = Field(default=1000, ge=2, description="Messages of one; beyond, the oldest are deleted.")
    max_age_seconds: float = Field(default=30 * 86400.0, gt=0, description="An older message is deleted.")
    max_per_principal: int = Field(
        default=1000, ge=1, description="Conversations of one caller; beyond, the least recently used are deleted."
    )
    upkeep_seconds: float = Field(default=300.0, gt=0, description="How often old messages are deleted.")
    retry_seconds: float = Field(
        default=10.0, ge=0, description="How long an answer waits for an unreachable database to store its turn."
    )


class Store(database.Store):
    """Connections and timeouts of the database of conversations; requests wait for it."""

    statement_timeout_seconds: float = Field(default=5.0, gt=0, description="For one statement on PostgreSQL.")


class Settings(settings.Common):
    """The orchestrator's settings."""

    data_dir: Path = Field(default=Path("data"), description="Folder for outbox, cache and, on SQLite, conversations.")
    database_url: DatabaseUrl | None = Field(
        default=None,
        description="Conversations: postgresql://USER:PASSWORD@HOST:PORT/DATABASE[?ssl=verify-full]; None: SQLite.",
    )
    space: settings.Space = settings.Space()
    store: Store = Store()
    upstreams: Upstreams = Upstreams()
    timeouts: Timeouts = Timeouts()
    outbox: Outbox = Outbox()
    cache: Cache = Cache()
    conversations: Conversations = Conversations()
