"""The path of an answer, through its gRPC method."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import struct_pb2

from genaifactory.modelserver.v1 import modelserver_pb2
from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.orchestrator.v1 import orchestrator_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, testing
from genaifactory_common.errors import FactoryError, Internal, NotFound, Overloaded, Reason, Unavailable, UpstreamFailed
from genaifactory_common.testing import CALLER, act_as, struct
from tests.unit.orchestrator.conftest import MakeWorld, World

STOP = types_pb2.FINISH_REASON_STOP
FILTERED = types_pb2.FINISH_REASON_CONTENT_FILTER
GREEDY = types_pb2.Sampling(temperature=0)


def user(text: str) -> types_pb2.Message:
    return types_pb2.Message(role=types_pb2.ROLE_USER, content=text)


def assistant(text: str) -> types_pb2.Message:
    return types_pb2.Message(role=types_pb2.ROLE_ASSISTANT, content=text)


async def test_the_events_of_a_rag_answer_are_in_order_with_citations_usage_and_cost(world: World) -> None:
    answer = await world.ask()
    assert answer.kinds == ["route", "passages", "delta", "verdict", "done"]
    assert answer.events[0].route.route == "rag"
    assert answer.events[0].route.prompt_version == "rag@2"
    assert [p.passage_id for p in answer.events[1].passages.passages] == ["p1", "p2"]
    assert answer.text() == "You have 14 days [1]."
    (citation,) = answer.done.citations
    assert (citation.number, citation.passage_id, citation.start_offset, citation.end_offset) == (1, "p1", 17, 20)
    assert answer.done.finish_reasons == [STOP]
    assert (answer.done.usage.prompt_tokens, answer.done.usage.completion_tokens) == (10, 5)
    assert (answer.done.cost_micros, answer.done.currency) == (20, "USD")
    assert (answer.done.model, answer.done.cached, answer.done.refused) == ("small", False, False)


async def test_answer_only_omits_events_about_the_answer_and_the_record_is_complete(
    world: World,
) -> None:
    request = world.request(answer_only=True)
    answer = await world.send(request)
    assert answer.kinds == ["delta", "done"]
    assert answer.text() == "You have 14 days [1]."
    assert [citation.passage_id for citation in answer.done.citations] == ["p1"]
    record = await world.recorded(request.request_id)
    assert [passage.passage_id for passage in record.passages] == ["p1", "p2"]
    assert [v.direction for v in record.verdicts] == [types_pb2.DIRECTION_INPUT, types_pb2.DIRECTION_OUTPUT]


async def test_the_record_of_an_answer_is_complete(world: World) -> None:
    request = world.request(user="end-user-7")
    await world.send(request)
    record = await world.recorded(request.request_id)
    assert (record.tenant, record.principal, record.key_id, record.user) == ("acme", "alice", "alice", "end-user-7")
    assert (record.task, record.route, record.model, record.prompt_version) == ("rag", "rag", "small", "rag@2")
    assert record.index_version == "v1"
    assert [(p.passage_id, p.score) for p in record.passages] == [("p1", 1.0), ("p2", 1.0)]
    assert [c.passage_id for c in record.citations] == ["p1"]
    directions = [types_pb2.DIRECTION_INPUT, types_pb2.DIRECTION_INPUT, types_pb2.DIRECTION_OUTPUT]
    assert [v.direction for v in record.verdicts] == directions  # on the user, the question, the answer
    assert [m.content for m in record.input] == ["How many days of leave?"]
    assert record.output == "You have 14 days [1]."
    assert (record.usage.prompt_tokens, record.cost_micros, record.currency) == (10, 20, "USD")
    assert [(a.model, a.error_reason) for a in record.attempts] == [("small", "")]
    assert 0 < record.time_to_first_token_us <= record.duration_us
    assert record.outcome == monitor_pb2.OUTCOME_ANSWERED
    assert record.start_time.seconds > 0


async def test_a_chat_answer_retrieves_nothing_and_keeps_marks(world: World) -> None:
    world.modelserver.script = ["see a[7] and ", "[9]"]
    answer = await world.ask("hello", route="chat")
    assert answer.kinds == ["route", "delta", "verdict", "done"]
    assert answer.text() == "see a[7] and [9]"
    assert not answer.done.citations
    assert not world.retriever.searches


async def test_the_model_gets_the_prompt_the_passages_and_the_route_s_token_limit(world: World) -> None:
    messages = [types_pb2.Message(role=types_pb2.ROLE_SYSTEM, content="Be brief."), user("leave?")]
    await world.ask(messages=messages)
    (request,) = world.modelserver.requests
    system, question = request.conversation.messages
    assert system.content.startswith('Answer acme from:\nHandbook: <passage number="1">\nLeave is 14 days.\n</passage>')
    assert system.content.endswith("Be brief.")
    assert question.content == "leave?"
    assert [d.passage_id for d in request.documents] == ["p1", "p2"]
    assert request.sampling.max_tokens == 1024


async def test_a_mark_that_names_no_passage_is_removed(world: World) -> None:
    world.modelserver.script = ["14 days [1", "] or 15 [", "9]. Ask [2, 7]"]
    answer = await world.ask()
    assert answer.text() == "14 days [1] or 15. Ask [2]"
    assert [(c.number, c.start_offset) for c in answer.done.citations] == [(1, 8), (2, 23)]


@pytest.mark.parametrize(
    ("question", "refusal"),
    [("How is the weather?", "I cannot say."), ("Thời tiết hôm nay thế nào?", "Tôi không rõ.")],
)
async def test_a_question_that_the_passages_do_not_cover_is_refused_in_its_language(
    world: World, question: str, refusal: str
) -> None:
    world.retriever.term_coverage = 0.1
    answer = await world.ask(question)
    assert answer.text() == refusal
    assert answer.done.refused
    assert answer.done.finish_reasons == [STOP]
    assert not world.modelserver.requests


async def test_a_question_without_passages_is_refused_for_every_choice(world: World) -> None:
    world.retriever.passages = []
    answer = await world.ask(sampling=types_pb2.Sampling(n=2))
    assert answer.text(0) == answer.text(1) == "I cannot say."
    assert answer.done.finish_reasons == [STOP, STOP]


@pytest.mark.parametrize(
    ("question", "refusal"),
    [
        (
            "How is the weather?",
            "I cannot say. The documents are still being read (84 of 168); ask again when they are.",
        ),
        ("Thời tiết thế nào?", "Tôi không rõ. Các tài liệu vẫn đang được đọc (84/168); hãy hỏi lại khi đọc xong."),
    ],
)
async def test_a_refusal_while_documents_are_read_reports_the_progress(
    world: World, question: str, refusal: str
) -> None:
    world.retriever.term_coverage = 0.1
    world.retriever.reading = types_pb2.Reading(documents_done=84, documents_total=168)
    request = world.request(question, sampling=types_pb2.Sampling(n=2))
    answer = await world.send(request)
    assert answer.text(0) == answer.text(1) == refusal
    assert answer.done.reading == world.retriever.reading
    assert (await world.recorded(request.request_id)).output == refusal
    world.retriever.reading = None
    answer = await world.ask(question)
    assert answer.text() == refusal.partition(".")[0] + "."
    assert not answer.done.HasField("reading")


async def test_an_answer_while_documents_are_read_has_the_progress_beside_its_text(world: World) -> None:
    world.retriever.reading = types_pb2.Reading(documents_done=1, documents_total=2)
    answer = await world.ask()
    assert answer.text() == "You have 14 days [1]."
    assert answer.done.reading.documents_total == 2


async def test_a_chat_answer_does_not_report_documents_that_are_read(world: World) -> None:
    world.retriever.reading = types_pb2.Reading(documents_done=1, documents_total=2)
    assert not (await world.ask(route="chat")).done.HasField("reading")


async def test_a_model_s_answer_with_the_prompt_s_refusal_is_a_refusal(world: World) -> None:
    world.modelserver.script = ["I cannot ", "say."]
    assert (await world.ask()).done.refused


async def test_a_model_that_the_model_server_lacks_is_logged_and_not_named_to_the_client(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    missing = NotFound("There is no model 'small'; this server has: extractive.", reason=Reason.MODEL_NOT_FOUND)
    world.modelserver.script = [missing]
    error, _ = await world.failure(route="quick")
    assert "small" not in error.message
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "model 'small' is set up wrongly: There is no model 'small'; this server has: extractive." in line
    assert "backend.model in factory.yaml" in line


async def test_a_masked_question_is_used_masked_everywhere(world: World) -> None:
    world.safety.mask = {"0912345678": "<PHONE>"}
    request = world.request("Whose number is 0912345678?")
    answer = await world.send(request)
    assert answer.verdicts[0].action == types_pb2.ACTION_MASK
    (generated,) = world.modelserver.requests
    assert generated.conversation.messages[-1].content == "Whose number is <PHONE>?"
    assert world.retriever.searches[-1].query == "Whose number is <PHONE>?"
    record = await world.recorded(request.request_id)
    assert "0912345678" not in str(record)
    assert record.input[0].content == "Whose number is <PHONE>?"


async def test_masks_are_not_searched_for_and_are_reported_with_the_first_event(world: World) -> None:
    world.safety.mask = {"0912345678": "<VN_PHONE>", "an@example.com": "<EMAIL_ADDRESS>"}
    answer = await world.ask("I am an@example.com, phone 0912345678. How many days of leave?")
    assert world.retriever.searches[-1].query == "How many days of leave?"
    assert [(each.entity_type, each.count) for each in answer.events[0].opened.masked] == [("FAKE_MASKED", 2)]
    assert not any(event.HasField("opened") for event in answer.events[1:])


async def test_a_question_that_is_only_a_mask_is_refused_without_a_search_for_it(world: World) -> None:
    world.safety.mask = {"0912345678": "<VN_PHONE>"}
    searched = len(world.retriever.searches)
    answer = await world.ask("0912345678")
    assert answer.done.refused
    assert [search.query for search in world.retriever.searches[searched:]] == ["0912345678"]


@pytest.mark.parametrize("answer_only", [False, True])
async def test_opened_is_sent_with_the_first_event(world: World, answer_only: bool) -> None:
    answer = await world.ask(answer_only=answer_only)
    assert answer.events[0].opened.cache == types_pb2.CACHE_USE_MISS
    assert not answer.events[0].opened.masked


async def test_every_text_of_a_client_is_checked(world: World) -> None:
    call = types_pb2.ToolCall(id="c1", name="f", arguments_json='{"a": "secret"}')
    messages = [
        user("one"),
        types_pb2.Message(role=types_pb2.ROLE_ASSISTANT, content="two", tool_calls=[call]),
        types_pb2.Message(role=types_pb2.ROLE_TOOL, content="three", tool_call_id="c1"),
    ]
    world.safety.mask = {"secret": "hidden"}
    await world.ask(messages=messages, route="chat")
    checked = [text for direction, text in world.safety.checked if direction == types_pb2.DIRECTION_INPUT]
    assert sorted(checked) == ["c1\nf", "one", "three", "two", '{"a": "secret"}']
    (generated,) = world.modelserver.requests
    assert generated.conversation.messages[1].tool_calls[0].arguments_json == '{"a": "hidden"}'


def _schema(description: str) -> struct_pb2.Struct:
    return struct({"type": "object", "properties": {"a": {"enum": ["x", description]}}})


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        ("tools[0]", {"tools": [types_pb2.Tool(name="f", description="call 0912345678")]}),
        ("tools[0]", {"tools": [types_pb2.Tool(name="f", parameters=_schema("0912345678"))]}),
        ("sampling.stop", {"sampling": types_pb2.Sampling(stop=["0912345678"])}),
        (
            "sampling.chat_template_kwargs",
            {"sampling": types_pb2.Sampling(chat_template_kwargs=struct({"tone": "0912345678"}))},
        ),
        ("output_format", {"output_format": types_pb2.OutputFormat(json_schema=_schema("0912345678"))}),
        ("output_format", {"output_format": types_pb2.OutputFormat(regex="0912345678")}),
    ],
    ids=["tool", "tool's schema", "stop", "template", "output's schema", "regex"],
)
@pytest.mark.parametrize("action", ["mask", "block"])
async def test_other_texts_for_the_model_are_refused_where_messages_would_be_masked(
    world: World, field: str, asked: dict[str, Any], action: str
) -> None:
    world.safety.mask = {"0912345678": "<PHONE>"} if action == "mask" else {}
    world.safety.block = ("0912345678",) if action == "block" else ()
    error, record = await world.failure(route="chat", **asked)
    assert (error.reason, error.field) == (Reason.CONTENT_BLOCKED, field)
    assert "FAKE_" in error.message
    assert not world.modelserver.requests
    assert "0912345678" not in str(record)


def _stored(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def _calls(identifier: str, name: str, answered: str) -> list[types_pb2.Message]:
    call = types_pb2.ToolCall(id=identifier, name=name, arguments_json="{}")
    return [
        user("one"),
        types_pb2.Message(role=types_pb2.ROLE_ASSISTANT, tool_calls=[call]),
        types_pb2.Message(role=types_pb2.ROLE_TOOL, content="three", tool_call_id=answered),
    ]


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        ("conversation_id", {"conversation_id": "of-0912345678", "user": "end-user-7"}),
        (
            "messages[0].name",
            {"messages": [types_pb2.Message(role=types_pb2.ROLE_USER, content="a", name="0912345678")]},
        ),
        ("messages[1].tool_calls[0].id", {"messages": _calls("c-0912345678", "f", "c-0912345678")}),
        ("messages[1].tool_calls[0].name", {"messages": _calls("c1", "f0912345678", "c1")}),
        (
            "messages[0].tool_call_id",  # of a call in the stored conversation
            {
                "messages": [types_pb2.Message(role=types_pb2.ROLE_TOOL, content="a", tool_call_id="c-0912345678")],
                "conversation_id": "c1",
                "user": "0912345678",
            },
        ),
    ],
    ids=["conversation", "name", "call's id", "call's name", "answered call"],
)
@pytest.mark.parametrize("action", ["mask", "block"])
async def test_an_id_is_refused_where_a_text_would_be_masked_and_is_not_stored(
    world: World, field: str, asked: dict[str, Any], action: str
) -> None:
    world.safety.mask = {"0912345678": "<PHONE>"} if action == "mask" else {}
    world.safety.block = ("0912345678",) if action == "block" else ()
    error, record = await world.failure(route="chat", **asked)
    assert (error.reason, error.field) == (Reason.CONTENT_BLOCKED, field)
    assert not world.modelserver.requests
    assert "0912345678" not in str(record)
    assert b"0912345678" not in await asyncio.to_thread(_stored, world.settings.data_dir)


async def test_a_user_s_address_is_masked_in_the_record_and_the_question_answered(world: World) -> None:
    world.safety.mask = {"an@example.com": "<EMAIL_ADDRESS>"}
    request = world.request(user="an@example.com", conversation_id="c1", route="chat")
    await world.send(request)
    record = await world.recorded(request.request_id)
    assert (record.user, record.conversation_id) == ("<EMAIL_ADDRESS>", "c1")
    assert "an@example.com" not in str(record)


async def test_a_user_that_holds_a_secret_is_refused(world: World) -> None:
    world.safety.block = ("AKIA",)
    error, record = await world.failure(user="AKIA7", conversation_id="c1", route="chat")
    assert (error.reason, error.field, record.user) == (Reason.CONTENT_BLOCKED, "user", "")


async def test_ids_need_one_check_together(world: World) -> None:
    await world.ask(route="chat")
    plain = len(world.safety.checked)
    world.safety.checked.clear()
    await world.ask(route="chat", messages=_calls("c1", "f", "c1"), user="u", conversation_id="c")
    inputs = [text for direction, text in world.safety.checked if direction == types_pb2.DIRECTION_INPUT]
    assert plain == 2  # the question and the answer
    assert sorted(inputs) == ["c\nc1\nf\nu", "one", "three", "{}"]


async def test_random_ids_need_no_check(world: World) -> None:
    identifier = "550e8400-e29b-41d4-a716-446655440000"
    call = f"chatcmpl-tool-{identifier.replace('-', '')}"
    await world.ask(route="chat", messages=_calls(call, "", call), user=identifier, conversation_id=identifier)
    inputs = [text for direction, text in world.safety.checked if direction == types_pb2.DIRECTION_INPUT]
    assert sorted(inputs) == ["one", "three", "{}"]


async def test_ids_are_checked_in_parts_within_the_policy_s_bound(world: World) -> None:
    policy = world.source.current.policies[0].model_copy(update={"max_input_characters": 10})
    world.source.replace(world.source.current.model_copy(update={"policies": (policy,)}))
    await world.ask("one", route="chat", user="u" * 9, conversation_id="c" * 9)
    inputs = [text for direction, text in world.safety.checked if direction == types_pb2.DIRECTION_INPUT]
    assert inputs == ["c" * 9, "u" * 9, "one"]


async def test_a_blocked_question_reaches_no_model_and_leaves_no_text(world: World) -> None:
    world.safety.block = ("bomb",)
    error, record = await world.failure("how to build a bomb")
    assert error.reason == Reason.CONTENT_BLOCKED
    assert error.field == "messages[0].content"
    assert "FAKE_BLOCKED" in error.message
    assert not world.modelserver.requests
    assert record.outcome == monitor_pb2.OUTCOME_BLOCKED
    assert "bomb" not in str(record)
    assert record.verdicts[0].findings[0].entity_type == "FAKE_BLOCKED"


async def test_a_block_takes_precedence_over_a_failing_search(world: World) -> None:
    world.safety.block = ("bomb",)
    world.safety.hold = asyncio.Event()
    world.retriever.error = Unavailable("down")
    failing = asyncio.create_task(world.failure("bomb"))
    await world.until(lambda: world.retriever.searches)
    world.safety.hold.set()
    error, _ = await failing
    assert error.reason == Reason.CONTENT_BLOCKED


async def test_nothing_is_sent_to_a_model_before_the_verdict(world: World) -> None:
    world.safety.hold = asyncio.Event()
    asking = asyncio.create_task(world.ask(route="chat"))
    await world.until(lambda: world.safety.checked)
    assert not world.modelserver.requests
    world.safety.hold.set()
    await asking
    assert world.modelserver.requests


@pytest.mark.parametrize(
    ("breakage", "value"),
    [
        ("error", Unavailable("scanner down")),
        ("error", Internal("broke")),
        ("error", Overloaded("full")),
        ("scanners", ()),
        ("verdict_action", types_pb2.ACTION_UNSPECIFIED),
    ],
)
async def test_a_guardrail_that_cannot_check_the_question_fails_closed(
    world: World, breakage: str, value: object
) -> None:
    setattr(world.safety, breakage, value)
    error, record = await world.failure()
    assert error.reason == Reason.UNAVAILABLE
    assert "guardrail" in error.message
    assert not world.modelserver.requests
    assert record.outcome == monitor_pb2.OUTCOME_FAILED
    assert not record.input


async def test_a_guardrail_that_breaks_in_the_middle_ends_the_answer(world: World) -> None:
    world.modelserver.script = ["clean text, ", "and more of it"] * 20
    world.safety.stream_error_after = 200
    error, record = await world.failure(route="chat")
    assert error.reason == Reason.UNAVAILABLE
    assert record.error_reason == "UNAVAILABLE"
    assert record.output
    assert ("clean text, and more of it" * 20).startswith(record.output)


async def test_an_answer_without_a_verdict_is_an_error(world: World) -> None:
    world.modelserver.script = ["clean text"]
    world.safety.gives_verdicts = False
    error, record = await world.failure(route="chat")
    assert error.reason == Reason.UNAVAILABLE
    assert "without a verdict" in error.message
    assert record.error_reason == "UNAVAILABLE"


async def test_a_blocked_output_ends_the_answer_with_a_content_filter_and_stops_the_model(world: World) -> None:
    world.safety.block = ("bomb",)
    world.modelserver.script = ["This is fine. ", "Now the bomb", asyncio.Event(), " and what the model never says"]
    request = world.request(route="chat")
    answer = await world.send(request)
    assert "This is fine. Now".startswith(answer.text())
    assert answer.done.finish_reasons == [FILTERED]
    assert answer.verdicts[-1].action == types_pb2.ACTION_BLOCK
    assert answer.verdicts[-1].direction == types_pb2.DIRECTION_OUTPUT
    assert (await world.recorded(request.request_id)).outcome == monitor_pb2.OUTCOME_BLOCKED
    await world.until(lambda: not (world.modelserver.running))
    assert world.modelserver.cancelled == 1


async def test_masked_output_is_sent_and_recorded_masked(world: World) -> None:
    world.safety.mask = {"0912345678": "<PHONE>"}
    world.modelserver.script = ["Call 0912", "345", "678 now [1]"]
    request = world.request()
    answer = await world.send(request)
    assert answer.text() == "Call <PHONE> now [1]"
    assert answer.done.citations[0].start_offset == 17
    assert (await world.recorded(request.request_id)).output == "Call <PHONE> now [1]"


async def test_choices_are_checked_independently(world: World) -> None:
    def said(text: str, choice: int) -> modelserver_pb2.GenerateResponse:
        return modelserver_pb2.GenerateResponse(delta=text, choice=choice)

    world.safety.block = ("bomb",)
    world.modelserver.script = [said("good ", 0), said("bomb", 1), said("answer", 0)]
    answer = await world.ask(route="chat", sampling=types_pb2.Sampling(n=2))
    assert answer.text(0) == "good answer"
    assert answer.text(1) == ""
    assert answer.done.finish_reasons == [STOP, FILTERED]


def call_piece(arguments: str, **fields: Any) -> modelserver_pb2.GenerateResponse:
    return modelserver_pb2.GenerateResponse(tool_calls=[types_pb2.ToolCall(arguments_json=arguments, **fields)])


CALLING = modelserver_pb2.GenerateResponse(finish_reason=types_pb2.FINISH_REASON_TOOL_CALLS)
WEATHER = types_pb2.Tool(name="weather")


async def test_a_tool_call_is_released_whole_and_masked(world: World) -> None:
    world.safety.mask = {"0912345678": "<PHONE>"}
    world.modelserver.script = [
        call_piece('{"to": "0912', id="c1", name="weather"),
        call_piece('345678"}'),
        CALLING,
    ]
    answer = await world.ask(route="chat", tools=[WEATHER])
    (call,) = answer.tool_calls
    assert (call.id, call.name, call.arguments_json) == ("c1", "weather", '{"to": "<PHONE>"}')
    assert answer.done.finish_reasons == [types_pb2.FINISH_REASON_TOOL_CALLS]
    assert answer.verdicts[-1].action == types_pb2.ACTION_MASK


@pytest.mark.parametrize("mask", [{}, {"0912345678": '"'}], ids=["blocked", "mask breaks the JSON"])
async def test_a_tool_call_that_cannot_be_released_ends_the_choice(world: World, mask: dict[str, str]) -> None:
    world.safety.mask = mask
    world.safety.block = () if mask else ("0912345678",)
    world.modelserver.script = [call_piece('{"to": "0912345678"}', id="c1", name="weather"), CALLING]
    answer = await world.ask(route="chat", tools=[WEATHER])
    assert not answer.tool_calls
    assert answer.done.finish_reasons == [FILTERED]


async def test_a_call_of_a_tool_that_was_not_offered_is_an_upstream_s_failure(world: World) -> None:
    world.modelserver.script = [call_piece("{}", id="c1", name="rm"), CALLING]
    error, _ = await world.failure(route="chat", tools=[WEATHER])
    assert error.reason == Reason.UPSTREAM_FAILED


def with_logprob(text: str) -> modelserver_pb2.GenerateResponse:
    return modelserver_pb2.GenerateResponse(delta=text, logprobs=[types_pb2.TokenLogprob(token=text, logprob=-0.5)])


async def test_logprobs_are_sent_with_their_text_and_end_at_the_first_mask(world: World) -> None:
    words = ["Call ", "me at ", "0912345678", " or ", "write"]
    world.modelserver.script = [with_logprob(word) for word in words]
    sampling = types_pb2.Sampling(logprobs=True)
    answer = await world.ask(route="chat", sampling=sampling)
    assert [t.token for e in answer.events for t in e.delta.logprobs] == words
    world.safety.mask = {"0912345678": "<PHONE>"}
    answer = await world.ask(route="chat", sampling=sampling)
    assert answer.text() == "Call me at <PHONE> or write"
    tokens = [t.token for e in answer.events for t in e.delta.logprobs]
    assert tokens == words[: len(tokens)]
    assert len(tokens) <= 2


async def test_when_the_first_model_fails_the_next_one_answers_and_both_are_recorded(world: World) -> None:
    world.modelserver.scripts["small"] = [UpstreamFailed("down")]
    request = world.request(route="chat")
    answer = await world.send(request)
    assert answer.done.model == "spare"
    record = await world.recorded(request.request_id)
    assert [a.model for a in record.attempts] == ["small", "spare"]
    assert record.attempts[0].error_reason
    assert record.model == "spare"


async def test_when_every_model_fails_the_error_is_returned_and_recorded(world: World) -> None:
    world.modelserver.script = [UpstreamFailed("down")]
    error, record = await world.failure(route="chat")
    assert error.reason == Reason.UPSTREAM_FAILED
    assert record.outcome == monitor_pb2.OUTCOME_FAILED
    assert record.error_reason == "UPSTREAM_FAILED"
    assert record.input[0].content


async def test_a_search_that_fails_ends_the_answer(world: World) -> None:
    world.retriever.error = Unavailable("The index is being opened.")
    error, _ = await world.failure()
    assert error.reason == Reason.UNAVAILABLE
    assert not world.modelserver.requests


async def test_an_answer_beyond_its_route_s_timeout_ends_with_deadline_exceeded(world: World) -> None:
    world.modelserver.script = ["first ", asyncio.Event()]
    error, record = await world.failure(route="quick")
    assert error.reason == Reason.DEADLINE_EXCEEDED
    assert record.outcome == monitor_pb2.OUTCOME_FAILED


async def test_a_cancelled_request_stops_the_model_and_the_guardrail_and_is_recorded(world: World) -> None:
    world.modelserver.script = ["What was said before ", "the client left, ", asyncio.Event()]
    request = world.request(route="chat")
    async for event in channels.stream(world.stub.Answer, request, timeout_seconds=20):
        if event.HasField("delta"):
            break
    record = await world.recorded(request.request_id)
    assert record.outcome == monitor_pb2.OUTCOME_CANCELLED
    assert record.error_reason == "CANCELLED"
    assert "What was said before the client left, ".startswith(record.output)
    assert record.output
    assert [a.model for a in record.attempts] == ["small"]
    await world.until(lambda: not (world.modelserver.running or world.safety.streams_running))
    assert world.modelserver.cancelled == 1


async def test_a_client_that_does_not_read_slows_the_model_down(world: World) -> None:
    world.modelserver.script = ["0123456789" * 1000] * 5000
    shown = testing.metadata("/genaifactory.orchestrator.v1.OrchestratorService/Answer")
    call = world.stub.Answer(world.request(route="chat"), metadata=shown, timeout=20)
    while isinstance(event := await call.read(), orchestrator_pb2.AnswerResponse) and not event.HasField("delta"):
        pass
    sent = -1
    while sent != world.modelserver.sent:
        sent = world.modelserver.sent
        await asyncio.sleep(0.3)  # long enough for hundreds of pieces, were they not held back
    assert 0 < sent < 2500, "the model has sent less than half of 50 MB"
    call.cancel()


async def test_with_a_full_outbox_requests_are_refused_before_any_work(make_world: MakeWorld) -> None:
    async with make_world(outbox={"max_records": 1, "gather_seconds": 0, "flush_seconds": 0}) as world:
        world.monitor.error = Unavailable("down")
        await world.ask(route="chat")
        checked = len(world.safety.checked)
        with pytest.raises(FactoryError) as caught:
            await world.ask(route="chat")
        assert caught.value.reason == Reason.OVERLOADED
        assert caught.value.retry_after_seconds
        assert len(world.safety.checked) == checked


async def test_the_last_event_is_sent_after_the_record_is_on_disk(make_world: MakeWorld) -> None:
    async with make_world(outbox={"flush_seconds": 0, "gather_seconds": 0}) as world:
        world.monitor.error = Unavailable("down")
        request = world.request(route="chat")
        await world.send(request)
    async with make_world() as world:
        assert (await world.recorded(request.request_id)).output == "You have 14 days [1]."


async def test_routes_that_a_tenant_may_not_use_do_not_exist_for_it(world: World) -> None:
    for route in ("nothing", "other", "others-talk"):
        with pytest.raises(FactoryError) as caught:
            await world.ask(route=route)
        assert caught.value.reason == Reason.MODEL_NOT_FOUND
        assert caught.value.field == "model"
    assert not world.retriever.searches


async def test_the_retriever_gets_the_caller_who_needs_the_permission(world: World) -> None:
    await world.ask()
    assert (world.retriever.callers[0].tenant, world.retriever.callers[0].groups) == ("acme", ("staff",))
    act_as(replace(CALLER, permissions=("embed",)))
    with pytest.raises(FactoryError) as caught:
        await world.ask()
    assert caught.value.reason == Reason.PERMISSION_DENIED


async def test_a_follow_up_is_searched_with_the_question_before_it(world: World) -> None:
    history = [user("How many days of annual leave?"), assistant("14.")]
    await world.ask(messages=[*history, user("And for managers?")])
    assert world.retriever.searches[-1].query == "How many days of annual leave?\nAnd for managers?"
    await world.ask(messages=[*history, user("Where do employees report travel expenses after business trips?")])
    assert world.retriever.searches[-1].query.startswith("Where")


async def test_texts_are_embedded_and_recorded_without_their_text(world: World) -> None:
    from genaifactory.orchestrator.v1 import orchestrator_pb2

    request = orchestrator_pb2.EmbedRequest(request_id="embed-1", model="minilm", texts=["abc", "de"])
    response = await channels.unary(world.stub.Embed, request, timeout_seconds=5)
    assert [list(e.values) for e in response.embeddings] == [[3.0, 1.0], [2.0, 1.0]]
    assert response.usage.prompt_tokens == 2
    record = await world.recorded("embed-1")
    assert (record.task, record.model, record.outcome) == ("embedding", "minilm", monitor_pb2.OUTCOME_ANSWERED)
    assert not record.input


async def test_sixty_four_concurrent_answers_are_all_correct(world: World) -> None:
    answers = await asyncio.gather(*(world.ask(f"question {i} about leave") for i in range(64)))
    assert {answer.text() for answer in answers} == {"You have 14 days [1]."}
    await world.monitor.arrived(64)
