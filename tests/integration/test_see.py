"""Commands that show requests: watch, blocked, usage as bars, trace."""

from __future__ import annotations

import asyncio
import json
import signal

import httpx
import pytest

from genaifactory_local import testing
from genaifactory_local.testing import Process

# The platform is another process, which blocking here does not affect.
pytestmark = [pytest.mark.slow, pytest.mark.allow_blocking]

SECRET = "AKIAIOSFODNN7EXAMPLE"  # the example of its maker's documentation
# A command takes three seconds of CPU, and the machine may be busy.
_LONGEST_SECONDS = 120


async def _printed(process: Process, *arguments: str) -> str:
    code, out, err = await process.genaifactory(*arguments)
    assert (code, err) == (0, "")
    return out


async def _ask(process: Process, question: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        return await client.post(
            f"{process.platform.openai_url}/chat/completions",
            json={"model": "rag", "messages": [{"role": "user", "content": question}]},
            headers={"Authorization": f"Bearer {process.platform.key}"},
        )


async def _line(watch: asyncio.subprocess.Process) -> str:
    assert watch.stdout is not None
    async with asyncio.timeout(_LONGEST_SECONDS):
        return (await watch.stdout.readline()).decode()


async def test_requests_are_watched_as_they_end_and_one_is_traced(platform_process: Process) -> None:
    watch = await testing.begun("watch", "--json", environment=platform_process.environment)
    answered = await _ask(platform_process, "How many days of annual leave do I have?")
    record = json.loads(await _line(watch))
    assert (record["outcome"], record["request_id"]) == ("answered", answered.headers["x-request-id"])
    refused = await _ask(platform_process, f"Is {SECRET} my key?")
    assert refused.status_code == 422
    line = await _line(watch)
    assert json.loads(line)["enforced"][0]["entity"] == "SECRET_AWS_ACCESS_KEY"
    watch.send_signal(signal.SIGINT)
    async with asyncio.timeout(_LONGEST_SECONDS):
        rest, err = await watch.communicate()
    assert (watch.returncode, rest, err) == (0, b"", b"")

    blocked = await _printed(platform_process, "blocked")
    assert refused.headers["x-request-id"] in blocked
    assert answered.headers["x-request-id"] not in blocked
    bars = await _printed(platform_process, "usage", "--plot")
    assert "█ (no model)  1" in bars
    assert "▓ extractive  1" in bars
    tree = await _printed(platform_process, "trace", answered.json()["id"])
    assert f"trace {record['trace_id']}" in tree
    assert "└─ orchestrator Answer" in tree
    assert SECRET not in line + blocked + bars + tree

    # It ends when its output is closed, also when no request comes.
    piped = await testing.begun("watch", "--json", environment=platform_process.environment)
    first = json.loads(await _line(piped))
    assert first["request_id"] == record["request_id"]
    transport = piped._transport.get_pipe_transport(1)  # type: ignore[attr-defined]  # asyncio has no public way
    transport.close()
    async with asyncio.timeout(_LONGEST_SECONDS):
        assert await piped.wait() == 1
