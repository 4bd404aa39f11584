"""The contract of a dataset: what is accepted, and what a bad line is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines.datasets import contract
from genaifactory_pipelines.datasets.contract import Example, InvalidDataset

PAIR = {"input": "What is RAID6?", "output": "Two disks may fail."}


def of(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_pairs_and_conversations_are_read_alike(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "What is RAID6?"}, {"role": "assistant", "content": "Two disks may fail."}]
    pair, conversation = contract.read(of(tmp_path, json.dumps(PAIR), "", json.dumps({"id": "x", "messages": turns})))
    assert pair.messages == conversation.messages
    assert (pair.id, conversation.id) == ("line-1", "x")
    assert (pair.questions, pair.output) == ("What is RAID6?", "Two disks may fail.")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"input": "a", "output": ', "it is no JSON at character"),
        ("[1]", "it must be a JSON object"),
        ('{"input": "a"}', "'output' is missing beside the other"),
        ('{"output": "a"}', "'input' is missing beside the other"),
        ('{"input": "a", "output": "b", "messages": []}', "give one form"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "messages: Tuple should have at least 2 items"),
        ('{"input": " ", "output": "b"}', "the last user message is empty"),
        ('{"input": "a", "output": ""}', "the last assistant message is empty"),
        ('{"input": "a", "output": "b", "rejected": "b "}', "'rejected' is the same text"),
        ('{"input": "a", "output": "b", "outptu": "c"}', "outptu: Extra inputs are not permitted"),
        ('{"input": 1, "output": "b"}', "messages.0.content: Input should be a valid string"),
        ('{"messages": [{"role": "tool", "content": "a"}, {"role": "assistant", "content": "b"}]}', "messages.0.role"),
        (
            '{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}',
            "must end with a user's message and the assistant's answer",
        ),
    ],
)
def test_a_bad_line_is_named_with_what_is_wrong_and_without_its_text(tmp_path: Path, line: str, problem: str) -> None:
    with pytest.raises(InvalidDataset) as refused:
        contract.read(of(tmp_path, json.dumps(PAIR), line))
    assert refused.value.message.startswith("data.jsonl:2: ")
    assert problem in refused.value.message
    assert "RAID6" not in refused.value.message


def test_all_bad_lines_are_found_and_the_first_are_shown(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataset, match="and 7 more") as refused:
        contract.read(of(tmp_path, *["{}"] * 12))
    assert len(refused.value.problems) == 12


def test_an_id_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    line = json.dumps({"id": "a", **PAIR})
    with pytest.raises(InvalidDataset, match=r"data\.jsonl:3: the id 'a' is that of line 1"):
        contract.read(of(tmp_path, line, json.dumps(PAIR), line))


def test_a_file_without_an_example_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataset, match="it holds no example"):
        contract.read(of(tmp_path, ""))
    with pytest.raises(InvalidArgument, match="cannot be read: No such file"):
        contract.read(tmp_path / "none.jsonl")


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contract, "MAX_LINE_BYTES", 1 << 20)
    with pytest.raises(InvalidDataset, match=r"data\.jsonl:2: the line has more than 1 MiB"):
        contract.read(of(tmp_path, json.dumps(PAIR), "x" * (1 << 20)))


TEXTS = st.text(min_size=1, max_size=40).filter(lambda text: text.strip() != "")


@settings(deadline=None)  # a disk may take long
@given(question=TEXTS, answer=TEXTS, topic=st.text(max_size=9))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, question: str, answer: str, topic: str
) -> None:
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    example = Example.model_validate({"id": "1", "input": question, "output": answer, "topic": topic})
    contract.write(path, [example])
    assert contract.read(path) == [example]
