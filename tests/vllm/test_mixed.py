"""Requests of all kinds in one batch get, token for token, what each gets alone."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

from google.protobuf import struct_pb2

from genaifactory.modelserver.v1 import modelserver_pb2
from genaifactory.types.v1 import types_pb2
from tests.vllm.processes import MAX_LOADED, Client, ModelServer, chat, connected, prompt

REQUESTS = 64
MODELS = ("tiny", "a", "b", "c")
BEGINNINGS = ("Annual leave", "The office", "Working hours are", "Mỗi năm", "A hardware key", "Chi phí công tác")


def request(number: int, rng: random.Random) -> modelserver_pb2.GenerateRequest:
    """Base and adapters in turn; greedy, seeded, with stops, log probabilities, several answers, and forms."""
    model = MODELS[number % 4]
    text = f"{rng.choice(BEGINNINGS)} {number}"
    tokens = rng.randrange(8, 60)
    kind = rng.randrange(6)
    sampling: dict[str, Any] = {}
    if kind == 1:
        sampling = {"temperature": 1.1, "seed": number, "top_p": 0.9}
    elif kind == 2:
        sampling = {"logprobs": True, "top_logprobs": 2}
    elif kind == 3:
        sampling = {"n": 2, "temperature": 0.9, "seed": number}
    elif kind == 4:
        sampling = {"stop": ["e"], "temperature": 0.8, "seed": number}
    elif kind == 5:
        return chat(text, model=model, max_tokens=80, output_format=form(rng))
    return prompt(text, model, max_tokens=tokens, sampling=sampling)


def form(rng: random.Random) -> types_pb2.OutputFormat:
    schema = struct_pb2.Struct()
    schema.update({"type": "object", "properties": {"a": {"enum": ["x", "yy", "zzz"]}}, "required": ["a"]})
    return rng.choice(
        [
            types_pb2.OutputFormat(json_schema=schema),
            types_pb2.OutputFormat(regex="[a-e]{3,9}"),
            types_pb2.OutputFormat(choice=types_pb2.Choices(values=["one", "two", "three"])),
        ]
    )


async def tokens(client: Client, asked: modelserver_pb2.GenerateRequest) -> list[object]:
    """All that makes an answer, the texts of its steps put together."""
    answer = await client.ask(asked, seconds=120)
    usage = (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    reasons = sorted((m.choice, m.finish_reason) for m in answer.messages if m.finish_reason)
    return [answer.texts(), usage, reasons, [each.token for each in answer.logprobs]]


async def hang_up(client: Client, asked: modelserver_pb2.GenerateRequest, after: int) -> None:
    """Reads some of an answer and goes away."""
    stream = client.stream(asked)
    async for _ in stream:
        after -= 1
        if after <= 0:
            break
    await stream.aclose()


async def test_mixed_requests_give_what_they_give_one_at_a_time(server: ModelServer) -> None:
    rng = random.Random(20)
    requests = [request(number, rng) for number in range(REQUESTS)]
    leaving = [
        prompt(f"{rng.choice(BEGINNINGS)} leaving {i}", MODELS[i % 4], max_tokens=300, sampling={"temperature": 1.0})
        for i in range(16)
    ]
    async with connected(server) as client:
        alone = [await tokens(client, each) for each in requests]
        async with asyncio.TaskGroup() as group:
            together = []
            for number, each in enumerate(requests):
                together.append(group.create_task(tokens(client, each)))
                if number % 4 == 0:
                    group.create_task(hang_up(client, leaving[number // 4], rng.randrange(1, 12)))
        different = [
            (number, requests[number].model, a, b)
            for number, (a, b) in enumerate(zip(alone, (task.result() for task in together), strict=True))
            if a != b
        ]
    assert different == []
    assert len({str(each) for each in alone}) > REQUESTS // 2  # the requests do differ


async def test_base_and_adapter_answers_do_not_depend_on_who_else_is_in_the_batch(
    server: ModelServer, many: dict[str, Path]
) -> None:
    """vLLM's CPU kernels give a request without an adapter the last slot's weights, unless that slot stays empty."""
    others = sorted(many)[: MAX_LOADED + 1 - len(MODELS)]  # with them every place is taken
    models = (*MODELS, *others)
    asked = {model: prompt("Annual leave", model, max_tokens=40) for model in models}
    async with connected(server) as client:
        for name in others:
            await client.load(name, many[name])
        alone = {model: (await client.ask(each)).text for model, each in asked.items()}
        for crowd in (("tiny", "a"), ("tiny", "c"), models, ("a", "b", "c")):
            answers = await asyncio.gather(*(client.ask(asked[model]) for model in crowd * 8))
            assert [answer.text for answer in answers] == [alone[model] for model in crowd * 8]
        for name in others:
            await client.unload(name)
