"""The log of a platform on a full disk: lines are left out, with one warning, until there is room."""

from __future__ import annotations

import errno
import io
import logging
from pathlib import Path

import pytest
from rich.console import Console

from genaifactory_local import logs


class FullStream(io.StringIO):
    """A file on a full disk."""

    def write(self, text: str, /) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_without_room_on_the_disk_warns_once_and_is_written_again_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = io.StringIO()
    path = tmp_path / "log.jsonl"
    file = logs._File(path, Console(file=printed, width=1000))

    def log(message: str) -> None:
        file.handle(logging.LogRecord("any", logging.INFO, "", 0, message, None, None))

    log("before")
    with monkeypatch.context() as full:
        full.setattr(file, "stream", FullStream())
        for number in range(3):
            log(f"lost {number}")
    log("after")
    log("later")
    file.close()
    assert path.read_text().split() == ["before", "after", "later"]
    assert printed.getvalue().splitlines() == [
        f"warning: {path} cannot be written (No space left on device); the platform goes on without it",
        f"warning: {path} is written again; 3 lines were left out",
    ]
