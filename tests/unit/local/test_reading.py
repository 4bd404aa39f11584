"""Which documents earlier runs took is known again."""

from __future__ import annotations

import logging
import stat
from pathlib import Path

import pytest

from genaifactory_local import reading
from genaifactory_local.state import State


def test_what_was_taken_is_kept_by_tenant_and_knowledge_base(tmp_path: Path) -> None:
    state = State(tmp_path)
    assert reading.taken(state, "dev", "documents") == frozenset()
    reading.record(state, "dev", "documents", ["handbook/a.md", "handbook/nghỉ phép.md"])
    reading.record(state, "dev", "contracts", ["b.md"])
    reading.record(state, "acme", "documents", ["c.md"])
    reading.record(state, "dev", "contracts", [])
    assert reading.taken(state, "dev", "documents") == {"handbook/a.md", "handbook/nghỉ phép.md"}
    assert reading.taken(state, "dev", "contracts") == frozenset()
    assert reading.taken(state, "acme", "documents") == {"c.md"}
    assert stat.S_IMODE(state.documents_file.stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"dev": 5}', '{"dev": {"documents": 5}}', "\udcff"])
def test_a_damaged_list_removes_nothing_and_is_told(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = State(tmp_path)
    state.documents_file.write_text(text, encoding="utf-8", errors="surrogateescape")
    with caplog.at_level(logging.WARNING):
        assert reading.taken(state, "dev", "documents") == frozenset()
    assert "documents.json cannot be understood" in caplog.text
    reading.record(state, "dev", "documents", ["a.md"])
    assert reading.taken(state, "dev", "documents") == {"a.md"}
