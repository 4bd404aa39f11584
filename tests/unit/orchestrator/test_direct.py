"""Replies that need no model: small talk and overviews, and questions that must reach a model."""

from __future__ import annotations

from typing import Any

import pytest

from genaifactory.types.v1 import types_pb2
from genaifactory_orchestrator.answers import overview, small_talk
from genaifactory_orchestrator.answers.retrieval import RetrievedPassages
from genaifactory_orchestrator.answers.small_talk import Kind, Talk
from tests.unit.orchestrator.conftest import World


@pytest.mark.parametrize(
    ("message", "talk"),
    [
        ("hello", Talk(Kind.GREETING, "en")),
        ("Hi there! 👋", Talk(Kind.GREETING, "en")),
        ("Good morning, everybody.", Talk(Kind.GREETING, "en")),
        ("hello, who are you?", Talk(Kind.WHO, "en")),
        ("Hi! What's your name?", Talk(Kind.WHO, "en")),
        ("What can I ask you about?", Talk(Kind.WHAT_TO_ASK, "en")),
        ("thanks a lot, bye", Talk(Kind.THANKS, "en")),
        ("xin chào", Talk(Kind.GREETING, "vi")),
        ("Chào bạn nhé!", Talk(Kind.GREETING, "vi")),
        ("cảm ơn bạn nhiều", Talk(Kind.THANKS, "vi")),
        ("cam on", Talk(Kind.THANKS, "vi")),
        ("Bạn là ai?", Talk(Kind.WHO, "vi")),
        ("Xin chào, tôi có thể hỏi gì?", Talk(Kind.WHAT_TO_ASK, "vi")),
    ],
)
def test_small_talk_is_recognised_with_its_language(message: str, talk: Talk) -> None:
    assert small_talk.recognised(message) == talk


@pytest.mark.parametrize(
    "message",
    [
        "hello, how many days of annual leave do I have?",
        "Hi, I lost my hardware key",
        "Thanks, and how long is the warranty?",
        "help me install software",
        "What can I ask the IT desk?",
        "Who are you going to call in an incident?",
        "xin chào, mỗi năm tôi có bao nhiêu ngày nghỉ phép?",
        "cảm ơn, còn bảo hành thì sao?",
        "you",
        "",
        "?!",
        "hello " * 100,
    ],
)
def test_a_question_that_begins_with_small_talk_is_a_question(message: str) -> None:
    assert small_talk.recognised(message) is None


@pytest.mark.parametrize(
    ("message", "subject"),
    [
        ("summarise the handbook", "the handbook"),
        ("Hello, can you summarize leave for me please?", "leave"),
        ("Give me an overview of IT security.", "it security"),
        ("What is in the documents?", "the documents"),
        ("list the topics", ""),
        ("Which documents are there?", ""),
        ("Tóm tắt sổ tay", "so tay"),
        ("Có những tài liệu nào?", ""),
        ("Liệt kê các chủ đề", ""),
        ("How many days of annual leave do I have?", None),
        ("List the steps to ask for leave", None),
        ("Which documents do I need for a claim?", None),
        ("Mật khẩu phải có bao nhiêu ký tự?", None),
        ("Summarise " + "please " * 100_000 + "x", None),
    ],
)
def test_a_request_for_an_overview_is_recognised_with_its_subject(message: str, subject: str | None) -> None:
    assert overview.subject(message) == subject


def _passage(document: str, heading: str, text: str, start: int, title: str) -> types_pb2.Passage:
    headings = [title, heading] if heading else [title]
    return types_pb2.Passage(
        passage_id=f"{document}-{start}", document_id=document, title=title, headings=headings, text=text,
        start_offset=start,
    )  # fmt: skip


SAMPLE = RetrievedPassages(
    (
        _passage("hr/leave.md", "Sick leave", "Call your manager before 9:30. Then rest.", 90, "Leave"),
        _passage("hr/leave.md", "Annual leave", "You have 16 days [1]. Some are lost.", 30, "Leave"),
        _passage("hr/leave.md", "", "Acme handbook. Written for tests.", 0, "Leave"),
        _passage("it/keys.md", "Table", "alert | severity | meaning", 9, "Keys"),
    ),
    index_version="v7",
)


def test_the_overview_of_one_document_lists_its_sections_in_order_with_citations() -> None:
    composed = overview.compose("leave", "en", SAMPLE, complete=True)
    assert composed is not None
    text, found = composed
    assert text.splitlines() == [
        "Leave",
        "- Acme handbook. [1]",
        "- Annual leave: You have 16 days . [2]",
        "- Sick leave: Call your manager before 9:30. [3]",
    ]
    assert [passage.start_offset for passage in found.passages] == [0, 30, 90]
    assert found.index_version == "v7"


def test_the_overview_of_several_documents_lists_their_headings() -> None:
    composed = overview.compose("the documents", "en", SAMPLE, complete=True)
    assert composed is not None
    text, found = composed
    assert text.splitlines() == [
        "What the documents hold:",
        "- Leave (Annual leave, Sick leave): You have 16 days . [1]",
        "- Keys (Table) [2]",
    ]
    assert [passage.document_id for passage in found.passages] == ["hr/leave.md", "it/keys.md"]


def test_the_overview_of_text_without_headings_and_sentences_shows_its_first_words() -> None:
    title = "scan_0042 (final)"
    text = "- milk\n- eggs\n- " + "and more of this and that " * 20
    sample = RetrievedPassages(
        (_passage("n.txt", "", text, 0, title), _passage("m.txt", "", "Call Lan.", 0, "m")), "v7"
    )
    one = overview.compose("scan", "en", sample, complete=True)
    assert one is not None
    head, line = one[0].splitlines()
    assert head == title
    assert line.startswith("- milk - eggs - and more of this")
    assert line.endswith(" … [1]")
    assert len(line) < 140
    several = overview.compose("", "en", sample, complete=True)
    assert several is not None
    assert [line[:24] for line in several[0].splitlines()[1:]] == ["- scan_0042 (final): mil", "- m: Call Lan. [2]"]


@pytest.mark.parametrize(
    ("subject", "documents"),
    [
        ("the handbook", {"hr/leave.md"}),  # the word is in its opening
        ("the manual", {"hr/leave.md", "it/keys.md"}),  # none has the word: all documents
        ("keys md", {"it/keys.md"}),
        ("", {"hr/leave.md", "it/keys.md"}),
    ],
)
def test_an_overview_covers_the_documents_that_the_subject_names(subject: str, documents: set[str]) -> None:
    composed = overview.compose(subject, "en", SAMPLE, complete=True)
    assert composed is not None
    assert {passage.document_id for passage in composed[1].passages} == documents


@pytest.mark.parametrize("subject", ["football", "the football handbook", "annual reports"])
def test_a_subject_that_names_no_document_has_no_overview(subject: str) -> None:
    assert overview.compose(subject, "en", SAMPLE, complete=True) is None


async def test_small_talk_is_answered_without_a_model_checked_and_recorded(world: World) -> None:
    request = world.request("Hello!")
    answer = await world.send(request)
    assert answer.text().startswith("Hello!")
    assert '"Handbook"' in answer.text()
    assert not answer.done.refused
    assert not answer.done.citations
    assert not world.modelserver.requests
    assert (types_pb2.DIRECTION_OUTPUT, answer.text()) in world.safety.checked
    record = await world.recorded(request.request_id)
    assert record.output == answer.text()
    assert [verdict.direction for verdict in record.verdicts] == [types_pb2.DIRECTION_INPUT, types_pb2.DIRECTION_OUTPUT]


async def test_an_overview_cites_the_passages_that_it_shows(world: World) -> None:
    request = world.request("What is in the documents?")
    answer = await world.send(request)
    assert [citation.document_id for citation in answer.done.citations] == ["d1", "d2"]
    assert answer.kinds == ["route", "passages", "delta", "verdict", "done"]
    assert not world.modelserver.requests
    record = await world.recorded(request.request_id)
    assert [passage.document_id for passage in record.passages] == ["d1", "d2"]


@pytest.mark.parametrize("question", ["What is in the documents?", "Summarise the leave policy", "How many days?"])
async def test_every_search_has_the_options_of_the_client(world: World, question: str) -> None:
    options = types_pb2.SearchOptions(filter={"year": "2026"})
    await world.ask(question, search_options=options)
    assert world.retriever.searches
    assert all(search.options == options for search in world.retriever.searches)


async def test_an_overview_among_many_passages_searches_for_more_of_the_named_documents(world: World) -> None:
    others = [_passage(f"other/{n}.md", "", "Nothing of it.", 0, "Other") for n in range(99)]
    annual = _passage("hr/leave.md", "Annual leave", "You have 16 days.", 30, "Leave")
    sick = _passage("hr/leave.md", "Sick leave", "Call your manager.", 90, "Leave")
    world.retriever.passages = [annual, *others]
    world.retriever.passages_of = {"Leave": [sick, annual, *others]}
    answer = await world.ask("Summarise the leave policy")
    assert answer.text() == "Leave\n- Annual leave: You have 16 days. [1]\n- Sick leave: Call your manager. [2]"
    assert [citation.passage_id for citation in answer.done.citations] == [annual.passage_id, sick.passage_id]


async def test_titles_of_documents_are_checked_by_the_output_guardrail(world: World) -> None:
    world.safety.mask = {"Handbook": "<SECRET_NAME>"}
    assert "Handbook" not in (await world.ask("hello")).text()
    world.safety.mask, world.safety.block = {}, ("Handbook",)
    blocked = await world.ask("hello")
    assert blocked.text() == ""
    assert list(blocked.done.finish_reasons) == [types_pb2.FINISH_REASON_CONTENT_FILTER]


async def test_small_talk_that_a_guardrail_blocks_is_blocked(world: World) -> None:
    world.safety.block = ("hello",)
    error, _ = await world.failure("hello")
    assert error.field == "messages[0].content"


@pytest.mark.parametrize(
    "fields",
    [
        {"route": "chat"},
        {"tools": [types_pb2.Tool(name="f")]},
        {"output_format": types_pb2.OutputFormat(json_object=True)},
        {"question": "Summarise the football results"},
    ],
    ids=["no documents", "tools", "a form of output", "no document of that name"],
)
async def test_a_model_answers_what_no_reply_covers(world: World, fields: dict[str, Any]) -> None:
    await world.ask(**({"question": "hello"} | fields))
    assert len(world.modelserver.requests) == 1


async def test_small_talk_without_documents_names_none(world: World) -> None:
    world.retriever.passages = []
    assert (await world.ask("hello")).text().endswith("There are no documents yet that you may read.")
    assert (await world.ask("thanks")).text().startswith("You are welcome.")
