"""Execution accuracy of SQL: whether the answer's query has the result of the expected one on the item's tables.

Yu et al., "Spider: A Large-Scale Human-Labeled Dataset for Complex and Cross-Domain Semantic Parsing and Text-to-SQL
Task", 2018, as execution accuracy is measured there; in SQLite's dialect.
"""

from __future__ import annotations

import asyncio
from typing import Literal

from genaifactory_pipelines.evaluation import sql
from genaifactory_pipelines.evaluation.protocol import GOLDEN, Answer, Evidence, Item, Setup


class SqlExecution:
    """1 for the same rows, in any order and under any names of columns, else 0; also 0 for what cannot be run."""

    name = "sql_execution"
    suite = GOLDEN
    better: Literal["higher"] = "higher"

    def excludes(self, item: Item, setup: Setup) -> str:
        """See Evaluator."""
        return "" if item.tables else "have no checks.tables"

    async def score(self, item: Item, answer: Answer, evidence: Evidence) -> float:
        """See Evaluator. Raises InvalidArgument for an expected query that fails."""
        return await asyncio.to_thread(_score, item, answer)


def _score(item: Item, answer: Answer) -> float:
    expected = [sql.expected(item.id, item.tables, text) for text in item.expected]
    try:
        return float(sql.rows(item.tables, sql.written(answer.text)) in expected)
    except sql.QueryError:
        return 0.0


make = SqlExecution
