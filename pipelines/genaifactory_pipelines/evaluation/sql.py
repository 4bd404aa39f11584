"""Runs a SELECT that a model wrote, on tables that a golden item brings, where it can read them and do nothing else.

Each query has a database of its own in memory. SQLite's authorizer permits reads and functions, the virtual machine a
number of steps, and limits bound each value: https://sqlite.org/security.html.
"""

from __future__ import annotations

import re
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing

from genaifactory_common.errors import InvalidArgument

MAX_ROWS = 10_000
MAX_BYTES = 16 << 20
"""Of memory, for all values of a result."""
_MAX_STEPS = 1_000_000
"""Of SQLite's virtual machine, for a query or for the tables."""
_MAX_SECONDS = 2.0
"""Of CPU, so that the verdict does not depend on what else runs. A step may take long: the search for a long text in
another."""
_STEPS_AT_ONCE = 100
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 10_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 100,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 100_000,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 100,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 100,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 20,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
}
_READS = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})
_NEVER = frozenset(
    {
        sqlite3.SQLITE_ATTACH,
        sqlite3.SQLITE_DETACH,
        sqlite3.SQLITE_PRAGMA,
        sqlite3.SQLITE_CREATE_VTABLE,
        sqlite3.SQLITE_DROP_VTABLE,
    }
)
_FUNCTIONS = frozenset(
    """
    abs avg ceil ceiling coalesce concat concat_ws count cume_dist date datetime dense_rank exp first_value floor glob
    group_concat ifnull iif instr julianday lag last_value lead length like ln log lower ltrim max min mod nth_value
    ntile nullif percent_rank pow power rank replace round row_number rtrim sign sqrt strftime string_agg substr
    substring sum time timediff total trim typeof unixepoch upper
    """.split()  # noqa: SIM905  # a list of words reads as a text
)
"""Others reach beyond the tables (load_extension), or take seconds for a step (printf)."""
_FENCED = re.compile(r"```[a-z]*\n(.*?)```", re.DOTALL | re.IGNORECASE)

Value = str | int | float | bytes | None


class QueryError(ValueError):
    """A query or the tables cannot be run; the message is SQLite's, or names the bound."""


def written(answer: str) -> str:
    """The query in a model's answer: its first block of code, or all of it."""
    found = _FENCED.search(answer)
    return (found[1] if found is not None else answer).strip()


def expected(item: str, tables: str, text: str) -> Counter[tuple[Value, ...]]:
    """`rows` of the right answer of a golden item. Blocks. Raises InvalidArgument."""
    try:
        return rows(tables, written(text))
    except QueryError as error:
        raise InvalidArgument(
            f"The output of the golden item '{item}' must be a SELECT that can be run on its tables: {error}.",
            field="golden",
        ) from None


def rows(tables: str, query: str) -> Counter[tuple[Value, ...]]:
    """How often each row is in the result; decimals to twelve significant digits. Blocks.

    tables: statements that create and fill them. Raises QueryError, also for a query that does anything but read, and
    beyond a million steps, two seconds of CPU, 100 columns, 10,000 rows, 10,000 bytes in a value, or 16 MiB in all.
    """
    try:
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
            for limit, value in _LIMITS.items():
                database.setlimit(limit, value)
            _bound(database)
            database.set_authorizer(_permit_all_but_never)
            database.executescript(tables)
            _bound(database)
            database.set_authorizer(_permit_reads)
            cursor = database.execute(query)
            if cursor.description is None:
                raise QueryError("it is no SELECT")
            return _counted(cursor)
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        raise QueryError(str(error)) from None


def _counted(found: Iterable[tuple[Value, ...]]) -> Counter[tuple[Value, ...]]:
    """Row by row, so that no more is in memory than what is allowed."""
    counted: Counter[tuple[Value, ...]] = Counter()
    size = 0
    for number, row in enumerate(found, start=1):
        size += sum(map(sys.getsizeof, row))
        if number > MAX_ROWS:
            raise QueryError(f"more than {MAX_ROWS:,} rows")
        if size > MAX_BYTES:
            raise QueryError(f"more than {MAX_BYTES >> 20} MiB")
        counted[tuple(map(_rounded, row))] += 1
    return counted


def _bound(database: sqlite3.Connection) -> None:
    left, until = _MAX_STEPS // _STEPS_AT_ONCE, time.thread_time() + _MAX_SECONDS

    def count() -> bool:
        nonlocal left
        left -= 1
        return left < 0 or time.thread_time() > until

    database.set_progress_handler(count, _STEPS_AT_ONCE)


def _permit_all_but_never(action: int, *_: object) -> int:
    return sqlite3.SQLITE_DENY if action in _NEVER else sqlite3.SQLITE_OK


def _permit_reads(action: int, _: object, name: str | None, *__: object) -> int:
    if action not in _READS or (action == sqlite3.SQLITE_FUNCTION and (name or "").casefold() not in _FUNCTIONS):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _rounded(value: Value) -> Value:
    return float(f"{value:.12g}") if isinstance(value, float) else value
