"""Batches through the unmodified openai client and the whole platform: answers, errors, cancel, time, and kills."""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from openai.types import Batch

from genaifactory_local import testing
from genaifactory_local.testing import Platform
from tests.full import FULL
from tests.integration import recorded

# The platform is another process, which blocking here does not affect.
pytestmark = pytest.mark.allow_blocking

PAGE = Path(__file__).parents[2] / "docs" / "batches.md"
CHAT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
QUICK = {"GENAIFACTORY_BATCH_WORKER__POLL_SECONDS": "0.1", "GENAIFACTORY_BATCHES__UPKEEP_SECONDS": "0.2"}
KILLS = 20 if FULL else 5
LINES = 1000


def client_of(platform: Platform) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=platform.openai_url, api_key=platform.key, max_retries=0, timeout=30)


def line(number: int, **fields: Any) -> dict[str, Any]:
    body = {"model": "rag", "messages": [{"role": "user", "content": f"How many days of annual leave? ({number})"}]}
    return {"custom_id": f"line-{number}", "method": "POST", "url": CHAT, "body": body | fields}


def file_of(lines: list[dict[str, Any]]) -> tuple[str, bytes]:
    return "in.jsonl", "".join(json.dumps(each) + "\n" for each in lines).encode()


async def begin(client: openai.AsyncOpenAI, lines: list[dict[str, Any]], **fields: Any) -> Batch:
    uploaded = await client.files.create(file=file_of(lines), purpose="batch")
    return await client.batches.create(
        input_file_id=uploaded.id, endpoint=CHAT, completion_window="24h", metadata={"of": "tests"}, **fields
    )


async def ended(client: openai.AsyncOpenAI, batch: Batch) -> Batch:
    async with asyncio.timeout(400):
        while batch.status not in ("completed", "failed", "expired", "cancelled"):
            await asyncio.sleep(0.1)
            batch = await client.batches.retrieve(batch.id)
    return batch


async def results(client: openai.AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    content = await client.files.content(file_id)
    return [json.loads(each) for each in content.text.splitlines()]


async def test_the_openai_client_uploads_polls_reads_and_erases(tmp_path: Path) -> None:
    async with testing.started(tmp_path / "state", str(testing.SAMPLE), environment=QUICK) as process:
        async with client_of(process.platform) as client:
            batch = await ended(client, await begin(client, [line(n) for n in range(30)] + [line(99, n=2)]))
            assert (batch.status, batch.model, batch.metadata) == ("completed", "rag", {"of": "tests"})
            assert batch.request_counts is not None
            assert (batch.request_counts.completed, batch.request_counts.failed) == (30, 1)
            answers = await results(client, batch.output_file_id)
            assert [each["custom_id"] for each in answers] == [f"line-{n}" for n in range(30)]
            assert "16" in answers[0]["response"]["body"]["choices"][0]["message"]["content"]
            (error,) = await results(client, batch.error_file_id)
            assert error["response"]["status_code"] == 400
            assert batch.usage is not None
            assert batch.usage.total_tokens > 0
            assert [each.id async for each in client.batches.list(limit=1)] == [batch.id]

            wrong = await ended(client, await begin(client, [line(1), line(1)]))
            assert wrong.status == "failed"
            assert wrong.errors is not None
            assert [(each.line, each.code) for each in wrong.errors.data or ()] == [(2, "duplicate_custom_id")]

            many = await begin(client, [line(n) for n in range(600)])
            assert (await client.batches.cancel(many.id)).status == "cancelling"
            cancelled = await ended(client, many)
            assert cancelled.status == "cancelled"
            codes = {each["error"]["code"] for each in await results(client, cancelled.error_file_id)}
            assert codes <= {"batch_cancelled"}

            files = [each.id async for each in client.files.list(limit=2, order="asc")]
            assert {batch.input_file_id, batch.output_file_id} <= set(files)
            for each in files:
                assert (await client.files.delete(each)).deleted
            assert [each async for each in client.files.list()] == []
            with pytest.raises(openai.NotFoundError):
                await client.files.content(str(batch.output_file_id))
        program = tmp_path / "program.py"
        (found,) = re.findall(r"^```python\n(.+?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
        program.write_text(found.replace("http://127.0.0.1:8080/v1", process.platform.openai_url))
        (tmp_path / ".genaifactory").symlink_to(tmp_path / "state")
        printed = await _printed(program)
        assert printed[0] == "completed 2"
        assert printed[1].startswith("question-0 ")
        assert "annual leave" in printed[1]


async def _printed(program: Path) -> list[str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(program),
        cwd=program.parent,
        env={"PATH": "/usr/bin", "NO_PROXY": "127.0.0.1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode().splitlines()


async def test_a_batch_whose_time_ends_keeps_its_answers(tmp_path: Path) -> None:
    environment = QUICK | {"GENAIFACTORY_BATCHES__WINDOW_SECONDS": "3"}
    async with (
        testing.started(tmp_path / "state", str(testing.SAMPLE), environment=environment) as process,
        client_of(process.platform) as client,
    ):
        batch = await ended(client, await begin(client, [line(n) for n in range(1200)]))
        assert batch.status == "expired"
        assert batch.request_counts is not None
        found = await results(client, batch.output_file_id)
        assert len(found) == batch.request_counts.completed
        assert {each["error"]["code"] for each in await results(client, batch.error_file_id)} <= {"batch_expired"}
        assert batch.request_counts.completed + batch.request_counts.failed in (0, 1200)


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_killed_at_random_moments_a_batch_answers_each_line_once_and_records_it_once(tmp_path: Path) -> None:
    rng = random.Random(20261129)
    environment = QUICK | {"GENAIFACTORY_BATCH_WORKER__LEASE_SECONDS": "1"}
    batch: Batch | None = None
    completed: list[int] = []
    for life in range(KILLS + 1):
        async with (
            testing.started(tmp_path / "state", str(testing.SAMPLE), environment=environment) as process,
            client_of(process.platform) as client,
        ):
            batch = batch or await begin(client, [line(n) for n in range(LINES)])
            if life < KILLS:  # the first one while the lines are checked
                await asyncio.sleep(rng.uniform(0.5, 2.5) if life else 0.1)
                batch = await client.batches.retrieve(batch.id)
                completed.append(batch.request_counts.completed if batch.request_counts else 0)
                await process.kill()
                continue
            batch = await ended(client, batch)
            assert batch.status == "completed"
            found = await results(client, batch.output_file_id)
            assert [each["custom_id"] for each in found] == [f"line-{n}" for n in range(LINES)]
            asked = {each["response"]["request_id"] for each in found}
            assert len(asked) == LINES
            on_record = await recorded.counted(process.platform, lambda found: len(found) >= LINES)
            assert on_record.keys() == asked
            assert set(on_record.values()) == {1}
    assert 0 < max(completed) < LINES
    print(f"{KILLS} kills after {completed} lines; {LINES} lines answered and recorded once")
