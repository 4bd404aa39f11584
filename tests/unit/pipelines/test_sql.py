"""SQL that a model wrote is run where it can read the item's tables, for a bounded time, and do nothing else."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest

from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines.datasets.contract import Example
from genaifactory_pipelines.evaluation import golden, sql
from genaifactory_pipelines.evaluation.evaluators.sql_execution import SqlExecution
from genaifactory_pipelines.evaluation.protocol import NO_EVIDENCE, Answer, Item, Setup

TABLES = """
CREATE TABLE store (name TEXT, disks INTEGER, price REAL);
INSERT INTO store VALUES ('a', 2, 1.0), ('b', 4, 2.5), ('c', 4, NULL);
"""
ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT "


def item(query: str) -> Item:
    return Item("q", [], expected=(query,), tables=TABLES)


def _example(query: str) -> Example:
    line = {"id": "q", "input": "Which stores have four disks?", "output": query, "checks": {"tables": TABLES}}
    return Example.model_validate(line)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("SELECT name FROM store WHERE disks = 4", 1),
        ("select name as x from store where disks > 3 order by name desc;", 1),
        ("The query is:\n```sql\nSELECT name FROM store WHERE disks = 4;\n```\nIt lists them.", 1),
        ("SELECT DISTINCT disks FROM store WHERE disks = 4", 0),
        ("SELECT name FROM store", 0),
        ("SELECT name, disks FROM store WHERE disks = 4", 0),
        ("SELECT name FROM shop", 0),
        ("I do not know.", 0),
        ("", 0),
    ],
)
async def test_the_result_counts_and_not_the_words_of_the_query(answer: str, score: float) -> None:
    assert (
        await SqlExecution().score(item("SELECT name FROM store WHERE disks = 4"), Answer(answer), NO_EVIDENCE) == score
    )


async def test_numbers_are_compared_by_value_and_rows_by_how_often_they_are_there() -> None:
    third = item("SELECT sum(disks) / 3.0, max(price) FROM store")
    assert await SqlExecution().score(third, Answer("SELECT avg(disks), 5 / 2.0 FROM store"), NO_EVIDENCE) == 1
    twice = item("SELECT disks FROM store")
    assert await SqlExecution().score(twice, Answer("SELECT DISTINCT disks FROM store"), NO_EVIDENCE) == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("SELECT 1234567", "SELECT 1234567.0", True),
        ("SELECT 1234567", "SELECT 1234568.0", False),
        ("SELECT 1234567.25", "SELECT 1234567.75", False),
        ("SELECT 0.1 + 0.2", "SELECT 0.3", True),
        ("SELECT sum(x) FROM (SELECT 1e6 / 3 x UNION ALL SELECT 2e6 / 3)", "SELECT 1e6", True),
        ("SELECT 1e-300", "SELECT 0.0", False),
    ],
)
def test_numbers_are_the_same_to_twelve_digits(one: str, other: str, same: bool) -> None:
    assert (sql.rows(TABLES, one) == sql.rows(TABLES, other)) == same


def test_an_item_without_tables_is_no_sql() -> None:
    assert SqlExecution().excludes(Item("q", [], ("x",)), Setup()) == "have no checks.tables"
    assert not SqlExecution().excludes(item("SELECT name FROM store"), Setup())


@pytest.mark.parametrize("query", ["SELECT name FROM shop", "Four.", "DELETE FROM store"])
def test_a_golden_item_whose_own_query_cannot_be_run_is_refused(query: str) -> None:
    with pytest.raises(InvalidArgument, match=r"item 'q' must be a SELECT that can be run on its tables"):
        golden.items([_example(query)])


async def test_an_expected_query_that_exceeds_a_bound_ends_the_step_with_the_items_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sql, "MAX_ROWS", 1)  # as if the bound had been met under load
    with pytest.raises(InvalidArgument, match=r"item 'q' must be a SELECT .*: more than 1 rows") as caught:
        await SqlExecution().score(item("SELECT name FROM store"), Answer("SELECT 1"), NO_EVIDENCE)
    assert caught.value.field == "golden"


@pytest.mark.parametrize(
    "attack",
    [
        "ATTACH '{file}' AS other",
        "VACUUM INTO '{file}'",
        "PRAGMA database_list",
        "SELECT * FROM pragma_database_list",
        "PRAGMA writable_schema = 1",
        "INSERT INTO store VALUES ('d', 1, 1)",
        "UPDATE store SET disks = 4",
        "DELETE FROM store",
        "DROP TABLE store",
        "CREATE TABLE other (x)",
        "CREATE TEMP TABLE other (x)",
        "BEGIN",
        "SELECT 1; DELETE FROM store",
        "SELECT load_extension('{file}')",
        "SELECT readfile('{file}')",
        "SELECT writefile('{file}', 'x')",
        "SELECT printf('%.*c', 1000000000, 'x')",
        "SELECT zeroblob(1000000000)",
        "SELECT randomblob(9000)",
        ENDLESS + "count(*) FROM c",
        ENDLESS + "x FROM c",
        ENDLESS + f"sum('{'a' * 9000}' || x LIKE '{'%a' * 45}%b') FROM c",
        ENDLESS + f"max(y) FROM (SELECT '{'a' * 9000}' || x y FROM c ORDER BY y)",
        "SELECT " + "(" * 5000 + "1" + ")" * 5000,
        "SELECT '\x00'",
        "SELECT '\ud800'",
    ],
)
def test_an_attack_is_refused_and_leaves_nothing(attack: str, tmp_path: Path) -> None:
    file = tmp_path / "attack"
    with pytest.raises(sql.QueryError):
        sql.rows(TABLES, attack.replace("{file}", str(file)))
    assert not file.exists()


@pytest.mark.parametrize(
    ("columns", "rows", "bound"),
    [
        (["x"] * 400, 100, "too many columns"),
        (["x"] * 100, 9000, "more than 16 MiB"),
        ([f"'{'a' * 900}' || x"] * 90, 2000, "more than 16 MiB"),
        ([f"'{'đ' * 4000}' || x"], 9000, "more than 16 MiB"),
        (["x"], 10_001, "more than 10,000 rows"),
        (["1"] * 50, 10_000, None),
    ],
)
def test_the_memory_of_a_result_is_bounded(columns: list[str], rows: int, bound: str | None) -> None:
    query = f"{ENDLESS}{', '.join(columns)} FROM c LIMIT {rows}"
    if bound is None:
        assert sql.rows(TABLES, query).total() == rows
        return
    tracemalloc.start()
    try:
        with pytest.raises(sql.QueryError, match=bound):
            sql.rows(TABLES, query)
        assert tracemalloc.get_traced_memory()[1] < 2 * sql.MAX_BYTES
    finally:
        tracemalloc.stop()


def test_steps_that_take_long_are_ended_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "_MAX_SECONDS", 0.2)
    monkeypatch.setattr(sql, "_MAX_STEPS", 10**9)
    started = time.thread_time()
    with pytest.raises(sql.QueryError, match="interrupted"):
        sql.rows(TABLES, ENDLESS + f"sum(instr('{'a' * 6000}' || x, '{'a' * 3000}b')) FROM c")
    assert time.thread_time() - started < 2


def test_time_that_others_use_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "_MAX_SECONDS", 0.1)
    written: list[float] = []

    def stolen() -> float:
        time.sleep(0.01)
        written.append(0)
        return clock()

    clock = time.thread_time
    monkeypatch.setattr(time, "thread_time", stolen)
    assert sql.rows(TABLES, ENDLESS + "count(*) FROM (SELECT x FROM c LIMIT 300)") == {(300,): 1}
    assert len(written) > 20


@pytest.mark.parametrize(
    "tables",
    [
        "ATTACH '{file}' AS other; CREATE TABLE other.t (x);",
        "PRAGMA temp_store_directory = '/'",
        ENDLESS + "count(*) FROM c;",
    ],
)
def test_the_tables_of_an_item_reach_no_file_and_are_bounded(tables: str, tmp_path: Path) -> None:
    file = tmp_path / "attack"
    with pytest.raises(sql.QueryError):
        sql.rows(tables.replace("{file}", str(file)), "SELECT 1")
    assert not file.exists()
