"""Edits of factory.yaml that would hide stored documents, conversations or records, and edits that would not."""

from __future__ import annotations

import asyncio
import json
import os
import re
import urllib.request
from pathlib import Path

from genaifactory_local import testing
from genaifactory_local.testing import Process

QUESTION = "How many days of annual leave do I have?"
DEFAULT = testing.DEFAULT_FACTORY.read_text(encoding="utf-8")
TENANT, BASE = ("- name: dev", "- name: acme"), ("name: documents", "name: manuals")
ROUTE = ("knowledge_base: documents", "knowledge_base: manuals")


async def genaifactory(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Runs a command for the platform on the folder: its exit code, output, and errors in one line."""
    code, output, errors = await testing.genaifactory(*arguments, "--state", str(folder))
    return code, output, " ".join(errors.split())


def edited(*edits: tuple[str, str]) -> str:
    text = DEFAULT
    for old, new in edits:
        assert old in text
        text = text.replace(old, new, 1)
    return text


async def save(folder: Path, text: str) -> Path:
    """As an editor does; returns the file."""
    path, partial = folder / "factory.yaml", folder / "factory.yaml.new"
    await asyncio.to_thread(partial.write_text, text, encoding="utf-8")
    await asyncio.to_thread(os.replace, partial, path)
    return path


async def printed(process: Process, pattern: str) -> None:
    async with asyncio.timeout(30):
        while not re.search(pattern, process.output, re.DOTALL):  # another process prints it
            await asyncio.sleep(0.05)


async def answers(process: Process) -> None:
    """A client's question is answered from the handbook."""

    def ask() -> str:
        body = json.dumps({"model": "rag", "messages": [{"role": "user", "content": QUESTION}]}).encode()
        headers = {"Authorization": f"Bearer {process.platform.key}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{process.platform.openai_url}/chat/completions", body, headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            return str(json.load(response)["choices"][0]["message"]["content"])

    assert "16 days" in await asyncio.to_thread(ask)


async def test_a_rename_is_refused_while_it_runs_and_by_config_check_until_the_name_is_retired(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    async with testing.started(folder, str(testing.SAMPLE)) as process:
        await answers(process)
        for edits, path in (
            ((TENANT,), r"tenants\[dev\]"),
            ((BASE, ROUTE), r"knowledge_bases\[documents\]"),
        ):
            file = await save(folder, edited(*edits))
            what = r"so nobody reaches 8 documents of tenant 'dev' in knowledge base 'documents'"
            await printed(process, rf"error: factory\.yaml is refused, .*{path}: there is no .*{what}.*Name it")
            await answers(process)
            code, output, errors = await genaifactory(folder, "config", "check", str(file))
            assert (code, output) == (1, "")
            assert re.search(rf"factory\.yaml: {path}: there is no .* 8 documents of tenant 'dev'", errors), errors
            assert ("requests on record of tenant 'dev'" in errors) == (edits == (TENANT,))

        retired = edited(
            TENANT, ("version: 1\n", "version: 1\nretired: {tenants: [dev]}\n"), ("passages: 5", "passages: 7")
        )
        file = await save(folder, retired)
        await printed(
            process,
            r"factory\.yaml changed, in force since \d\d:\d\d:\d\d:"
            r".*tenants\[acme\]: added.*routes\[rag\]\.passages: 5 -> 7.*retired\.tenants: \[\] -> \[dev\]",
        )
        assert await genaifactory(folder, "config", "check", str(file)) == (
            0,
            f"{file} is valid: routes rag, chat\n",
            "",
        )
        # The development key is the new tenant's now, and so is what the command line reads.
        code, _, errors = await genaifactory(folder, "ingest", str(testing.SAMPLE))
        assert code == 0, errors
        await answers(process)
        assert await process.stop() == 0


async def test_a_start_with_a_renamed_tenant_warns_and_later_changes_are_printed(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    async with testing.started(folder, str(testing.SAMPLE)) as process:
        assert await process.stop() == 0
    file = await save(folder, edited(TENANT))
    code, output, _ = await genaifactory(folder, "config", "check", str(file))
    assert code == 0
    assert "Not compared with what is stored: No platform runs on" in output
    async with testing.started(folder, str(testing.SAMPLE)) as process:
        await printed(process, r"warning: factory\.yaml: tenants\[dev\]: there is no tenant 'dev' .* 8 documents")
        await answers(process)

        once = ("models: [extractive]", "models: [extractive]\n    history_messages: 3")
        await save(folder, edited(TENANT, ("passages: 5", "passages: 0"), ("task: chat", "task: sing")))
        await printed(process, r"is refused, .*routes\[0\]\.passages: .*routes\[1\]\.task: ")
        await save(folder, edited(TENANT, once))
        await printed(process, r"in force since \d\d:\d\d:\d\d:\s+routes\[rag\]\.history_messages: 20 -> 3\n")
        await save(folder, edited(TENANT, once) + "# a comment\n")
        await printed(process, r"factory\.yaml was saved; nothing that is configured changed\.")
        log = await asyncio.to_thread((folder / "log" / "genaifactory.jsonl").read_text, encoding="utf-8")
        assert '"changes": ["routes[rag].history_messages: 20 -> 3"]' in log
