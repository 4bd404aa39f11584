"""SQL that a model wrote is run where it can read the item's tables, for a bounded time, and do nothing else."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines.datasets.contract import Example
from genaifactory_pipelines.evaluation import golden, sql
from genaifactory_pipelines.evaluation.evaluators.sql_execution import SqlExecution
from genaifactory_pipelines.evaluation.protocol import NO_EVIDENCE, Answer, Item

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


async def test_an_item_without_tables_is_no_sql() -> None:
    assert await SqlExecution().score(Item("q", [], ("x",)), Answer("SELECT 1"), NO_EVIDENCE) is None


@pytest.mark.parametrize("query", ["SELECT name FROM shop", "Four.", "DELETE FROM store"])
def test_a_golden_item_whose_own_query_cannot_be_run_is_refused(query: str) -> None:
    with pytest.raises(InvalidArgument, match="item 'q' must be a SELECT that can be run on its tables"):
        golden.items([_example(query)])


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


def test_steps_that_take_long_are_ended_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "_MAX_SECONDS", 0.2)
    started = time.thread_time()
    with pytest.raises(sql.QueryError, match="interrupted"):
        sql.rows(TABLES, ENDLESS + f"sum(instr('{'a' * 6000}' || x, '{'a' * 3000}b')) FROM c")
    assert time.thread_time() - started < 2


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
