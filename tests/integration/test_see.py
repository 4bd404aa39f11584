"""What a person types to see what goes on: usage as bars, blocked, trace, watch."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

import httpx
import pytest

from genaifactory_local.testing import Process

# The platform is another process: what blocks here blocks nobody.
pytestmark = [pytest.mark.slow, pytest.mark.allow_blocking]

SECRET = "AKIAIOSFODNN7EXAMPLE"  # the example of its maker's documentation


async def _started(process: Process, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "genaifactory_local",
        *arguments,
        env={**os.environ, "GENAIFACTORY_STATE": str(process.platform.state.folder), "COLUMNS": "150"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def _printed(process: Process, *arguments: str) -> str:
    command = await _started(process, *arguments)
    async with asyncio.timeout(60):
        out, err = await command.communicate()
    assert (command.returncode, err) == (0, b"")
    return out.decode()


async def _ask(process: Process, question: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        return await client.post(
            f"{process.platform.openai_url}/chat/completions",
            json={"model": "rag", "messages": [{"role": "user", "content": question}]},
            headers={"Authorization": f"Bearer {process.platform.key}"},
        )


async def _line(watch: asyncio.subprocess.Process) -> str:
    assert watch.stdout is not None
    async with asyncio.timeout(60):
        return (await watch.stdout.readline()).decode()


async def test_a_person_watches_requests_come_and_looks_into_one(platform_process: Process) -> None:
    watch = await _started(platform_process, "watch")
    answered = await _ask(platform_process, "How many days of annual leave do I have?")
    line = await _line(watch)
    assert f"answered  {answered.headers['x-request-id']}  rag" in line
    refused = await _ask(platform_process, f"Is {SECRET} my key?")
    assert refused.status_code == 422
    line = await _line(watch)
    assert "blocked in: SECRET_AWS_ACCESS_KEY" in line
    watch.send_signal(signal.SIGINT)
    async with asyncio.timeout(30):
        rest, err = await watch.communicate()
    assert (watch.returncode, rest, err) == (0, b"", b"")

    blocked, summary, usage, bars, tree, record = await asyncio.gather(
        _printed(platform_process, "blocked"),
        _printed(platform_process, "blocked", "--summary", "--json"),
        _printed(platform_process, "usage"),
        _printed(platform_process, "usage", "--plot", "--of", "tokens"),
        _printed(platform_process, "trace", answered.json()["id"]),
        _printed(platform_process, "export"),
    )
    assert refused.headers["x-request-id"] in blocked
    assert answered.headers["x-request-id"] not in blocked
    assert json.loads(summary)[0]["entity"] == "SECRET_AWS_ACCESS_KEY"
    assert "(no model)" in usage
    assert "█ extractive" in bars
    assert "└─ orchestrator Answer" in tree
    trace_id = json.loads(record.splitlines()[0])["trace_id"]
    assert f"trace {trace_id}" in tree
    assert SECRET not in line + blocked + summary + usage + bars + tree


async def test_watch_ends_when_nobody_reads_it_any_more(platform_process: Process) -> None:
    command = f"{sys.executable} -m genaifactory_local watch --json | head -n 1"
    head = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        command,
        env={**os.environ, "GENAIFACTORY_STATE": str(platform_process.platform.state.folder)},
        stdout=asyncio.subprocess.PIPE,
    )
    await _ask(platform_process, "How many days of annual leave do I have?")
    async with asyncio.timeout(60):
        out, _ = await head.communicate()
    assert json.loads(out)["outcome"] == "answered"
