"""Refusals and their languages, and queries of follow-up questions."""

from __future__ import annotations

import pytest

from genaifactory.types.v1 import types_pb2
from genaifactory_common import specs
from genaifactory_orchestrator.answers import refusal, retrieval


def test_a_prompt_s_own_refusal_comes_first_and_every_language_has_a_default() -> None:
    prompt = specs.Prompt(name="p", version=1, system="x", refusal={"en": "No idea."})
    assert refusal.text("Why?", prompt) == "No idea."
    assert refusal.text("Tại sao?", prompt).startswith("Tôi không biết")
    assert refusal.text("Why?", None).startswith("I do not know")


def test_only_an_answer_that_is_nothing_but_a_refusal_counts_as_one() -> None:
    prompt = specs.Prompt(name="p", version=1, system="x", refusal={"en": "I cannot say."})
    assert refusal.is_refusal(" i cannot  say\n", prompt)
    assert refusal.is_refusal("I do not know. The documents do not answer this question.", prompt)
    assert not refusal.is_refusal("I cannot say. But 14 days [1].", prompt)
    assert not refusal.is_refusal("", prompt)


def said(role: types_pb2.Role.ValueType, text: str) -> types_pb2.Message:
    return types_pb2.Message(role=role, content=text)


@pytest.mark.parametrize(
    ("texts", "query"),
    [
        (["What is the leave policy for new employees?"], "What is the leave policy for new employees?"),
        (["Leave of staff?", "And managers?"], "Leave of staff?\nAnd managers?"),
        (
            ["Nghỉ phép năm?", "Còn nhân viên thử việc thì thế nào?"],
            "Nghỉ phép năm?\nCòn nhân viên thử việc thì thế nào?",
        ),
        (["Leave?", "Where do employees file their travel expenses today?"], None),
        (["Leave?", "Where do employees file travel expenses after business trips?"], "Where do employees file travel"),
        (["x" * 9000], "x" * 8192),
    ],
)
def test_the_query_of_a_follow_up_includes_the_question_before_it(texts: list[str], query: str | None) -> None:
    history = [said(types_pb2.ROLE_USER, text) for text in texts[:-1]]
    answers = [said(types_pb2.ROLE_ASSISTANT, "It is it.")]
    found = retrieval.query([*history, *answers], [said(types_pb2.ROLE_USER, texts[-1])])
    assert found.startswith("\n".join(texts) if query is None else query)
    assert len(found) <= 8192
