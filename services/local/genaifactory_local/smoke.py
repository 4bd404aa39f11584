"""Asks one question as a client does and checks the answer: `genaifactory smoke`."""

from __future__ import annotations

import time
from collections.abc import Callable

from genaifactory_common.errors import DeadlineExceeded, FactoryError
from genaifactory_local import asking


def test(
    question: asking.ChatRequest, report: Callable[[str], None], *, timeout_seconds: float, needs_citation: bool
) -> None:
    """Reports the question, the answer and the time it took.

    Raises FactoryError when the answer is late or empty, or lacks a citation that it needs.
    """
    started = time.monotonic()
    report(f"Question  {question.text}")
    with asking.asked(question) as (answer, pieces):
        for _ in pieces:
            if time.monotonic() - started > timeout_seconds:
                raise DeadlineExceeded(f"The answer is not complete after {timeout_seconds:g} s: {answer.text}")
    seconds = time.monotonic() - started
    report(f"Answer    {answer.text}")
    for number, source in sorted(answer.sources().items()):
        report(f"      [{number}] {source['title']} ({source['url']})")
    report(f"Time      {seconds:.1f} s")
    if not answer.text.strip():
        raise FactoryError(f"The answer is empty; it ended with '{answer.finish_reason}'.")
    if needs_citation and not answer.citations:
        raise FactoryError("The answer cites nothing. Are there documents? See: genaifactory ingest --samples")
