"""The record of an answer: its passages, verdicts, times, usage and feedback."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai

from genaifactory_local.testing import Platform


async def _exported(platform: Platform) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await platform.export()).splitlines()]


async def test_an_answer_is_on_record_with_its_passages_verdicts_times_and_feedback(platform: Platform) -> None:
    async with openai.AsyncOpenAI(base_url=platform.openai_url, api_key=platform.key) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="rag", messages=[{"role": "user", "content": "Mỗi năm tôi có bao nhiêu ngày nghỉ phép?"}]
        )
        answer = raw.parse()
    async with httpx.AsyncClient(
        base_url=platform.openai_url, headers={"Authorization": f"Bearer {platform.key}"}, trust_env=False
    ) as client_of_feedback:
        body = {"request_id": raw.headers["x-request-id"], "rating": "down", "correction": "17 ngày"}
        assert (await client_of_feedback.post("/feedback", json=body)).status_code == 200
    async with asyncio.timeout(20):
        while not (records := await _exported(platform)) or not records[0]["feedback"]:
            await asyncio.sleep(0.05)
    (record,) = records
    assert record["request_id"] == raw.headers["x-request-id"]
    assert record["output"] == answer.choices[0].message.content
    assert "16 ngày" in record["output"]
    assert (record["tenant"], record["key_id"], record["route"]) == ("dev", "local-dev", "rag")
    assert (record["model"], record["prompt_version"], record["outcome"]) == ("extractive", "rag@1", "answered")
    assert record["citations"][0]["passage_id"] in {passage["passage_id"] for passage in record["passages"]}
    assert {verdict["direction"] for verdict in record["verdicts"]} == {"input", "output"}
    assert all(verdict["scanners"] for verdict in record["verdicts"])
    assert 0 < record["time_to_first_token_us"] <= record["duration_us"]
    assert answer.usage is not None
    assert record["usage"]["prompt_tokens"] == answer.usage.prompt_tokens > 0
    assert record["index_version"]
    assert [given["correction"] for given in record["feedback"]] == ["17 ngày"]


async def test_personal_data_and_secrets_are_in_no_record(platform: Platform) -> None:
    async with openai.AsyncOpenAI(base_url=platform.openai_url, api_key=platform.key) as client:
        await client.chat.completions.create(
            model="chat", messages=[{"role": "user", "content": "Write to an.nguyen@congty.vn about my leave."}]
        )
    async with asyncio.timeout(20):
        while not (records := await _exported(platform)):
            await asyncio.sleep(0.05)
    assert "an.nguyen" not in json.dumps(records)
    assert records[0]["verdicts"][0]["action"] == "mask"
