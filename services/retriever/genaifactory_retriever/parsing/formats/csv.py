"""CSV and TSV to blocks, one per row."""

from __future__ import annotations

import csv
import io
import itertools
from collections import Counter
from collections.abc import Iterable

from genaifactory_common import decoding
from genaifactory_retriever.documents import Block
from genaifactory_retriever.parsing import tables

_SEPARATORS = ",;\t|"
_ROWS_LOOKED_AT = 50


def parse(data: bytes, separator: str | None, max_characters: int) -> tuple[str, Iterable[Block]]:
    """No title, and blocks. separator: None: the one that splits the first rows most evenly. Raises csv.Error."""
    text = decoding.decode(data)
    csv.field_size_limit(max_characters)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator or _separator(text))
    return "", tables.blocks(rows, tables.Size("CSV"))


def _separator(text: str) -> str:
    def evenness(separator: str) -> tuple[int, int]:
        rows = itertools.islice(csv.reader(io.StringIO(text, newline=""), delimiter=separator), _ROWS_LOOKED_AT)
        widths = Counter(len(row) for row in rows if len(row) > 1)
        return max(((count, width) for width, count in widths.items()), default=(0, 0))

    return max(_SEPARATORS, key=evenness)
