"""How a conversation is written for a model without a chat template."""

from __future__ import annotations

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from genaifactory_modelserver.engines.vllm import plain_chat

Turn = dict[str, str | None]

SYSTEM: Turn = {"role": "system", "content": "Answer from the passages."}
USER: Turn = {"role": "user", "content": "How many days?"}
ASSISTANT: Turn = {"role": "assistant", "content": "Twelve."}


def written(messages: list[Turn], **rest: object) -> str:
    # As transformers sets the environment up for chat templates.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(plain_chat.TEMPLATE).render(messages=messages, **rest)


ASKED = "User: How many days?\n\n"


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([USER], f"{ASKED}Assistant:"),
        (
            [SYSTEM, USER, ASSISTANT, USER],
            f"Answer from the passages.\n\n{ASKED}Assistant: Twelve.\n\n{ASKED}Assistant:",
        ),
        ([USER, {"role": "assistant", "content": None}, USER], f"{ASKED}Assistant: \n\n{ASKED}Assistant:"),
    ],
)
def test_each_message_stands_behind_its_role_and_the_models_turn_comes_last(messages: list[Turn], text: str) -> None:
    assert written(messages, add_generation_prompt=True) == text
    assert written(messages, add_generation_prompt=True, bos_token="<s>") == f"<s>{text}"


def test_an_answer_that_is_to_be_continued_stands_as_it_is() -> None:
    beginning: Turn = {"role": "assistant", "content": " Twelve, of which "}
    assert " Twelve, of which " in written([USER, beginning], add_generation_prompt=False)


def test_the_next_question_that_a_base_model_would_write_ends_the_answer() -> None:
    (following,) = {written([USER])[: len("User:")]}
    assert all(stop.strip() == following for stop in plain_chat.STOP)


def test_the_note_names_the_field_that_mends_it() -> None:
    assert "engines[2].chat_template" in plain_chat.note("engines[2]")
