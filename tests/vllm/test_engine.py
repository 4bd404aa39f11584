"""Everything that the engine does, on real vLLM: a server with a tiny Llama, three adapters and an embedding model."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from genaifactory.modelserver.v1 import modelserver_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import identity, testing
from genaifactory_common.errors import (
    ContextTooLong,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    RateLimited,
    Unimplemented,
)
from genaifactory_common.testing import struct
from tests.vllm.processes import Answer, Client, ModelServer, Rendered, chat, connected, prompt

STOP, LENGTH, TOOL_CALLS = (
    types_pb2.FINISH_REASON_STOP,
    types_pb2.FINISH_REASON_LENGTH,
    types_pb2.FINISH_REASON_TOOL_CALLS,
)
QUESTION = "How many days of annual leave do I have?"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Huế", "Hà Nội"]}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


def tool(name: str = "weather") -> types_pb2.Tool:
    return types_pb2.Tool(name=name, description="Tells the weather.", parameters=struct(SCHEMA))


async def quiet(server: ModelServer) -> None:
    """Until the engine works on nothing."""
    async with asyncio.timeout(20):
        while server.metric("genaifactory_modelserver_vllm_num_requests_running"):  # noqa: ASYNC110  # another process
            await asyncio.sleep(0.05)


async def busy(server: ModelServer, requests: int) -> None:
    """Until so many are accepted; asked for in a thread, since the streams of the same loop go on."""
    name = "genaifactory_modelserver_requests_running"
    async with asyncio.timeout(60):
        while await asyncio.to_thread(server.metric, name) < requests:  # noqa: ASYNC110  # another process
            await asyncio.sleep(0.1)


# --- streams ------------------------------------------------------------------------------------


async def test_text_streams_as_it_is_written_and_adds_up_to_the_whole(server: ModelServer) -> None:
    async with connected(server) as client:
        answer = await client.ask(chat(QUESTION, max_tokens=40))
        again = await client.ask(chat(QUESTION, max_tokens=40))
    assert answer.text == again.text != ""
    assert len([m for m in answer.messages if m.delta]) > 10  # steps, not one piece at the end
    assert answer.usage.completion_tokens == 40
    assert answer.finish_reason == LENGTH
    assert [m.HasField("usage") for m in answer.messages].count(True) == 1


async def test_requests_run_together_and_a_short_one_overtakes_a_long_one(server: ModelServer) -> None:
    async with connected(server) as client:
        order: list[str] = []

        async def ask(name: str, tokens: int) -> None:
            await client.ask(prompt(f"{name} days", max_tokens=tokens, sampling={"seed": 1, "temperature": 1.0}))
            order.append(name)

        async with asyncio.TaskGroup() as group:
            group.create_task(ask("long", 400))
            await asyncio.sleep(0)
            for i in range(8):
                group.create_task(ask(f"short {i}", 8))
    assert order[-1] == "long"


async def test_a_client_that_hangs_up_stops_the_work_at_the_engine(server: ModelServer) -> None:
    async with connected(server) as client:
        await quiet(server)
        cancelled = server.metric("genaifactory_modelserver_requests_cancelled_total", model="tiny", cause="client")
        stream = client.stream(prompt("Annual leave", max_tokens=480, sampling={"temperature": 1.0, "seed": 3}))
        await anext(stream)
        await stream.aclose()
        await quiet(server)
        tokens = server.metric("genaifactory_modelserver_vllm_generation_tokens_total")
        await asyncio.sleep(0.3)  # nothing more is written after that
        assert server.metric("genaifactory_modelserver_vllm_generation_tokens_total") == tokens
        now = server.metric("genaifactory_modelserver_requests_cancelled_total", model="tiny", cause="client")
        assert now == cancelled + 1


async def test_a_deadline_ends_the_work(server: ModelServer) -> None:
    async with connected(server) as client:
        with pytest.raises(DeadlineExceeded):
            await client.ask(prompt("Leave", max_tokens=480, sampling={"temperature": 1.0, "seed": 4}), seconds=0.15)
        await quiet(server)


# --- prompts ------------------------------------------------------------------------------------


async def test_a_conversation_goes_through_the_models_chat_template(server: ModelServer, rendered: Rendered) -> None:
    """rendered: the template as transformers applies it."""
    messages = [{"role": "user", "content": QUESTION}]
    async with connected(server) as client:
        talked = await client.ask(chat(QUESTION))
        raw = await client.ask(prompt(rendered(messages)))
    assert talked.text == raw.text
    # A raw prompt gets the tokenizer's own begin mark; the template writes it itself.
    assert abs(talked.usage.prompt_tokens - raw.usage.prompt_tokens) <= 1


async def test_documents_reach_a_template_that_takes_them(server: ModelServer) -> None:
    passages = [types_pb2.Passage(title="Leave", text="Employees have 12 days of annual leave each year.")]
    async with connected(server) as client:
        without = await client.ask(chat(QUESTION))
        grounded = await client.ask(chat(QUESTION, documents=passages))
    assert grounded.usage.prompt_tokens > without.usage.prompt_tokens + 10


async def test_variables_reach_a_template_that_takes_them(server: ModelServer, rendered: Rendered) -> None:
    """rendered: the template as transformers applies it."""
    variables = {"tone": "brief", "unknown": 1}
    async with connected(server) as client:
        talked = await client.ask(chat(QUESTION, sampling={"chat_template_kwargs": variables}))
        raw = await client.ask(prompt(rendered([{"role": "user", "content": QUESTION}], tone="brief")))
        plain = await client.ask(chat(QUESTION))
    assert talked.text == raw.text
    assert talked.usage.prompt_tokens > plain.usage.prompt_tokens


async def test_an_answer_that_was_begun_is_continued_from_its_end(server: ModelServer) -> None:
    async with connected(server) as client:
        whole = await client.ask(chat(QUESTION, max_tokens=30))
        begun = whole.text[: len(whole.text) // 2].rstrip()
        rest = await client.ask(chat(QUESTION, begun, max_tokens=8, continue_final_message=True))
    assert rest.text
    assert not rest.text.startswith(begun)
    assert rest.usage.prompt_tokens > whole.usage.prompt_tokens


async def test_a_prompt_that_does_not_fit_is_refused_with_its_size(server: ModelServer) -> None:
    async with connected(server) as client:
        for request, field in ((prompt("leave " * 2000), "prompt"), (chat("leave " * 2000), "messages")):
            with pytest.raises(ContextTooLong, match="context of 512 tokens") as raised:
                await client.ask(request)
            assert raised.value.field == field


async def test_an_answer_ends_where_the_context_does(server: ModelServer) -> None:
    async with connected(server) as client:
        answer = await client.ask(prompt("annual leave " * 50, max_tokens=5000, sampling={"temperature": 1, "seed": 8}))
    if answer.finish_reason == LENGTH:
        assert answer.usage.prompt_tokens + answer.usage.completion_tokens == 512
    assert answer.finish_reason in (LENGTH, STOP)
    assert answer.usage.completion_tokens < 512


# --- sampling -----------------------------------------------------------------------------------


async def test_a_seed_makes_sampling_repeatable(server: ModelServer) -> None:
    def sampled(seed: int) -> modelserver_pb2.GenerateRequest:
        return prompt("The office", sampling={"temperature": 1.5, "seed": seed, "top_p": 0.95, "top_k": 50})

    async with connected(server) as client:
        first, second, other = [await client.ask(sampled(seed)) for seed in (11, 11, 12)]
    assert first.text == second.text != other.text


async def test_min_p_and_the_repetition_penalty_choose_among_tokens(server: ModelServer) -> None:
    def sampled(**sampling: float) -> modelserver_pb2.GenerateRequest:
        return prompt("The office", max_tokens=40, sampling={"seed": 11, **sampling})

    async with connected(server) as client:
        greedy = await client.ask(sampled(temperature=0.0))
        free = await client.ask(sampled(temperature=1.5))
        narrowed = await client.ask(sampled(temperature=1.5, min_p=1.0))  # the best candidate alone
        unlike = await client.ask(sampled(temperature=0.0, repetition_penalty=5.0))
    assert narrowed.text == greedy.text != free.text
    assert unlike.text != greedy.text


async def test_a_seed_holds_when_a_prompt_is_computed_in_parts_beside_others(server: ModelServer, llama: Path) -> None:
    """64 prompts of 340 tokens are more than a step takes: some are computed in parts. vLLM's own worker dies of it."""
    tokenizer = Tokenizer.from_file(str(llama / "tokenizer.json"))  # its merges change with the text that it is made of
    text = tokenizer.decode(tokenizer.encode("annual leave " * 200).ids[:336])
    requests = [prompt(f"{i} {text}", max_tokens=40, sampling={"temperature": 1.3, "seed": i}) for i in range(64)]
    async with connected(server) as client:
        alone = [(await client.ask(request)).text for request in requests[:6]]
        together = await asyncio.gather(*(client.ask(request) for request in requests))
    assert [answer.text for answer in together[:6]] == alone


async def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(server: ModelServer) -> None:
    async with connected(server) as client:
        whole = await client.ask(prompt("Annual leave", max_tokens=60))
        stop = whole.text[len(whole.text) // 2 :][:5]
        cut = await client.ask(prompt("Annual leave", max_tokens=60, sampling={"stop": [stop]}))
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == STOP


async def test_n_answers_are_each_finished_and_counted_once(server: ModelServer) -> None:
    request = prompt("Working hours", max_tokens=12, sampling={"n": 3, "temperature": 1.2, "seed": 5})
    async with connected(server) as client:
        answer = await client.ask(request)
    assert len(answer.texts()) == 3
    assert len(set(answer.texts())) > 1
    finished = [message.choice for message in answer.messages if message.finish_reason]
    assert sorted(finished) == [0, 1, 2]
    assert answer.usage.completion_tokens <= 36
    assert answer.messages[-1].HasField("usage")


async def test_log_probabilities_come_with_every_token_and_its_rivals(server: ModelServer) -> None:
    request = prompt("Annual leave", max_tokens=10, sampling={"logprobs": True, "top_logprobs": 3})
    async with connected(server) as client:
        answer = await client.ask(request)
        bare = await client.ask(prompt("Annual leave", max_tokens=10, sampling={"logprobs": True}))
    assert len(answer.logprobs) == answer.usage.completion_tokens == 10
    for each in answer.logprobs:
        values = [rival.logprob for rival in each.top]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert each.logprob == pytest.approx(values[0])  # greedy: the likeliest was taken
        assert sum(map(math.exp, values)) <= 1.0001
    assert "".join(each.token for each in answer.logprobs).strip() == answer.text.strip()
    assert [len(each.top) for each in bare.logprobs] == [0] * 10


async def test_penalties_change_what_repeats(server: ModelServer) -> None:
    async with connected(server) as client:
        plain = await client.ask(prompt("day day day day day", max_tokens=60))
        fresh = await client.ask(
            prompt("day day day day day", max_tokens=60, sampling={"frequency_penalty": 2.0, "presence_penalty": 2.0})
        )
    assert plain.text != fresh.text


# --- structured output --------------------------------------------------------------------------


async def test_json_follows_its_schema(server: ModelServer) -> None:
    form = types_pb2.OutputFormat(json_schema=struct(SCHEMA))
    async with connected(server) as client:
        answer = await client.ask(chat("Where?", max_tokens=200, output_format=form))
    value = json.loads(answer.text)
    assert value.keys() == {"city", "days"}
    assert value["city"] in ("Huế", "Hà Nội")
    assert 0 <= value["days"] <= 9
    assert answer.finish_reason == STOP


async def test_any_json_object_is_one(server: ModelServer) -> None:
    form = types_pb2.OutputFormat(json_object=True)
    sampling = {"temperature": 1.0, "seed": 2}
    async with connected(server) as client:
        answer = await client.ask(chat("Anything", max_tokens=400, output_format=form, sampling=sampling))
    assert answer.text.lstrip().startswith("{")
    if answer.finish_reason == STOP:
        assert isinstance(json.loads(answer.text), dict)


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        (types_pb2.OutputFormat(regex=r"(vi|en)-[0-9]{3}"), r"(vi|en)-[0-9]{3}"),
        (types_pb2.OutputFormat(choice=types_pb2.Choices(values=["có", "không"])), "có|không"),
        (types_pb2.OutputFormat(grammar='root ::= "a" ("b" | "c") "d"'), "a[bc]d"),
    ],
)
async def test_output_keeps_to_its_form(server: ModelServer, form: types_pb2.OutputFormat, pattern: str) -> None:
    async with connected(server) as client:
        answer = await client.ask(chat("Which?", max_tokens=60, output_format=form))
    assert re.fullmatch(pattern, answer.text)
    assert answer.finish_reason == STOP


@pytest.mark.parametrize(
    ("form", "field"),
    [
        (types_pb2.OutputFormat(json_schema=struct({"type": "nothing"})), "output_format.json_schema"),
        (types_pb2.OutputFormat(json_schema=struct({"$ref": "#/nowhere"})), "output_format.json_schema"),
        (types_pb2.OutputFormat(regex="((("), "output_format.regex"),
        (types_pb2.OutputFormat(grammar="root ::= ("), "output_format.grammar"),
    ],
)
async def test_a_form_that_nothing_can_have_is_refused_by_its_field(
    server: ModelServer, form: types_pb2.OutputFormat, field: str
) -> None:
    async with connected(server) as client:
        with pytest.raises(InvalidArgument, match="cannot be kept to") as raised:
            await client.ask(chat("Which?", output_format=form), seconds=20)
        assert raised.value.field == field
        assert (await client.ask(chat("And now?"))).text  # the server lives on


# --- tools --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choice",
    [
        types_pb2.ToolChoice(mode=types_pb2.ToolChoice.MODE_REQUIRED),
        types_pb2.ToolChoice(mode=types_pb2.ToolChoice.MODE_NAMED, name="weather"),
    ],
)
async def test_a_tool_that_must_be_called_is_called_with_arguments_of_its_schema(
    server: ModelServer, choice: types_pb2.ToolChoice
) -> None:
    request = chat("What is the weather?", max_tokens=250, tools=[tool()], tool_choice=choice)
    async with connected(server) as client:
        answer = await client.ask(request)
    identifier, name, arguments = answer.tool_calls()[0]  # this model would go on with calls as long as it may
    assert identifier
    assert name == "weather"
    assert json.loads(arguments)["city"] in ("Huế", "Hà Nội")
    assert answer.text.strip() == ""
    assert answer.finish_reason == (TOOL_CALLS if len(answer.tool_calls()) == 1 else LENGTH)


async def test_a_call_that_the_model_writes_by_itself_is_read_out_of_its_text(server: ModelServer) -> None:
    """The form stands for a model that has learnt to call tools; what is tested is the reading."""
    call = r'<tool_call>\n\{"name": "weather", "arguments": \{"city": "Huế", "days": [1-3]\}\}\n</tool_call>'
    request = chat(
        "What is the weather?", max_tokens=200, tools=[tool()], output_format=types_pb2.OutputFormat(regex=call)
    )
    async with connected(server) as client:
        answer = await client.ask(request)
    ((identifier, name, arguments),) = answer.tool_calls()
    assert (bool(identifier), name) == (True, "weather")
    assert json.loads(arguments)["city"] == "Huế"
    assert "tool_call" not in answer.text
    assert answer.finish_reason == TOOL_CALLS


async def test_tools_that_are_not_to_be_called_change_nothing(server: ModelServer) -> None:
    none = types_pb2.ToolChoice(mode=types_pb2.ToolChoice.MODE_NONE)
    async with connected(server) as client:
        plain = await client.ask(chat(QUESTION))
        with_tools = await client.ask(chat(QUESTION, tools=[tool()], tool_choice=none))
    assert with_tools.text == plain.text


async def test_results_of_tools_are_part_of_the_conversation(server: ModelServer) -> None:
    call = types_pb2.ToolCall(id="c1", name="weather", arguments_json='{"city": "Huế"}')
    messages = [
        types_pb2.Message(role=types_pb2.ROLE_USER, content="Weather?"),
        types_pb2.Message(role=types_pb2.ROLE_ASSISTANT, tool_calls=[call]),
        types_pb2.Message(role=types_pb2.ROLE_TOOL, tool_call_id="c1", content="It rains in Huế."),
    ]
    request = chat("", tools=[tool()])
    request.conversation.CopyFrom(modelserver_pb2.Conversation(messages=messages))
    async with connected(server) as client:
        answer = await client.ask(request)
    assert answer.usage.prompt_tokens > 60


# --- the engine's economy -----------------------------------------------------------------------


async def test_a_prompts_beginning_is_computed_once_for_each_tenant(server: ModelServer) -> None:
    beginning = "The handbook says that employees who work in the field carry a hardware key with them. " * 4
    other = identity.Caller("globex", "eve", "eve", "user", permissions=("chat",))
    async with connected(server) as client:
        first = await client.ask(prompt(f"{beginning} Why?"))
        second = await client.ask(prompt(f"{beginning} Who?"))
        testing.act_as(other)
        elsewhere = await client.ask(prompt(f"{beginning} When?"))
    assert first.usage.cached_prompt_tokens == 0
    assert second.usage.cached_prompt_tokens >= 32
    assert elsewhere.usage.cached_prompt_tokens == 0  # its time to the first token tells nothing of the other's


async def test_interactive_requests_go_before_batch(server: ModelServer) -> None:
    """Of 140 requests 64 run; the interactive one comes last and goes before all that wait."""
    finished: list[str] = []

    async def ask(client: Client, name: str, priority: modelserver_pb2.Priority.ValueType, tokens: int) -> None:
        sampling = {"temperature": 1.0, "seed": 6}
        await client.ask(prompt(f"{name} leave", max_tokens=tokens, priority=priority, sampling=sampling))
        finished.append(name)

    async with connected(server) as client, asyncio.TaskGroup() as group:
        for tenant in ("one", "two"):
            testing.act_as(identity.Caller(tenant, "b", "b", "user", permissions=("chat",)))
            for i in range(70):
                group.create_task(ask(client, f"{tenant} {i}", modelserver_pb2.PRIORITY_BATCH, 80))
        await busy(server, 110)
        group.create_task(ask(client, "person", modelserver_pb2.PRIORITY_INTERACTIVE, 10))
    assert finished.index("person") < 95


async def test_a_tenant_has_its_share_and_no_more(server: ModelServer) -> None:
    greedy = identity.Caller("greedy", "g", "g", "user", permissions=("chat",))
    async with connected(server, greedy) as client:
        sampling = {"temperature": 1.0, "seed": 9}
        work = [asyncio.create_task(client.ask(prompt("leave", max_tokens=200, sampling=sampling))) for _ in range(100)]
        await busy(server, 100)
        with pytest.raises(RateLimited, match="100 requests") as raised:
            await client.ask(prompt("one more"))
        assert raised.value.retry_after_seconds is not None
        testing.act_as()
        assert (await client.ask(prompt("another tenant", max_tokens=2))).usage.completion_tokens == 2
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        await quiet(server)


async def test_every_metric_of_the_dashboard_is_there(server: ModelServer) -> None:
    async with connected(server) as client:
        await client.ask(prompt("Annual leave"))
    board = Path(__file__).parents[2] / "charts" / "genai-factory" / "dashboards" / "modelserver.json"
    asked = set(re.findall(r"genaifactory_modelserver_vllm_\w+", board.read_text(encoding="utf-8")))
    there = {sample.partition("{")[0] for sample in server.metrics()}
    assert asked
    assert asked <= there


# --- adapters -----------------------------------------------------------------------------------


async def test_an_adapter_answers_in_its_own_way_and_the_base_model_in_its_own(server: ModelServer) -> None:
    async with connected(server) as client:
        texts = {model: (await client.ask(prompt("Annual leave", model))).text for model in ("tiny", "a", "b", "c")}
        models = await client.models()
    assert len(set(texts.values())) == 4
    assert {name: models[name].base_model for name in ("tiny", "a", "b", "c")} == {
        "tiny": "", "a": "tiny", "b": "tiny", "c": "tiny",
    }  # fmt: skip
    assert models["tiny"].context_tokens == 512
    assert all(model.state == modelserver_pb2.MODEL_STATE_READY for model in models.values())


async def test_an_adapter_goes_to_the_one_engine_that_takes_adapters(
    server: ModelServer, adapters: dict[str, Path]
) -> None:
    async with connected(server) as client:
        await client.load("like-a", adapters["a"])  # the embedding model beside it takes none, and is not meant
        texts = [(await client.ask(prompt("Annual leave", model))).text for model in ("a", "like-a")]
        await client.unload("like-a")
        assert texts[0] == texts[1]
        assert "like-a" not in await client.models()


async def test_only_who_may_operate_loads_adapters(server: ModelServer) -> None:
    async with connected(server, testing.CALLER) as client:
        for work in (client.load("x", "/nowhere"), client.unload("a")):
            with pytest.raises(PermissionDenied, match="operate"):
                await work


# --- embeddings ---------------------------------------------------------------------------------


async def test_texts_become_vectors_and_alike_texts_alike_vectors(server: ModelServer) -> None:
    async with connected(server) as client:
        found = await client.embed("embedder", "annual leave", "annual leave", "Pin của cảm biến")
        models = await client.models()
    first, same, other = [list(each.values) for each in found.embeddings]
    assert len(first) == models["embedder"].embedding_dimensions > 0
    assert first == pytest.approx(same, abs=1e-4)
    assert first != pytest.approx(other, abs=1e-3)
    assert math.fsum(value * value for value in first) == pytest.approx(1, abs=1e-3)
    assert found.usage.prompt_tokens >= 6


async def test_many_texts_keep_their_order(server: ModelServer) -> None:
    texts = [f"document number {i}" for i in range(150)]
    async with connected(server) as client:
        together = await client.embed("embedder", *texts)
        for i in (0, 77, 149):
            alone = await client.embed("embedder", texts[i])
            assert list(alone.embeddings[0].values) == pytest.approx(list(together.embeddings[i].values), abs=1e-4)


async def test_a_text_that_does_not_fit_is_named(server: ModelServer) -> None:
    async with connected(server) as client:
        with pytest.raises(ContextTooLong) as raised:
            await client.embed("embedder", "short", "long " * 3000)
        assert raised.value.field == "texts[1]"


# --- wrong requests -----------------------------------------------------------------------------


async def test_a_model_is_asked_for_what_it_can_do(server: ModelServer) -> None:
    async with connected(server) as client:
        with pytest.raises(NotFound, match="There is no model 'huge'; this server has: a, b, c, embedder, tiny"):
            await client.ask(prompt("x", "huge"))
        with pytest.raises(InvalidArgument, match="embeds; it does not generate"):
            await client.ask(prompt("x", "embedder"))
        with pytest.raises(InvalidArgument, match="generates; it does not embed"):
            await client.embed("tiny", "x")
        with pytest.raises(Unimplemented, match="cannot sleep"):
            await _sleep(client)


async def test_odd_requests_amid_sensible_ones_leave_the_server_as_it_was(server: ModelServer) -> None:
    """Every kind of nonsense at once, in a mix with sense; nothing is internal, and sense is answered."""
    odd = itertools.cycle(
        [
            prompt("x" * 5000),
            prompt("x", "huge"),
            chat("x", output_format=types_pb2.OutputFormat(regex="(((")),
            chat("x", output_format=types_pb2.OutputFormat(json_schema=struct({"type": "nothing"}))),
            chat("x", tools=[tool()], tool_choice=types_pb2.ToolChoice(mode=types_pb2.ToolChoice.MODE_NAMED, name="n")),
        ]
    )
    async with connected(server) as client:
        expected = (await client.ask(prompt("Annual leave"))).text
        for _ in range(10):
            work = [client.ask(next(odd)) for _ in range(20)] + [client.ask(prompt("Annual leave"))]
            outcomes = await asyncio.gather(*work, return_exceptions=True)
            assert isinstance(outcomes[-1], Answer)
            assert outcomes[-1].text == expected
            kinds = {type(each) for each in outcomes[:-1]}
            assert kinds == {ContextTooLong, NotFound, InvalidArgument}


async def _sleep(client: Client) -> None:
    from genaifactory_common import channels

    await channels.unary(client.stub.Sleep, modelserver_pb2.SleepRequest(model="tiny"), timeout_seconds=10)
