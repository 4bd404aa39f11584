"""What ingestion prints: a bar in a terminal, lines elsewhere, then a summary."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from genaifactory_pipelines.sources.protocol import Skipped
from genaifactory_pipelines.sources.sending import Summary

_FAILURES_SHOWN = 20
_NAMES_SHOWN = 3
_LINE_INTERVAL_SECONDS = 10.0


@contextmanager
def bar(
    console: Console, total: int, *, line_interval_seconds: float = _LINE_INTERVAL_SECONDS
) -> Iterator[Callable[[Summary], None]]:
    """Shows how many of `total` documents are done inside the block; yields the function that updates it.

    line_interval_seconds: between lines where there is no terminal (CI, a container's log).
    """
    if not console.is_terminal:
        with _lines(console, total, line_interval_seconds) as report:
            yield report
        return
    columns = (TextColumn("Reading documents"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total)
        yield lambda summary: progress.update(task, completed=summary.done)


def print_summary(console: Console, summary: Summary, skipped: Sequence[Skipped], *, verbose: bool = False) -> None:
    """Prints documents by outcome, why some were refused, and what was skipped.

    verbose: names every file that was skipped or guessed, not only the first of each kind.
    """
    counts = (
        (summary.added, "new"),
        (summary.replaced, "changed"),
        (summary.removed, "removed"),
        (summary.unchanged, "unchanged"),
        (summary.duplicates, "duplicates"),
        (len(summary.failures), "refused"),
    )
    parts = ", ".join(f"{count} {what}" for count, what in counts if count) or "none"
    console.print(f"Documents: {parts}; {summary.passages} passages.", soft_wrap=True, highlight=False)
    for failure in summary.failures[:_FAILURES_SHOWN]:
        console.print(f"  [red]refused[/red] {escape(failure.document_id)}: {escape(failure.message)}", soft_wrap=True)
    if len(summary.failures) > _FAILURES_SHOWN:
        console.print(f"  and {len(summary.failures) - _FAILURES_SHOWN} more", highlight=False)
    _print_guessed(console, summary, verbose)
    _print_skipped(console, skipped, verbose)


def as_json(summary: Summary, skipped: Sequence[Skipped]) -> dict[str, Any]:
    """The outcome for programs."""
    return {
        "added": summary.added,
        "replaced": summary.replaced,
        "unchanged": summary.unchanged,
        "duplicates": summary.duplicates,
        "passages": summary.passages,
        "skipped": [{"name": each.name, "reason": each.why} for each in skipped],
        "guessed_encodings": summary.guessed,
        "refused": [{"document_id": f.document_id, "message": f.message} for f in summary.failures],
    }


def _print_guessed(console: Console, summary: Summary, verbose: bool) -> None:
    by_encoding: dict[str, list[str]] = {}
    for document_id, encoding in summary.guessed.items():
        by_encoding.setdefault(encoding, []).append(document_id)
    for encoding, those in by_encoding.items():
        _print_names(console, f"{len(those)} not in UTF-8, read as {encoding}", those, verbose)


def _print_skipped(console: Console, skipped: Sequence[Skipped], verbose: bool) -> None:
    by_reason: dict[str, list[Skipped]] = {}
    for each in skipped:
        by_reason.setdefault(each.why, []).append(each)
    for why, those in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        _print_names(console, f"skipped {len(those)}, {why}", [each.name for each in those], verbose)


def _print_names(console: Console, what: str, names: Sequence[str], verbose: bool) -> None:
    shown = names if verbose else names[:_NAMES_SHOWN]
    more = f" and {len(names) - len(shown)} more (-v names all)" if len(names) > len(shown) else ""
    console.print(escape(f"  {what}: {', '.join(shown)}{more}"), soft_wrap=True, highlight=False)


@contextmanager
def _lines(console: Console, total: int, interval_seconds: float) -> Iterator[Callable[[Summary], None]]:
    done = 0
    started = time.monotonic()
    finished = threading.Event()

    def report(summary: Summary) -> None:
        nonlocal done
        done = summary.done

    def write() -> None:
        # By time, not by document: one large document can take minutes.
        while not finished.wait(interval_seconds):
            seconds = time.monotonic() - started
            console.print(
                f"Reading documents: {done} of {total} after {seconds:.0f} s", soft_wrap=True, highlight=False
            )

    writer = threading.Thread(target=write, name="progress-lines", daemon=True)
    writer.start()
    try:
        yield report
    finally:
        finished.set()
        writer.join()
