"""Logs of a platform on this machine: all to a file as JSON lines, warnings to the terminal too."""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from genaifactory_common.telemetry import JsonFormatter

_FILE_BYTES = 20 * 1024 * 1024
_FILES_KEPT = 3
_QUEUED_LINES = 10_000
_VERBOSE_LOGGERS = ("alembic", "uvicorn.error")


@contextmanager
def to_file(path: Path, console: Console, level: str) -> Iterator[None]:
    """Logs to `path` and warnings to `console` inside the block. Raises OSError when the file cannot be written."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = _File(path, console)
    # Formatted in the task that logs, for its trace id, and written by another thread.
    lines = QueueHandler(queue.Queue(_QUEUED_LINES))
    lines.setFormatter(JsonFormatter())
    listener = QueueListener(lines.queue, file)
    for name in _VERBOSE_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.basicConfig(level=level, handlers=[lines, _Warnings(console)], force=True)
    listener.start()
    try:
        yield
    finally:
        listener.stop()
        with contextlib.suppress(OSError):  # the last lines find no room on the disk
            file.close()
        logging.basicConfig(level=level, handlers=[logging.NullHandler()], force=True)


class _File(RotatingFileHandler):
    """Leaves out lines for which the disk has no room: the platform goes on without its log."""

    def __init__(self, path: Path, console: Console) -> None:
        super().__init__(path, maxBytes=_FILE_BYTES, backupCount=_FILES_KEPT, encoding="utf-8")
        self._console = console
        self._left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        left_out = self._left_out
        super().emit(record)
        if left_out and self._left_out == left_out:
            self._left_out = 0
            self._warn(f"{self.baseFilename} is written again; {left_out} lines were left out")

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        if self._left_out == 0:
            self._warn(f"{self.baseFilename} cannot be written ({error.strerror}); the platform goes on without it")
        self._left_out += 1

    def _warn(self, message: str) -> None:
        self._console.print(f"[yellow]warning: {escape(message)}[/yellow]", soft_wrap=True, highlight=False)


class _Warnings(logging.Handler):
    """Prints warnings as one line on the terminal; tracebacks are in the file."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        message = escape(f"{record.levelname.lower()}: {record.getMessage()}")
        self._console.print(f"[yellow]{message}[/yellow]", soft_wrap=True, highlight=False)
