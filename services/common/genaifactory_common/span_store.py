"""A SQLite file with the spans of recent requests where no collector is set, and the search for a request's spans.

Each service writes from its exporter's own thread, so that no event loop waits for the disk; several services, also of
several processes, share one file. It is bounded by age, by traces of each tenant, by spans of each trace and by bytes;
the oldest are deleted, and no tenant's spans displace another's.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import StatusCode

from genaifactory_common import sqlite_files
from genaifactory_common.file_locks import file_lock
from genaifactory_common.sqlite_files import Pragmas

CALLER_TRACE = "genaifactory.caller.trace_id"
"""The attribute of a request's first span that names the trace of its client: 32 hex digits."""

logger = logging.getLogger(__name__)

_BUSY_SECONDS = 5.0
_MAX_TEXT = 256
_SPANS_BETWEEN_SWEEPS = 500
_TRACES_PER_STEP = 50
_FAILURE_LOG_SECONDS = 60.0

# `tenant` is empty until a span that names it arrives: children end, and are written, before their parents.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS traces (
  trace_id TEXT PRIMARY KEY, tenant TEXT NOT NULL, start_ns INTEGER NOT NULL, bytes INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS ix_traces_tenant ON traces (tenant, start_ns);
CREATE INDEX IF NOT EXISTS ix_traces_start ON traces (start_ns);
CREATE TABLE IF NOT EXISTS spans (
  trace_id TEXT NOT NULL, span_id TEXT NOT NULL, parent_id TEXT NOT NULL, service TEXT NOT NULL, name TEXT NOT NULL,
  start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL, failed INTEGER NOT NULL, request_id TEXT NOT NULL,
  attributes TEXT NOT NULL, PRIMARY KEY (trace_id, span_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS ix_spans_request ON spans (request_id, start_ns) WHERE request_id <> '';
CREATE INDEX IF NOT EXISTS ix_spans_answers ON spans (start_ns) WHERE request_id <> '' AND service = 'orchestrator';
"""


@dataclass(frozen=True)
class Bounds:
    """Bounds of the file."""

    age_seconds: float = 7 * 86_400.0
    traces_per_tenant: int = 2_000
    """Requests without a tenant count as one tenant's."""
    spans_per_trace: int = 1_000
    """The number of calls of one request is not bounded."""
    bytes: int = 64 * 1024 * 1024
    """Of all together; beyond, those of the tenant with most are deleted."""


DEFAULT_BOUNDS = Bounds()


@dataclass(frozen=True)
class Span:
    """A finished span."""

    trace_id: str
    """32 hex digits."""
    span_id: str
    parent_id: str
    """Empty for the first span of a trace."""
    service: str
    name: str
    start_ns: int
    """Since 1970."""
    end_ns: int
    failed: bool
    request_id: str
    attributes: Mapping[str, Any] = field(default_factory=dict)


class Exporter(SpanExporter):
    """Writes one service's spans to the file. Spans that cannot be written are dropped, and logged once a minute."""

    def __init__(self, path: Path, bounds: Bounds = DEFAULT_BOUNDS) -> None:
        self._path = path
        self._bounds = bounds
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._unswept = _SPANS_BETWEEN_SWEEPS  # the first write sweeps what an earlier process left
        self._logged_at = -_FAILURE_LOG_SECONDS

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Called by one thread of OpenTelemetry."""
        with self._lock:
            try:
                self._write([_kept(span) for span in spans])
            except (sqlite3.Error, OSError) as error:
                self._dropped(error)
                return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Closes the file."""
        with self._lock:
            self._close()

    def _write(self, spans: Sequence[Span]) -> None:
        connection = self._open()
        self._unswept += len(spans)
        with sqlite_files.transaction(connection):
            _insert(connection, spans)
            if self._unswept >= _SPANS_BETWEEN_SWEEPS:
                _sweep(connection, self._bounds, time.time_ns())
                self._unswept = 0

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and not self._is_ours():
            self._close()  # somebody has removed the file, or another service has replaced a damaged one
        if self._connection is None:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._alone():
                if not self._path.exists():
                    sqlite_files.create(self._path, _SCHEMA)
                self._inode = self._path.stat().st_ino
            self._connection = sqlite_files.connect(self._path, Pragmas("NORMAL"), busy_seconds=_BUSY_SECONDS)
            # The former version created file and tables one after the other, and may have been killed between.
            self._connection.executescript(_SCHEMA)
        return self._connection

    def _dropped(self, error: Exception) -> None:
        self._close()
        if sqlite_files.is_damage(error):
            with contextlib.suppress(OSError), self._alone():
                if self._is_ours():  # the next request's spans are worth more than its content
                    sqlite_files.remove(self._path)
        if time.monotonic() - self._logged_at >= _FAILURE_LOG_SECONDS:
            self._logged_at = time.monotonic()
            logger.warning("spans cannot be kept in %s and are dropped: %s", self._path, error)

    def _alone(self) -> AbstractContextManager[object]:
        """Services start together, and must neither create the file twice nor delete another's new one."""
        lock = file_lock(self._path.with_name(f"{self._path.name}.lock"), mode=0o600)
        return lock.acquire(timeout=_BUSY_SECONDS)

    def _is_ours(self) -> bool:
        try:
            return self._path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def _close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


class Reader:
    """Finds the spans of a request in a file that services may be writing."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def last_request(self) -> str | None:
        """Id of the last request for an answer or vectors, without other requests of the command line; or None."""
        row = self._connection.execute(
            "SELECT request_id FROM spans WHERE request_id <> '' AND service = 'orchestrator' "
            "AND (name LIKE '%Answer' OR name LIKE '%Embed') ORDER BY start_ns DESC LIMIT 1"
        ).fetchone()
        return None if row is None else str(row[0])

    def of_request(self, request_id: str) -> list[Span]:
        """The spans of one request, without others of its trace, by their start; empty when there are none."""
        first = self._connection.execute(
            "SELECT trace_id, span_id FROM spans WHERE request_id = ? AND request_id <> '' ORDER BY start_ns LIMIT 1",
            (request_id,),
        ).fetchone()
        if first is None:
            return []
        rows = self._connection.execute(
            "SELECT trace_id, span_id, parent_id, service, name, start_ns, end_ns, failed, request_id, attributes "
            "FROM spans WHERE trace_id = ? ORDER BY start_ns",
            (first[0],),
        )
        return _descendants([_found(row) for row in rows], str(first[1]))


@contextmanager
def reading(path: Path) -> Iterator[Reader | None]:
    """A reader of the file; None when there is no file. Raises sqlite3.Error when it cannot be read."""
    if not path.exists():
        yield None
        return
    with contextlib.closing(
        sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_SECONDS)
    ) as db:
        yield Reader(db)


def _found(row: Any) -> Span:
    trace_id, span_id, parent_id, service, name, start_ns, end_ns, failed, request_id, attributes = row
    known = json.loads(attributes)
    return Span(trace_id, span_id, parent_id, service, name, start_ns, end_ns, bool(failed), request_id, known)


def _descendants(spans: Sequence[Span], span_id: str) -> list[Span]:
    """The descendants of the span's topmost ancestor among them, itself included."""
    by_id = {span.span_id: span for span in spans}
    top, climbed = by_id[span_id], {span_id}
    while (parent := by_id.get(top.parent_id)) is not None and parent.span_id not in climbed:
        climbed.add(parent.span_id)
        top = parent
    wanted = {top.span_id}
    size = 0
    while len(wanted) > size:  # clocks differ between machines: a child may seem to begin before its parent
        size = len(wanted)
        wanted |= {span.span_id for span in spans if span.parent_id in wanted}
    return [span for span in spans if span.span_id in wanted]


def _kept(span: ReadableSpan) -> Span:
    context, parent = span.context, span.parent
    attributes = {key: _short(value) for key, value in (span.attributes or {}).items()}
    if span.links:
        attributes[CALLER_TRACE] = f"{span.links[0].context.trace_id:032x}"
    return Span(
        trace_id=f"{context.trace_id:032x}" if context else "",
        span_id=f"{context.span_id:016x}" if context else "",
        parent_id=f"{parent.span_id:016x}" if parent else "",
        service=str(span.resource.attributes.get("service.name", "")).removeprefix("genaifactory-"),
        name=span.name[:_MAX_TEXT],
        start_ns=span.start_time or 0,
        end_ns=span.end_time or 0,
        failed=span.status.status_code is StatusCode.ERROR,
        request_id=str(attributes.get("genaifactory.request_id", "")),
        attributes=attributes,
    )


def _short(value: Any) -> Any:
    if isinstance(value, str):
        return value[:_MAX_TEXT]
    return [_short(item) for item in value[:_MAX_TEXT]] if isinstance(value, (tuple, list)) else value


def _insert(connection: sqlite3.Connection, spans: Sequence[Span]) -> None:
    rows = [
        (
            span.trace_id,
            span.span_id,
            span.parent_id,
            span.service,
            span.name,
            span.start_ns,
            span.end_ns,
            span.failed,
            span.request_id,
            json.dumps(span.attributes, ensure_ascii=False, default=str),
        )
        for span in spans
    ]
    traces: dict[str, tuple[str, int, int]] = {}
    for span, row in zip(spans, rows, strict=True):
        tenant, start_ns, size = traces.get(span.trace_id, ("", 0, 0))
        traces[span.trace_id] = (
            tenant or str(span.attributes.get("genaifactory.tenant", "")),
            max(start_ns, span.start_ns),
            size + len(row[-1]) + len(span.name) + 200,
        )
    connection.executemany(
        "INSERT INTO traces VALUES (?, ?, ?, ?) ON CONFLICT (trace_id) DO UPDATE SET "
        "bytes = bytes + excluded.bytes, start_ns = max(start_ns, excluded.start_ns), "
        "tenant = CASE tenant WHEN '' THEN excluded.tenant ELSE tenant END",
        [(trace_id, *facts) for trace_id, facts in traces.items()],
    )
    connection.executemany("INSERT OR IGNORE INTO spans VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)


def _sweep(connection: sqlite3.Connection, bounds: Bounds, now_ns: int) -> None:
    oldest_ns = now_ns - int(bounds.age_seconds * 1e9)
    _delete(connection, connection.execute("SELECT trace_id FROM traces WHERE start_ns < ?", (oldest_ns,)))
    for tenant, count in connection.execute("SELECT tenant, COUNT(*) FROM traces GROUP BY tenant").fetchall():
        if count > bounds.traces_per_tenant:
            _delete(connection, _oldest(connection, tenant, count - bounds.traces_per_tenant))
    _shorten(connection, bounds.spans_per_trace)
    while True:
        held = connection.execute("SELECT SUM(bytes), tenant FROM traces GROUP BY tenant").fetchall()
        if sum(size for size, _ in held) <= bounds.bytes:
            return
        _delete(connection, _oldest(connection, max(held)[1], _TRACES_PER_STEP))


def _oldest(connection: sqlite3.Connection, tenant: str, count: int) -> sqlite3.Cursor:
    return connection.execute("SELECT trace_id FROM traces WHERE tenant = ? ORDER BY start_ns LIMIT ?", (tenant, count))


def _delete(connection: sqlite3.Connection, found: sqlite3.Cursor) -> None:
    ids = found.fetchall()
    connection.executemany("DELETE FROM spans WHERE trace_id = ?", ids)
    connection.executemany("DELETE FROM traces WHERE trace_id = ?", ids)


def _shorten(connection: sqlite3.Connection, longest: int) -> None:
    long = connection.execute(
        "SELECT trace_id, COUNT(*) FROM spans GROUP BY trace_id HAVING COUNT(*) > ?", (longest,)
    ).fetchall()
    for trace_id, count in long:
        connection.execute(
            "DELETE FROM spans WHERE trace_id = ? AND span_id IN "
            "(SELECT span_id FROM spans WHERE trace_id = ? ORDER BY start_ns LIMIT ?)",
            (trace_id, trace_id, count - longest),
        )
        connection.execute(
            "UPDATE traces SET bytes = (SELECT SUM(length(attributes) + length(name) + 200) FROM spans "
            "WHERE spans.trace_id = traces.trace_id) WHERE trace_id = ?",
            (trace_id,),
        )
