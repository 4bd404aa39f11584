"""How ingestion looks in a terminal: a bar while it runs, then what became of the documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from genaifactory_local.documents import Summary

_FAILURES_SHOWN = 20


@contextmanager
def bar(console: Console, total: int) -> Iterator[Callable[[Summary], None]]:
    """Shows a bar of `total` documents inside the block; yields what moves it."""
    columns = (TextColumn("Reading documents"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total)
        yield lambda summary: progress.update(task, completed=summary.done)


def print_summary(console: Console, summary: Summary, skipped: int) -> None:
    """Says what became of the documents, and why some were refused."""
    counts = (
        (summary.added, "new"),
        (summary.replaced, "changed"),
        (summary.unchanged, "unchanged"),
        (summary.duplicates, "with the content of another"),
        (len(summary.failures), "refused"),
    )
    parts = ", ".join(f"{count} {what}" for count, what in counts if count) or "none"
    line = f"Documents: {parts}; {summary.passages} passages."
    if skipped:
        line += f" Skipped {skipped} hidden or unsupported files."
    console.print(line, soft_wrap=True, highlight=False)
    for failure in summary.failures[:_FAILURES_SHOWN]:
        console.print(f"  [red]refused[/red] {escape(failure.document_id)}: {escape(failure.message)}", soft_wrap=True)
    if len(summary.failures) > _FAILURES_SHOWN:
        console.print(f"  and {len(summary.failures) - _FAILURES_SHOWN} more", highlight=False)
