"""A model behind an OpenAI-compatible API: requests, responses, failures and connections."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from genaifactory.types.v1 import types_pb2
from genaifactory_common import errors, specs
from genaifactory_common.settings import SECRETS_DIR
from genaifactory_common.testing import openai_upstream, struct
from genaifactory_common.testing.openai_upstream import Reply, Step, Upstream, answer, chunk, ending, failure, text
from genaifactory_orchestrator.models import openai
from genaifactory_orchestrator.models.backend import (
    ChoiceFinished,
    Delta,
    Failure,
    Piece,
    Prompt,
    Remedy,
    Thinking,
    ToolCallDelta,
    Usage,
)
from genaifactory_orchestrator.models.openai import OpenAIBackend

KEY = "sk-very-secret"
QUESTION = types_pb2.Message(role=types_pb2.ROLE_USER, content="Xin chào?")
TLS = httpx2.create_ssl_context()

Begin = Callable[..., Awaitable[tuple[OpenAIBackend, Upstream]]]


@pytest.fixture
async def begin() -> AsyncIterator[Begin]:
    async with AsyncExitStack() as stack:

        async def start(
            *replies: Reply, path: str = "", key: str = KEY, environ: Mapping[str, str] | None = None, **spec: Any
        ) -> tuple[OpenAIBackend, Upstream]:
            upstream = await stack.enter_async_context(openai_upstream.serve(replies))
            fields = {
                "type": "openai",
                "base_url": upstream.base_url + path,
                "model": "m",
                "api_key_env": "KEY",
                **spec,
            }
            api = specs.OpenAIBackend.model_validate(fields | spec)
            backend = OpenAIBackend("big", api, {"KEY": key} if environ is None else environ, TLS)
            stack.push_async_callback(backend.close)
            return backend, upstream

        yield start


async def generate(backend: OpenAIBackend, prompt: Prompt | None = None, prefix: str = "") -> list[Piece]:
    stream = backend.generate(prompt or Prompt((QUESTION,)), prefix=prefix, timeout_seconds=5.0)
    async with aclosing(stream) as pieces:
        return [piece async for piece in pieces]


async def fail(backend: OpenAIBackend, prompt: Prompt | None = None) -> Failure:
    with pytest.raises(Failure) as caught:
        await generate(backend, prompt)
    return caught.value


class TestRequests:
    async def test_the_question_with_the_key_from_the_environment(self, begin: Begin) -> None:
        backend, upstream = await begin(answer("a"))
        await generate(backend)
        (seen,) = upstream.requests
        assert seen.path == "/v1/chat/completions"
        assert seen.headers["authorization"] == f"Bearer {KEY}"
        assert seen.body == {
            "model": "m",
            "messages": [{"role": "user", "content": "Xin chào?"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    async def test_a_slash_at_the_end_of_the_url_is_ignored(self, begin: Begin) -> None:
        backend, upstream = await begin(answer("a"), path="/")
        await generate(backend)
        assert upstream.requests[0].path == "/v1/chat/completions"

    async def test_no_key_where_none_is_configured(self, begin: Begin) -> None:
        backend, upstream = await begin(answer("a"), api_key_env=None)
        await generate(backend)
        assert "authorization" not in upstream.requests[0].headers

    async def test_a_newline_at_the_end_of_a_mounted_secret_is_ignored(self, begin: Begin) -> None:
        backend, upstream = await begin(answer("a"), key=KEY + "\n")
        await generate(backend)
        assert upstream.requests[0].headers["authorization"] == f"Bearer {KEY}"

    async def test_changes_of_a_key_in_a_file_are_followed(self, begin: Begin, tmp_path: Path) -> None:
        backend, upstream = await begin(answer("a"), answer("b"), environ={SECRETS_DIR: str(tmp_path)})
        for key in ("sk-old", "sk-new"):
            await asyncio.to_thread((tmp_path / "KEY").write_text, key + "\n")
            await generate(backend)
            assert upstream.requests[-1].headers["authorization"] == f"Bearer {key}"

    async def test_a_missing_or_malformed_file_of_a_key_is_an_operators_error(
        self, begin: Begin, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        backend, upstream = await begin(answer("a"), environ={SECRETS_DIR: str(tmp_path)})
        await fail(backend)
        assert "KEY holds no usable key" in caplog.text
        await asyncio.to_thread((tmp_path / "KEY").write_bytes, b"\xff")
        await fail(backend)
        assert "KEY in GENAIFACTORY_SECRETS_DIR cannot be read" in caplog.text
        assert upstream.requests == []

    @pytest.mark.parametrize("key", ["", "  ", "sk\r\nx-evil: 1", "khoá"])
    async def test_an_unusable_key_is_an_operators_error_and_is_not_sent(
        self, begin: Begin, key: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        backend, upstream = await begin(answer("a"), key=key)
        failed = await fail(backend)
        assert failed.remedy is Remedy.NEXT
        assert isinstance(failed.error, errors.UpstreamFailed)
        assert upstream.requests == []
        assert "the environment variable KEY holds no usable key" in caplog.text

    async def test_every_sampling_parameter(self, begin: Begin) -> None:
        backend, upstream = await begin(answer("a", "b"), dialect="vllm")
        sampling = types_pb2.Sampling(
            temperature=0.7, top_p=0.9, top_k=40, max_tokens=64, stop=["\n"], seed=-3, frequency_penalty=0.1,
            presence_penalty=-0.1, n=2, logprobs=True, top_logprobs=3, min_p=0.05, repetition_penalty=1.1,
            chat_template_kwargs=struct({"enable_thinking": False, "budget": 512, "tone": "brief"}),
        )  # fmt: skip
        stream = (*text("a"), chunk({"content": "b"}, index=1), chunk(index=1, finish="stop"), *ending())
        backend, upstream = await begin(Reply(stream), dialect="vllm")
        await generate(backend, Prompt((QUESTION,), sampling=sampling))
        sent = upstream.requests[0].body
        assert {name: sent[name] for name in sent if name not in ("model", "messages", "stream", "stream_options")} == {
            "temperature": 0.7, "top_p": 0.9, "top_k": 40, "max_tokens": 64, "stop": ["\n"], "seed": -3,
            "frequency_penalty": 0.1, "presence_penalty": -0.1, "n": 2, "logprobs": True, "top_logprobs": 3,
            "min_p": 0.05, "repetition_penalty": 1.1,
            "chat_template_kwargs": {"enable_thinking": False, "budget": 512, "tone": "brief"},
        }  # fmt: skip
        assert sent["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}

    async def test_a_temperature_of_zero_is_sent(self, begin: Begin) -> None:
        backend, upstream = await begin(answer("a"))
        await generate(backend, Prompt((QUESTION,), sampling=types_pb2.Sampling(temperature=0)))
        assert upstream.requests[0].body["temperature"] == 0

    async def test_the_dialect_openai_has_its_own_name_for_the_output_limit(self, begin: Begin) -> None:
        backend, upstream = await begin(answer("a"), dialect="openai")
        await generate(backend, Prompt((QUESTION,), sampling=types_pb2.Sampling(max_tokens=9)))
        assert upstream.requests[0].body["max_completion_tokens"] == 9
        assert "max_tokens" not in upstream.requests[0].body

    async def test_conversations_with_tools(self, begin: Begin) -> None:
        backend, upstream = await begin(answer("a"))
        call = types_pb2.ToolCall(id="c1", name="search", arguments_json='{"q": 1}')
        messages = (
            types_pb2.Message(role=types_pb2.ROLE_SYSTEM, content="Be brief."),
            types_pb2.Message(role=types_pb2.ROLE_USER, content="?", name="lan"),
            types_pb2.Message(role=types_pb2.ROLE_ASSISTANT, tool_calls=[call]),
            types_pb2.Message(role=types_pb2.ROLE_TOOL, content="42", tool_call_id="c1"),
        )
        tool = types_pb2.Tool(name="search", description="Finds.", strict=True)
        tool.parameters.update({"type": "object", "properties": {"q": {"type": "string", "maxLength": 5}}, "x": [1.5]})
        choice = types_pb2.ToolChoice(mode=types_pb2.ToolChoice.MODE_NAMED, name="search")
        await generate(backend, Prompt(messages, tools=(tool,), tool_choice=choice))
        sent = upstream.requests[0].body
        assert sent["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "?", "name": "lan"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"q": 1}'}}
                ],
            },
            {"role": "tool", "content": "42", "tool_call_id": "c1"},
        ]
        parameters = {"type": "object", "properties": {"q": {"type": "string", "maxLength": 5}}, "x": [1.5]}
        function = {"name": "search", "description": "Finds.", "parameters": parameters, "strict": True}
        assert sent["tools"] == [{"type": "function", "function": function}]
        assert isinstance(sent["tools"][0]["function"]["parameters"]["properties"]["q"]["maxLength"], int)
        assert sent["tool_choice"] == {"type": "function", "function": {"name": "search"}}

    @pytest.mark.parametrize(
        ("mode", "sent"),
        [
            (types_pb2.ToolChoice.MODE_UNSPECIFIED, None),
            (types_pb2.ToolChoice.MODE_NONE, "none"),
            (types_pb2.ToolChoice.MODE_AUTO, "auto"),
            (types_pb2.ToolChoice.MODE_REQUIRED, "required"),
        ],
    )
    async def test_tool_choice(self, begin: Begin, mode: types_pb2.ToolChoice.Mode.ValueType, sent: str | None) -> None:
        backend, upstream = await begin(answer("a"))
        tool = types_pb2.Tool(name="search")
        await generate(backend, Prompt((QUESTION,), tools=(tool,), tool_choice=types_pb2.ToolChoice(mode=mode)))
        assert upstream.requests[0].body.get("tool_choice") == sent

    async def test_a_json_schema(self, begin: Begin) -> None:
        backend, upstream = await begin(answer("{}"))
        form = types_pb2.OutputFormat()
        form.json_schema.update({"type": "object"})
        await generate(backend, Prompt((QUESTION,), output_format=form))
        assert upstream.requests[0].body["response_format"] == {
            "type": "json_schema",
            "json_schema": {"name": "output", "schema": {"type": "object"}, "strict": True},
        }

    async def test_any_json_object(self, begin: Begin) -> None:
        backend, upstream = await begin(answer("{}"))
        await generate(backend, Prompt((QUESTION,), output_format=types_pb2.OutputFormat(json_object=True)))
        assert upstream.requests[0].body["response_format"] == {"type": "json_object"}

    @pytest.mark.parametrize(
        ("form", "sent"),
        [
            (types_pb2.OutputFormat(regex="a+"), {"regex": "a+"}),
            (types_pb2.OutputFormat(grammar="root ::= a"), {"grammar": "root ::= a"}),
            (types_pb2.OutputFormat(choice=types_pb2.Choices(values=["a", "b"])), {"choice": ["a", "b"]}),
        ],
        ids=["regex", "grammar", "choice"],
    )
    async def test_output_formats_that_only_vllm_supports(
        self, begin: Begin, form: types_pb2.OutputFormat, sent: dict[str, Any]
    ) -> None:
        backend, upstream = await begin(answer("a"), dialect="vllm")
        await generate(backend, Prompt((QUESTION,), output_format=form))
        assert upstream.requests[0].body["structured_outputs"] == sent
        backend, upstream = await begin(answer("a"))
        failed = await fail(backend, Prompt((QUESTION,), output_format=form))
        assert failed.error.field == "output_format"
        assert failed.remedy is Remedy.NEXT
        assert upstream.requests == []

    @pytest.mark.parametrize(
        "asked",
        [{"top_k": 5}, {"min_p": 0.1}, {"repetition_penalty": 1.1}, {"chat_template_kwargs": {"a": True}}],
        ids=str,
    )
    @pytest.mark.parametrize("dialect", ["compatible", "openai"])
    async def test_a_parameter_that_the_api_would_ignore_is_refused(
        self, begin: Begin, asked: dict[str, Any], dialect: str
    ) -> None:
        backend, upstream = await begin(answer("a"), dialect=dialect)
        failed = await fail(backend, Prompt((QUESTION,), sampling=types_pb2.Sampling(**asked)))
        assert isinstance(failed.error, errors.InvalidArgument)
        assert failed.error.field == f"sampling.{next(iter(asked))}"
        assert upstream.requests == []


class TestResponses:
    async def test_text_usage_and_the_end(self, begin: Begin) -> None:
        backend, _ = await begin(answer("Xin", " chào", usage=(11, 2)))
        assert await generate(backend) == [
            Delta("Xin"),
            Delta(" chào"),
            ChoiceFinished(types_pb2.FINISH_REASON_STOP),
            Usage(11, 2),
        ]

    @pytest.mark.parametrize("size", [1, 7, 1000])
    async def test_text_that_arrives_in_pieces_of_any_size_with_comments(self, begin: Begin, size: int) -> None:
        events = [step for step in (*text("Xin", " chào"), *ending()) if isinstance(step, bytes)]
        stream = b": hi\r\n\r\n" + b"".join(events).replace(b"\n", b"\r\n")
        backend, _ = await begin(Reply(tuple(stream[i : i + size] for i in range(0, len(stream), size))))
        pieces = await generate(backend)
        assert [piece.text for piece in pieces if isinstance(piece, Delta)] == ["Xin", " chào"]

    @pytest.mark.parametrize(
        ("reason", "meaning"),
        [
            ("stop", types_pb2.FINISH_REASON_STOP),
            ("length", types_pb2.FINISH_REASON_LENGTH),
            ("tool_calls", types_pb2.FINISH_REASON_TOOL_CALLS),
            ("function_call", types_pb2.FINISH_REASON_TOOL_CALLS),
            ("content_filter", types_pb2.FINISH_REASON_CONTENT_FILTER),
            ("end_turn", types_pb2.FINISH_REASON_STOP),
        ],
    )
    async def test_finish_reasons(self, begin: Begin, reason: str, meaning: types_pb2.FinishReason.ValueType) -> None:
        backend, _ = await begin(answer("a", finish=reason))
        assert ChoiceFinished(meaning) in await generate(backend)

    async def test_tool_calls_in_pieces(self, begin: Begin) -> None:
        pieces = [
            {"index": 0, "id": "c1", "type": "function", "function": {"name": "search", "arguments": ""}},
            {"index": 0, "function": {"arguments": '{"q":'}},
            {"index": 1, "id": "c2", "function": {"name": "add", "arguments": "{}"}},
        ]
        stream = (*(chunk({"tool_calls": [piece]}) for piece in pieces), *ending("tool_calls"))
        backend, _ = await begin(Reply(stream))
        calls = [piece.tool_call for piece in await generate(backend) if isinstance(piece, ToolCallDelta)]
        assert calls == [
            types_pb2.ToolCall(id="c1", name="search", index=0),
            types_pb2.ToolCall(arguments_json='{"q":', index=0),
            types_pb2.ToolCall(id="c2", name="add", arguments_json="{}", index=1),
        ]

    async def test_whole_tool_calls_without_an_index(self, begin: Begin) -> None:
        calls = [{"id": f"c{i}", "function": {"name": "f", "arguments": "{}"}} for i in range(2)]
        backend, _ = await begin(Reply((chunk({"tool_calls": calls}), *ending("tool_calls"))))
        found = [piece.tool_call.index for piece in await generate(backend) if isinstance(piece, ToolCallDelta)]
        assert found == [0, 1]

    async def test_log_probabilities(self, begin: Begin) -> None:
        content = [{"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "b", "logprob": -1.0}]}]
        backend, _ = await begin(Reply((chunk({"content": "a"}, logprobs={"content": content}), *ending())))
        (delta, *_) = await generate(backend)
        assert isinstance(delta, Delta)
        top = types_pb2.TokenLogprob(token="b", logprob=-1.0)
        assert delta.logprobs == (types_pb2.TokenLogprob(token="a", logprob=-0.5, top=[top]),)

    async def test_cached_tokens(self, begin: Begin) -> None:
        usage = {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 8}}
        body = openai_upstream.event({"choices": [], "usage": usage})
        backend, _ = await begin(Reply((*text("a"), chunk(finish="stop"), body)))
        assert Usage(9, 1, 8) in await generate(backend)

    async def test_reasoning_is_no_text(self, begin: Begin) -> None:
        stream = (chunk({"reasoning_content": "hmm"}), chunk({"reasoning": "hm"}), *text("a"), *ending())
        backend, _ = await begin(Reply(stream))
        assert (await generate(backend))[:3] == [Thinking(), Thinking(), Delta("a")]

    async def test_a_refusal_is_text(self, begin: Begin) -> None:
        backend, _ = await begin(Reply((chunk({"refusal": "I will not."}), *ending())))
        assert (await generate(backend))[0] == Delta("I will not.")

    async def test_chunks_without_choices_are_ignored(self, begin: Begin) -> None:
        head = openai_upstream.event({"choices": [], "prompt_filter_results": []})
        backend, _ = await begin(Reply((head, *text("a"), *ending())))
        assert (await generate(backend))[0] == Delta("a")

    @pytest.mark.parametrize("content_type", ["text/html", "application/json", ""])
    async def test_a_stream_of_another_content_type_is_refused(self, begin: Begin, content_type: str) -> None:
        backend, _ = await begin(Reply((*text("a"), *ending()), content_type=content_type))
        assert "malformed" in (await fail(backend)).error.message

    async def test_the_content_types_parameters_and_case_do_not_matter(self, begin: Begin) -> None:
        backend, _ = await begin(Reply((*text("a"), *ending()), content_type="Text/Event-Stream; charset=utf-8"))
        assert Delta("a") in await generate(backend)


class TestRefusals:
    @pytest.mark.parametrize("status", [400, 422])
    async def test_a_clients_error_names_the_field_and_nothing_else(self, begin: Begin, status: int) -> None:
        said = f"internal host 10.0.0.1, key {KEY}, prompt 'Xin chào?'"
        backend, _ = await begin(failure(status, code="unsupported_value", param="temperature", message=said))
        failed = await fail(backend)
        assert isinstance(failed.error, errors.InvalidArgument)
        assert failed.remedy is Remedy.NONE
        assert not failed.unhealthy
        assert failed.error.field == "sampling.temperature"
        assert failed.error.message == (
            "The model 'big' refuses the request: 'temperature' is not accepted (unsupported_value)."
        )

    async def test_a_param_that_is_no_name_is_not_passed_on(self, begin: Begin) -> None:
        backend, _ = await begin(failure(400, code="see http://10.0.0.1/", param=f"{KEY} {KEY}"))
        failed = await fail(backend)
        assert failed.error.message == "The model 'big' refuses the request."
        assert failed.error.field is None

    @pytest.mark.parametrize(
        "reply",
        [
            failure(400, code="context_length_exceeded"),
            failure(400, message="This model's maximum context length is 4096 tokens, you asked for 5000."),
            openai_upstream.Reply((b'{"object":"error","message":"Input exceeds context window","code":400}',), 400),
            Reply((openai_upstream.event({"error": {"code": "400", "message": "too many input tokens"}}),)),
        ],
        ids=["code", "message", "flat body", "in the stream"],
    )
    async def test_a_prompt_that_is_too_long_may_fit_the_next_model(self, begin: Begin, reply: Reply) -> None:
        backend, _ = await begin(reply)
        failed = await fail(backend)
        assert isinstance(failed.error, errors.ContextTooLong)
        assert failed.remedy is Remedy.NEXT

    async def test_a_body_that_is_too_large(self, begin: Begin) -> None:
        backend, _ = await begin(failure(413))
        assert isinstance((await fail(backend)).error, errors.TooLarge)

    @pytest.mark.parametrize("status", [401, 403, 404, 307, 402])
    async def test_a_wrong_setup_is_logged_as_an_error_and_not_reported_as_the_clients(
        self, begin: Begin, status: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        backend, _ = await begin(failure(status, message=f"Incorrect API key provided: {KEY}"))
        failed = await fail(backend)
        assert isinstance(failed.error, errors.UpstreamFailed)
        assert failed.remedy is Remedy.NEXT
        (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert record.getMessage() == f"model 'big' is set up wrongly: its API answers HTTP {status}"
        assert KEY not in caplog.text

    async def test_a_redirect_is_not_followed(self, begin: Begin) -> None:
        backend, upstream = await begin(failure(308, location="/v1/chat/completions"))
        await fail(backend)
        assert len(upstream.requests) == 1

    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ({"retry_after": "7"}, 7.0),
            ({"retry_after": "0.5"}, 0.5),
            ({"retry_after_ms": "250", "retry_after": "1"}, 0.25),
            ({"retry_after_ms": "x", "retry_after": "1"}, 1.0),
            ({"retry_after": "-1"}, None),
            ({"retry_after": "inf"}, None),
            ({"retry_after": "nan"}, None),
            ({"retry_after": "soon"}, None),
            ({"retry_after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
            ({}, None),
        ],
    )
    async def test_retry_after(self, begin: Begin, headers: dict[str, str], seconds: float | None) -> None:
        backend, _ = await begin(failure(429, **headers))
        failed = await fail(backend)
        assert isinstance(failed.error, errors.Overloaded)
        assert failed.reason is errors.Reason.RATE_LIMITED
        assert failed.remedy is Remedy.RETRY
        assert not failed.unhealthy
        assert failed.retry_after_seconds == failed.error.retry_after_seconds == seconds

    async def test_retry_after_a_date_in_the_future(self, begin: Begin) -> None:
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
        backend, _ = await begin(failure(503, retry_after=date))
        wait = (await fail(backend)).retry_after_seconds
        assert wait is not None
        assert 50 < wait <= 60

    async def test_an_endless_error_body_is_not_read_to_its_end(self, begin: Begin) -> None:
        backend, upstream = await begin(Reply((*((b"x" * 10_000,) * 100), Step.HANG), 400))
        assert (await fail(backend)).remedy is Remedy.NONE
        await asyncio.wait_for(upstream.requests[0].left.wait(), 5)

    async def test_an_unreachable_host(self, begin: Begin) -> None:
        backend, _ = await begin(answer("a"), base_url="http://127.0.0.1:1/v1")
        failed = await fail(backend)
        assert failed.error.message == "The model 'big' cannot be reached."
        assert failed.remedy is Remedy.RETRY
        assert failed.unhealthy


class TestConnections:
    async def test_are_reused(self, begin: Begin) -> None:
        backend, upstream = await begin(answer("a"))
        for _ in range(5):
            await generate(backend)
        assert upstream.connections == 1

    @pytest.mark.parametrize("reply", [failure(500), failure(429)])
    async def test_are_reused_after_an_error(self, begin: Begin, reply: Reply) -> None:
        backend, upstream = await begin(reply)
        for _ in range(3):
            await fail(backend)
        assert upstream.connections == 1

    async def test_closing_the_stream_disconnects(self, begin: Begin) -> None:
        backend, upstream = await begin(Reply((*text("a"), Step.HANG)))
        async with aclosing(backend.generate(Prompt((QUESTION,)), prefix="", timeout_seconds=5)) as pieces:
            assert await anext(pieces) == Delta("a")
        await asyncio.wait_for(upstream.requests[0].left.wait(), 5)

    async def test_cancelling_the_task_disconnects(self, begin: Begin) -> None:
        backend, upstream = await begin(Reply(early=(Step.HANG,)))
        task = asyncio.create_task(generate(backend))
        await upstream.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(upstream.requests[0].left.wait(), 5)

    async def test_a_storm_of_cancelled_requests_leaves_every_place_in_the_pool_free(
        self, begin: Begin, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(openai, "MAX_CONNECTIONS", 4)
        backend, _ = await begin(answer("a"))
        for round_ in range(40):
            tasks = [asyncio.create_task(generate(backend)) for _ in range(12)]
            for _ in range(round_ % 10):
                await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.sleep(0)
            for task in tasks[::4]:
                task.cancel()  # twice, as a cascading shutdown does
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert not [error for error in ended[1::2] if isinstance(error, BaseException)]
        async with asyncio.timeout(5):
            async with AsyncExitStack() as stack:
                for _ in range(4):
                    stream = backend.generate(Prompt((QUESTION,)), prefix="", timeout_seconds=1)
                    assert await anext(await stack.enter_async_context(aclosing(stream))) == Delta("a")

    async def test_a_full_pool_is_no_failure_of_the_model(self, begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(openai, "MAX_CONNECTIONS", 1)
        monkeypatch.setattr(openai, "_POOL_TIMEOUT_SECONDS", 0.05)
        backend, _ = await begin(Reply((*text("a"), Step.HANG)))
        async with aclosing(backend.generate(Prompt((QUESTION,)), prefix="", timeout_seconds=5)) as pieces:
            await anext(pieces)
            failed = await fail(backend)
        assert isinstance(failed.error, errors.Overloaded)
        assert not failed.unhealthy

    async def test_nothing_is_left_for_the_garbage_collector(self, begin: Begin) -> None:
        backend, _ = await begin(Reply((*text("a", "b"), Step.HANG)))
        for _ in range(3):
            async with aclosing(backend.generate(Prompt((QUESTION,)), prefix="", timeout_seconds=5)) as pieces:
                await anext(pieces)
        before = asyncio.all_tasks()
        gc.collect()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() <= before

    async def test_a_stream_without_end_is_cut_off(self, begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(openai, "MAX_STREAM_BYTES", 10_000)
        backend, _ = await begin(Reply((*(chunk({"content": "a" * 100}) for _ in range(200)), Step.HANG)))
        assert "malformed" in (await fail(backend)).error.message

    async def test_proxies_of_the_environment_are_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with openai_upstream.serve([answer("a")]) as proxy:
            monkeypatch.setenv("http_proxy", proxy.base_url.removesuffix("/v1"))
            monkeypatch.delenv("no_proxy", raising=False)
            spec = specs.OpenAIBackend.model_validate(
                {"type": "openai", "base_url": "http://models.invalid/v1", "model": "m"}
            )
            backend = OpenAIBackend("big", spec, {}, TLS)
            await generate(backend)
            await backend.close()
            assert proxy.requests[0].path == "http://models.invalid/v1/chat/completions"


class TestEmbeddings:
    async def test_one_vector_for_each_text_in_their_order(self, begin: Begin) -> None:
        data = [{"index": 1, "embedding": [3, 4.5]}, {"index": 0, "embedding": [1.0, 2.0]}]
        backend, upstream = await begin(openai_upstream.json_reply({"data": data, "usage": {"prompt_tokens": 4}}))
        found = await backend.embed(["một", "hai"], timeout_seconds=5)
        assert found.vectors == [[1.0, 2.0], [3, 4.5]]
        assert found.usage == Usage(4)
        assert upstream.requests[0].path == "/v1/embeddings"
        assert upstream.requests[0].body == {"model": "m", "input": ["một", "hai"], "encoding_format": "float"}

    async def test_many_texts_go_in_batches(self, begin: Begin) -> None:
        full = openai_upstream.embeddings(*([float(i)] for i in range(256)))
        backend, upstream = await begin(full, openai_upstream.embeddings([7.0]))
        found = await backend.embed(["x"] * 257, timeout_seconds=5)
        assert len(found.vectors) == 257
        assert found.vectors[-1] == [7.0]
        assert [len(seen.body["input"]) for seen in upstream.requests] == [256, 1]
        assert found.usage == Usage(14)

    async def test_missing_usage_is_estimated_and_marked(self, begin: Begin) -> None:
        backend, _ = await begin(openai_upstream.json_reply({"data": [{"embedding": [1.0]}]}))
        assert (await backend.embed(["a" * 40], timeout_seconds=5)).usage == Usage(10, estimated=True)

    @pytest.mark.parametrize(
        "body",
        [
            [],
            {},
            {"data": {}},
            {"data": [{"embedding": [1.0]}]},
            {"data": [{"embedding": [1.0]}, {"embedding": [1.0, 2.0]}]},
            {"data": [{"embedding": [1.0]}, {"embedding": []}]},
            {"data": [{"embedding": [1.0]}, {"embedding": ["a"]}]},
            {"data": [{"embedding": [1.0]}, {"embedding": "AACAPw=="}]},
            {"data": [{"embedding": [1.0]}, {"embedding": [True]}]},
            {"data": [{"embedding": [1.0], "index": 0}, {"embedding": [1.0], "index": 0}]},
            {"data": [{"embedding": [1.0], "index": "0"}, {"embedding": [1.0]}]},
            {"data": [{"embedding": [1.0]}, {"embedding": [1.0]}], "usage": {"prompt_tokens": -1}},
        ],
    )
    async def test_a_malformed_response_is_a_failure(self, begin: Begin, body: object) -> None:
        backend, _ = await begin(openai_upstream.json_reply(body))
        with pytest.raises(Failure, match="malformed") as caught:
            await backend.embed(["a", "b"], timeout_seconds=5)
        assert caught.value.remedy is Remedy.RETRY

    async def test_a_response_that_is_too_large_is_not_read(
        self, begin: Begin, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(openai, "MAX_EMBEDDINGS_BYTES", 1000)
        backend, upstream = await begin(Reply((b"[" * 5000, Step.HANG), content_type="application/json"))
        with pytest.raises(Failure, match="malformed"):
            await backend.embed(["a"], timeout_seconds=5)
        await asyncio.wait_for(upstream.requests[0].left.wait(), 5)

    async def test_the_field_of_a_refusal_is_one_of_our_request(self, begin: Begin) -> None:
        backend, _ = await begin(failure(400, param="input"))
        with pytest.raises(Failure) as caught:
            await backend.embed(["a"], timeout_seconds=5)
        assert caught.value.error.field == "texts"


def test_the_installed_http_client_releases_connections_of_cancelled_requests() -> None:
    assert tuple(map(int, httpx2.__version__.split(".")[:2])) >= (2, 16)
