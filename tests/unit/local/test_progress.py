"""What ingestion prints while it runs and when it is done."""

from __future__ import annotations

import io
import threading
from contextlib import AbstractContextManager, nullcontext

import pytest
from rich.console import Console

from genaifactory_local import progress
from genaifactory_pipelines.sources.sending import Summary


class _Output(io.StringIO):
    """Sets `there` when it contains the wanted text."""

    def __init__(self, wanted: str) -> None:
        super().__init__()
        self._wanted = wanted
        self.there = threading.Event()

    def write(self, text: str) -> int:
        written = super().write(text)
        if self._wanted in self.getvalue():
            self.there.set()
        return written


def test_without_a_terminal_lines_report_the_progress() -> None:
    output = _Output("Reading documents: 3 of 7 after ")
    with progress.bar(Console(file=output), 7, line_interval_seconds=0.01) as report:
        report(Summary(added=2, unchanged=1))
        assert output.there.wait(30)
    lines = output.getvalue().splitlines()
    assert all(line.startswith("Reading documents: ") for line in lines)
    assert not [thread for thread in threading.enumerate() if thread.name == "progress-lines"]


def test_without_a_terminal_a_short_ingestion_prints_no_line() -> None:
    output = io.StringIO()
    with progress.bar(Console(file=output), 7) as report:
        report(Summary(added=7))
    assert output.getvalue() == ""


@pytest.mark.parametrize("ends", [nullcontext(), pytest.raises(RuntimeError)], ids=["done", "failed"])
def test_in_a_terminal_it_is_a_bar(ends: AbstractContextManager[object]) -> None:
    output = io.StringIO()
    with ends, progress.bar(Console(file=output, force_terminal=True, width=100), 7) as report:
        report(Summary(added=3))
        if not isinstance(ends, nullcontext):
            raise RuntimeError
    assert "3/7" in output.getvalue()


def test_files_whose_encoding_was_guessed_are_named() -> None:
    guessed = {f"{i}.txt": "windows-1258" for i in range(5)} | {"a.md": "windows-1252"}
    for verbose, vietnamese in ((False, "0.txt, 1.txt, 2.txt and 2 more (-v names all)"), (True, "3.txt, 4.txt")):
        output = io.StringIO()
        progress.print_summary(Console(file=output), Summary(added=6, guessed=guessed), [], verbose=verbose)
        _, first, second = output.getvalue().splitlines()
        assert first.startswith("  5 not in UTF-8, read as windows-1258: 0.txt")
        assert first.endswith(vietnamese)
        assert second == "  1 not in UTF-8, read as windows-1252: a.md"
