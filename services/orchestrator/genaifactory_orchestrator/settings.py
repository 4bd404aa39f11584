"""Where the orchestrator's neighbours and its files are, and how much it keeps."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from genaifactory_common import database, settings
from genaifactory_common.database import DatabaseUrl
from genaifactory_common.settings import Tls


class Upstreams(settings.Settings):
    """Addresses of the services to the right: dns:///NAME:PORT or unix:PATH."""

    safety: str = "dns:///safety:50051"
    retriever: str = "dns:///retriever:50051"
    modelserver: str = "dns:///modelserver:50051"
    monitor: str = "dns:///monitor:50051"
    tls: Tls | None = Field(default=None, description="What to show them; None only for unix sockets.")
    patience_seconds: float = Field(
        default=30.0, ge=0, description="How long calls wait for one that restarts; 0: they fail at once."
    )
    modelserver_patience_seconds: float = Field(
        default=5.0,
        ge=0,
        description="As patience_seconds, for modelserver: there may be another model to fall back on.",
    )


class Timeouts(settings.Settings):
    """The longest that each inner call may take; the request's own deadline shortens it."""

    check_seconds: float = Field(default=5.0, gt=0, description="One text through safety.")
    search_seconds: float = Field(default=5.0, gt=0, description="One search.")
    record_seconds: float = Field(default=10.0, gt=0, description="One batch to monitor.")
    embed_seconds: float = Field(default=60.0, gt=0, description="One call for vectors.")


class Outbox(settings.Settings):
    """The queue of interactions for monitor."""

    max_records: int = Field(default=200_000, ge=1, description="A full queue refuses new requests.")
    max_bytes: int = Field(default=1 << 30, ge=1, description="As max_records, by size.")
    batch_records: int = Field(default=200, ge=1, le=500, description="Records of one call to monitor.")
    gather_seconds: float = Field(default=0.05, ge=0, le=10, description="How long a batch gathers before it leaves.")
    max_backoff_seconds: float = Field(default=5.0, gt=0, description="Longest pause while monitor is down.")
    flush_seconds: float = Field(default=5.0, ge=0, description="How long a stopping process goes on sending.")
    max_poison_records: int = Field(default=10_000, ge=1, description="Refused records kept for a person to look at.")


class Cache(settings.Settings):
    """The cache of answers; routes turn it on and set its age."""

    memory_bytes: int = Field(default=64 << 20, ge=0, description="Size of the tier in memory.")
    disk_entries: int = Field(default=100_000, ge=0, description="Entries of the tier on disk.")
    max_entry_bytes: int = Field(default=256 << 10, ge=1, description="A longer answer is not kept.")
    upkeep_seconds: float = Field(default=10.0, gt=0, description="How often hits are written and old entries removed.")


class Conversations(settings.Settings):
    """Stored conversations."""

    max_messages: int = Field(default=1000, ge=2, description="Messages kept of one; the oldest go first.")
    max_age_seconds: float = Field(default=30 * 86400.0, gt=0, description="A message older than this is forgotten.")
    max_per_principal: int = Field(default=1000, ge=1, description="Conversations of one caller; the idlest go first.")
    upkeep_seconds: float = Field(default=300.0, gt=0, description="How often what is too old is removed.")
    retry_seconds: float = Field(
        default=10.0, ge=0, description="How long a given answer waits for a database that is away to store its turn."
    )


class Store(database.Store):
    """How the database of conversations is used; requests wait for it."""

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
