"""Interactions with their feedback as lines of JSON: the request log for replay, and where data sets begin."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from genaifactory_monitor import store
from genaifactory_monitor.database import Database
from genaifactory_monitor.records import Feedback, Filter, Interaction, Position

_PAGE = 200
_PAGE_BYTES = 1024 * 1024
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


async def lines(database: Database, filter_: Filter) -> AsyncIterator[tuple[bytes, int]]:
    """Pieces of JSONL, oldest interaction first, and how many interactions each holds.

    A piece holds whole lines. Memory is bounded by a page, and no transaction is held while a reader is slow. What is
    recorded meanwhile is in the export if it lies ahead. Raises Unavailable.
    """
    after: Position | None = None
    while True:
        page = await store.page(database, filter_, after=after, limit=_PAGE, max_bytes=_PAGE_BYTES, newest_first=False)
        if not page.interactions:
            return
        feedback = await store.feedback_on(database, filter_.tenant, [i.request_id for i in page.interactions])
        yield (
            b"".join(line(item, feedback.get(item.request_id, ())) for item in page.interactions),
            len(page.interactions),
        )
        if page.next is None:
            return
        after = page.next


def line(item: Interaction, feedback: Sequence[Feedback]) -> bytes:
    """One interaction as a line of UTF-8 JSON, with its line feed."""
    values: dict[str, Any] = {
        "request_id": item.request_id,
        "time": _iso(item.start_time_us),
        "tenant": item.tenant,
        "principal": item.principal,
        "key_id": item.key_id,
        "user": item.end_user,
        "task": item.task,
        "route": item.route,
        "model": item.model,
        "prompt_version": item.prompt_version,
        "index_version": item.index_version,
        "input": item.input,
        "output": item.output,
        "outcome": item.outcome,
        "error": _error(item),
        "latency_us": item.duration_us,
        "time_to_first_token_us": item.time_to_first_token_us,
        "usage": {
            "prompt_tokens": item.prompt_tokens,
            "completion_tokens": item.completion_tokens,
            "cached_prompt_tokens": item.cached_prompt_tokens,
        },
        "cost_micros": item.cost_micros,
        "currency": item.currency,
        "cached": item.cached,
        "refused": item.refused,
        "conversation_id": item.conversation_id,
        "trace_id": item.trace_id,
        "attempts": item.attempts,
        "passages": item.passages,
        "citations": item.citations,
        "verdicts": item.verdicts,
        "feedback": [_feedback(given) for given in feedback],
    }
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _error(item: Interaction) -> dict[str, str] | None:
    if not item.error_reason and not item.error_message:
        return None
    return {"reason": item.error_reason, "message": item.error_message}


def _feedback(given: Feedback) -> dict[str, Any]:
    return {
        "feedback_id": given.feedback_id,
        "time": _iso(given.time_us),
        "principal": given.principal,
        "rating": given.rating,
        "correction": given.correction,
        "comment": given.comment,
        "ground_truth": given.ground_truth,
    }


def _iso(moment_us: int) -> str:
    return (_EPOCH + timedelta(microseconds=moment_us)).isoformat(timespec="microseconds").replace("+00:00", "Z")
