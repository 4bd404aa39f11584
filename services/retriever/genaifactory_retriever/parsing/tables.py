"""Converts table rows to self-contained blocks: every value follows the name of its column."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from genaifactory_retriever import bounds
from genaifactory_retriever.documents import Block

_ROWS_LOOKED_AT = 20
_MAX_NAME_CHARACTERS = 100
_BETWEEN = " | "
# Not a bar: a model reads the first of several rows with bars as column names.
_BETWEEN_NAMED = "; "


class Size:
    """Counts the rows and cells of all tables of one document. kind: for messages."""

    def __init__(self, kind: str) -> None:
        self._rows = bounds.Count(kind, "rows", bounds.ROWS)
        self._cells = bounds.Count(kind, "cells", bounds.CELLS)

    def add(self, row: Sequence[str]) -> None:
        """Raises TooLarge beyond a bound."""
        self._rows.add()
        self._cells.add(len(row))


def blocks(rows: Iterable[Sequence[str]], size: Size) -> Iterator[Block]:
    """A block for each row that is not empty. Raises TooLarge.

    The first row that fills more than half of the columns names them, if it holds distinct names. Rows above it (a
    title, a date) are left without names, and so are all rows of a table without such a row.
    """
    filled = _filled(rows, size)
    first = list(itertools.islice(filled, _ROWS_LOOKED_AT))
    at = _header(first)
    for cells in first[: at or 0]:
        yield _plain(cells)
    if at is None:
        names: list[str] = []
        body = first
    else:
        names, body = first[at], first[at + 1 :]
    if at is not None and not body:
        yield _plain(names)
    for cells in itertools.chain(body, filled):
        yield _named(names, cells) if names else _plain(cells)


def _filled(rows: Iterable[Sequence[str]], size: Size) -> Iterator[list[str]]:
    for row in rows:
        size.add(row)
        if any(cells := [" ".join(cell.split()) for cell in row]):
            yield cells


def _header(rows: Sequence[Sequence[str]]) -> int | None:
    """Index of the row that names the columns; None: there is none."""
    width = max((sum(map(bool, row)) for row in rows), default=0)
    if width < 2:  # a list, not a table
        return None
    at = next(i for i, row in enumerate(rows) if 2 * sum(map(bool, row)) > width)
    names = [name for name in rows[at] if name]
    return at if len(set(names)) == len(names) and all(map(_is_name, names)) else None


def _is_name(cell: str) -> bool:
    return any(map(str.isalpha, cell)) and len(cell) <= _MAX_NAME_CHARACTERS


def _plain(cells: Sequence[str]) -> Block:
    return Block(_BETWEEN.join(cell for cell in cells if cell))


def _named(names: Sequence[str], cells: Sequence[str]) -> Block:
    pairs = itertools.zip_longest(names[: len(cells)], cells, fillvalue="")
    return Block(_BETWEEN_NAMED.join(f"{name}: {cell}" if name else cell for name, cell in pairs if cell))
