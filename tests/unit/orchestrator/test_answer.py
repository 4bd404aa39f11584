"""The path of an answer, from the wire to the wire."""

from __future__ import annotations

from genaifactory.types.v1 import types_pb2


async def test_a_rag_answer_comes_in_order_with_citations_usage_and_cost(world) -> None:  # type: ignore[no-untyped-def]
    answer = await world.ask(request_id="one")
    assert answer.kinds == ["route", "passages", "delta", "verdict", "done"]
    assert answer.text() == "You have 14 days [1]."
    (citation,) = answer.done.citations
    assert (citation.number, citation.passage_id, citation.start_offset, citation.end_offset) == (1, "p1", 17, 20)
    assert answer.done.finish_reasons == [types_pb2.FINISH_REASON_STOP]
    assert (answer.done.usage.prompt_tokens, answer.done.usage.completion_tokens) == (10, 5)
    assert (answer.done.cost_micros, answer.done.currency) == (20, "USD")
    assert answer.done.model == "small"
    record = await world.recorded("one")
    print(record)
