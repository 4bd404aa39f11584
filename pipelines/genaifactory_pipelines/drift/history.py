"""Verdicts on earlier windows: one odd window, a holiday or an outage, is no reason to act."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from genaifactory_common import files
from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines.datasets.contract import first_problem
from genaifactory_pipelines.values import Values

_MOST_ENTRIES = 1_000


class Entry(Values):
    """A line of the file: the verdict on one window."""

    window: str
    """The digest of its records: a window that is judged again replaces its entry."""
    last: datetime
    """When its last question was asked."""
    drifted: bool
    by: tuple[str, ...]


def read(path: Path) -> list[Entry]:
    """The entries, the oldest window first; none without a file. Blocks. Raises InvalidArgument."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        if path.parent.is_dir():
            return []
        raise InvalidArgument(f"{path.parent} is no folder: make it, or give another file.", field="history") from None
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}.", field="history") from None
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(Entry.model_validate_json(line))
        except ValidationError as error:
            raise InvalidArgument(
                f"{path.name}:{number}: {first_problem(error)}; it must be a line that a drift check wrote.",
                field="history",
            ) from None
    return entries


def add(path: Path, entry: Entry) -> list[Entry]:
    """Adds a verdict to the file; returns those on windows up to its own, which is the last. Blocks.

    The oldest of more than 1,000 entries are dropped. Raises InvalidArgument and OSError.
    """
    others = [each for each in read(path) if each.window != entry.window]
    entries = sorted([*others, entry], key=lambda each: (each.last, each.window))[-_MOST_ENTRIES:]
    files.write(path, b"".join(each.model_dump_json().encode() + b"\n" for each in entries))
    return [each for each in entries if (each.last, each.window) <= (entry.last, entry.window)]


def confirmed(entries: list[Entry], *, needed: int, of: int) -> bool:
    """Whether `needed` of the last `of` windows have drifted."""
    return sum(each.drifted for each in entries[-of:]) >= needed
