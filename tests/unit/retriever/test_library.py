"""The library's file: durability of a commit."""

from __future__ import annotations

from pathlib import Path

import pytest

from genaifactory_retriever.library import Library

pytestmark = pytest.mark.allow_blocking


def test_a_commit_is_flushed_to_the_disk(tmp_path: Path) -> None:
    library = Library(tmp_path / "library.db")
    with library._transaction() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    library.close()
