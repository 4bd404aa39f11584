"""A split on a running platform: it is in force without a restart, users keep their arms, and its arms are compared."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from genaifactory_local.testing import Process

# The platform is another process, which blocking here does not affect.
pytestmark = [pytest.mark.slow, pytest.mark.allow_blocking]

SPLIT = """
splits:
  - name: more-passages
    route: rag
    arms:
      - {name: eight, share: 0.5, passages: 8}
"""
USERS = 12


def add(file: Path) -> None:
    """Appends the split to the document."""
    with file.open("a", encoding="utf-8") as document:
        document.write(SPLIT)


async def ask(client: httpx.AsyncClient, user: str, arm: str = "") -> httpx.Response:
    return await client.post(
        "/chat/completions",
        json={
            "model": "rag",
            "user": user,
            "messages": [{"role": "user", "content": "How many days of annual leave?"}],
        },
        headers={"X-GenAIFactory-Arm": arm} if arm else {},
    )


async def printed(process: Process, *arguments: str) -> str:
    code, out, err = await process.genaifactory(*arguments)
    assert (code, err) == (0, "")
    return out


async def records(process: Process, count: int) -> list[dict[str, Any]]:
    """All records, once monitor has so many."""
    async with asyncio.timeout(60):
        while True:
            lines = (await printed(process, "export")).splitlines()
            if len(lines) >= count:
                return [json.loads(line) for line in lines]


async def test_a_split_is_added_answers_is_recorded_and_compared(platform_process: Process) -> None:
    process = platform_process
    assert "There are no splits" in await printed(process, "splits", "list")
    add(Path(process.platform.endpoints.factory))
    async with asyncio.timeout(60):
        while "splits[more-passages]: added" not in process.output:  # another process's output
            await asyncio.sleep(0.05)
    assert "stable 50 %, eight 50 %" in await printed(process, "splits", "list")
    async with httpx.AsyncClient(
        base_url=process.platform.openai_url,
        headers={"Authorization": f"Bearer {process.platform.key}"},
        trust_env=False,
        timeout=60,
    ) as client:
        for user in (*(f"user-{n}" for n in range(USERS)), "user-0"):
            assert (await ask(client, user)).status_code == 200
        assert (await ask(client, "tester", "eight")).status_code == 200
        unknown = await ask(client, "tester", "nine")
        assert unknown.status_code == 400
        assert "its arms are: stable, eight" in unknown.json()["error"]["message"]

    found = await records(process, USERS + 2)
    (chosen,) = [each for each in found if each["arm_chosen"]]
    assert (chosen["user"], chosen["split"], chosen["arm"]) == ("tester", "more-passages", "eight")
    of_user: dict[str, set[str]] = {}
    for each in found:
        if not each["arm_chosen"]:
            of_user.setdefault(each["user"], set()).add(each["arm"])
    assert all(len(arms) == 1 for arms in of_user.values())
    assert set().union(*of_user.values()) == {"stable", "eight"}

    shown = json.loads(await printed(process, "splits", "show", "more-passages", "--since", "1h", "--json"))
    stable, eight = shown["arms"]
    assert (stable["name"], eight["name"], eight["compared_with"]) == ("stable", "eight", "stable")
    assert stable["requests"] + eight["requests"] == USERS + 1
    assert eight["failed_share_difference"]["low"] < 0 < eight["failed_share_difference"]["high"]
    table = await printed(process, "splits", "show", "more-passages")
    assert re.match(r"rag, \d{4}-\d\d-\d\d \d\d:00 to \d{4}-\d\d-\d\d \d\d:00 UTC\n", table)
    assert "too few" in table
    assert "finds one by chance" in table
    code, _, err = await process.genaifactory("splits", "show", "other")
    assert (code, err) == (1, "genaifactory: There is no split 'other' in factory.yaml; there are: more-passages.\n")
