"""`genaifactory run` and the commands that call it, as a user types them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from genaifactory_common.errors import Unavailable
from genaifactory_local import state, testing
from genaifactory_local.testing import Process

# The platform is another process, which blocking here does not affect.
pytestmark = [pytest.mark.slow, pytest.mark.allow_blocking, pytest.mark.asyncio(loop_scope="module")]


async def test_questions_in_both_languages_get_cited_answers(shared_process: Process) -> None:
    english = await shared_process.genaifactory("ask", "How many days of annual leave do I have?")
    vietnamese = await shared_process.genaifactory("ask", "Mỗi năm tôi có bao nhiêu ngày nghỉ phép?")
    assert english[0] == vietnamese[0] == 0
    assert "16 days of paid annual leave" in english[1]
    assert "[1]" in english[1].partition("Sources")[2]
    assert "16 ngày nghỉ phép năm" in vietnamese[1]
    assert "Nghỉ phép" in vietnamese[1].partition("Sources")[2]


async def test_a_question_that_the_documents_do_not_answer_is_refused_in_its_language(
    shared_process: Process,
) -> None:
    code, out, _ = await shared_process.genaifactory("ask", "Ai là tác giả của Truyện Kiều?", "--json")
    answer = json.loads(out)
    assert code == 0
    assert "không biết" in answer["answer"]
    assert answer["citations"] == []


async def test_the_printed_snippets_run_as_they_are_printed(shared_process: Process) -> None:
    output = shared_process.output
    curl = re.search(r"^  (curl .*\\\n.*)$", output, re.MULTILINE)
    assert curl is not None
    snippet = re.search(r"^  (from openai.*\n(?:  .*\n)+)", output, re.MULTILINE)
    assert snippet is not None
    code = "\n".join(line.removeprefix("  ") for line in snippet[0].splitlines())
    question = "Your question about the documents"
    curl_text, code = (text.replace(question, "How long does the battery last?") for text in (curl[1], code))
    for command in (["bash", "-c", curl_text], [sys.executable, "-c", code]):
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=60, check=False, env=os.environ
        )
        assert done.returncode == 0, done.stderr
        assert "four years" in done.stdout


async def test_ingest_adds_documents_to_the_running_platform_and_skips_them_the_second_time(
    shared_process: Process, tmp_path: Path
) -> None:
    folder = tmp_path / "more: v2"  # at the beginning of a relative URL this would be a scheme
    folder.mkdir()
    (folder / "parking.md").write_text("# Parking\n\nThe car park of the Hue office has 40 places.\n")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 this is no PDF")
    (folder / "photo.jpg").write_bytes(b"\xff\xd8")
    code, out, _ = await shared_process.genaifactory("ingest", str(folder), "--json")
    result = json.loads(out)
    assert code == 1  # one was refused
    assert (result["added"], len(result["skipped"])) == (1, 1)
    assert [refused["document_id"] for refused in result["refused"]] == ["more: v2/broken.pdf"]
    assert result["refused"][0]["message"]
    again = json.loads((await shared_process.genaifactory("ingest", str(folder), "--json"))[1])
    assert (again["added"], again["unchanged"]) == (0, 1)
    assert "40 places" in (await shared_process.genaifactory("ask", "How many places has the car park?"))[1]


async def test_usage_and_export_show_what_was_asked(tmp_path: Path) -> None:
    async with testing.started(tmp_path / "state", str(testing.SAMPLE)) as process:
        asked = json.loads((await process.genaifactory("ask", "What is the daily allowance?", "--json"))[1])
        output = tmp_path / "all.jsonl"
        async with asyncio.timeout(30):
            while True:  # the record follows the answer
                code, out, err = await process.genaifactory("export", "--output", str(output))
                assert (code, out) == (0, ""), err
                lines = [json.loads(line) for line in output.read_text().splitlines()]
                if lines:
                    break
        assert err == f"1 interactions in {output}\n"
        assert stat.S_IMODE(output.stat().st_mode) == 0o600
        assert [line["request_id"] for line in lines] == [asked["request_id"]]
        rows = json.loads((await process.genaifactory("usage", "--json"))[1])
        assert [(row["model"], row["requests"]) for row in rows] == [("extractive", 1)]
        table = (await process.genaifactory("usage", "--since", "24h"))[1]
        assert "extractive" in table
        nothing = await process.genaifactory("export", "--until", "2020-01-01")
        assert nothing == (0, "", "")
        link = tmp_path / "link"
        link.symlink_to(output)
        # Ways to write to stdout: only the lines may be written there.
        for where in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "-"):
            assert (await process.genaifactory("export", "-o", where))[1] == output.read_text(), where
        assert (await process.genaifactory("export", "-o", str(link)))[0] == 0
        assert link.is_symlink()
        code, out, err = await process.genaifactory("export", "-o", str(tmp_path / "missing" / "x"))
        assert (code, out) == (1, "")
        assert f"{tmp_path}/missing/x cannot be written: No such file or directory. Give a file in a folder" in err


async def test_an_unknown_route_and_a_wrong_key_are_errors_of_one_line(shared_process: Process) -> None:
    code, _, err = await shared_process.genaifactory("ask", "hello", "--route", "poetry")
    assert code == 1
    assert "no model" in err
    assert err.count("\n") == 1
    code, _, err = await shared_process.genaifactory("ask", "hello", "--key", "gf-wrong")
    assert code == 1
    assert err.count("\n") == 1


async def test_a_change_of_factory_yaml_is_in_force_without_a_restart(shared_process: Process) -> None:
    file = shared_process.platform.state.factory_file
    text = await asyncio.to_thread(file.read_text, encoding="utf-8")
    running = shared_process.platform
    async with openai.AsyncOpenAI(base_url=running.openai_url, api_key=running.key) as client:
        for former, name in (("chat", "talk"), ("talk", "chat")):
            changed = text.replace("- name: chat\n", f"- name: {name}\n")
            await asyncio.to_thread(file.write_text, changed, encoding="utf-8")
            async with asyncio.timeout(30):
                while name not in (names := {model.id async for model in client.models.list()}):
                    await asyncio.sleep(0.1)
            assert former not in names


async def test_it_answers_from_documents_read_so_far_and_reports_that_reading_goes_on(tmp_path: Path) -> None:
    folder, handbook = tmp_path / "state", tmp_path / "handbook"
    _write_many(handbook, 400)
    (handbook / "zebra.md").write_text("# Zebra\n\nThe zebra of the office is called Anneliese.\n")  # read last

    async def ask(client: openai.AsyncOpenAI) -> tuple[str, dict[str, int] | None]:
        question: ChatCompletionMessageParam = {"role": "user", "content": "What is the zebra of the office called?"}
        answer = await client.chat.completions.create(model="rag", messages=[question])
        return answer.choices[0].message.content or "", (answer.model_extra or {}).get("reading")

    async def asked_from_the_start() -> tuple[str, dict[str, int] | None]:
        while True:
            try:
                held, endpoints = await asyncio.to_thread(state.find_running, folder)
                break
            except Unavailable:
                await asyncio.sleep(0.01)
        key = await asyncio.to_thread(state.development_key, held)
        async with openai.AsyncOpenAI(base_url=f"{endpoints.http_url}/v1", api_key=key) as client:
            return await ask(client)

    asking = asyncio.create_task(asked_from_the_start())
    async with testing.started(folder, str(handbook)) as process:
        text, reading = await asking
        assert "The documents are still being read" in text
        assert reading is not None
        assert reading["documents_total"] == 401
        assert reading["documents_done"] < 401
        before, _, after = process.output.partition("401 new")
        assert "answers already, from what is read so far" in before
        assert "Ready" in after
        platform = process.platform
        async with openai.AsyncOpenAI(base_url=platform.openai_url, api_key=platform.key) as client:
            text, reading = await ask(client)
        assert "Anneliese" in text
        assert "still being read" not in text
        assert reading is None


def _stored_documents(state_folder: Path) -> int:
    """How many documents the retriever of a platform has stored so far, by its library."""
    library = state_folder / "data" / "retriever" / "library.sqlite"
    try:
        with contextlib.closing(sqlite3.connect(f"file:{library}?mode=ro", uri=True)) as connection:
            return int(connection.execute("SELECT count(*) FROM documents").fetchone()[0])
    except sqlite3.OperationalError:  # it is not there yet
        return 0


async def test_a_stop_while_it_reads_its_first_documents_ends_it_cleanly(tmp_path: Path) -> None:
    handbook = tmp_path / "handbook"
    _write_many(handbook, 3000)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "genaifactory_local", "run", str(handbook), "--state", str(tmp_path / "state")),
        *("--port", "0", "--grpc-port", "0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(120):
            while not await asyncio.to_thread(_stored_documents, tmp_path / "state"):
                assert process.returncode is None
                await asyncio.sleep(0.01)
            process.terminate()
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    assert b"Stopping" in output
    assert b"Ready" not in output
    assert b"Traceback" not in output


async def test_a_document_that_is_gone_from_its_folder_is_removed_by_the_next_run(tmp_path: Path) -> None:
    folder, handbook, other = tmp_path / "state", tmp_path / "handbook", tmp_path / "other"
    for file, text in (
        (handbook / "old.md", "# Fountain\n\nThe fountain is lit in violet on Sundays.\n"),
        (handbook / "moved.md", "# Parking\n\nThe car park of the Hue office has 40 places.\n"),
        (handbook / "kept.md", "# Canteen\n\nThe canteen opens at half past eleven.\n"),
        (other / "pool.md", "# Pool\n\nThe swimming pool is heated to 27 degrees.\n"),
    ):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    async with testing.started(folder, str(handbook), str(other)) as process:
        assert "4 new" in process.output
        assert await process.stop() == 0
    (handbook / "old.md").unlink()
    (handbook / "moved.md").rename(handbook / "parking.md")
    async with testing.started(folder, str(handbook)) as process:
        assert "Documents: 1 new, 2 removed, 1 unchanged" in process.output
        for question, answer, source in (
            ("When is the fountain lit in violet?", None, None),
            ("How many places has the car park?", "40 places", "handbook/parking.md"),
            ("To how many degrees is the swimming pool heated?", "27 degrees", "other/pool.md"),
        ):
            asked = json.loads((await process.genaifactory("ask", question, "--json"))[1])
            assert {citation["url"] for citation in asked["citations"]} == ({source} if source else set())
            assert answer is None or answer in asked["answer"]
        removed = await process.genaifactory("remove", "other/pool.md", "other/pool.md", "other/nothing.md")
        code, out, err = removed
        assert (code, out) == (1, "1 document removed\n")
        assert "There is no document 'other/nothing.md' in the knowledge base 'documents'" in err
        _, out, _ = await process.genaifactory("ask", "To how many degrees is the swimming pool heated?", "--json")
        assert json.loads(out)["citations"] == []
        code, _, err = await process.genaifactory("remove", "a.md", "--knowledge-base", "wiki")
        assert (code, err.count("\n")) == (1, 1)
        assert "no knowledge base 'wiki'" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_stops_cleanly_closes_its_ports_and_starts_again_with_its_documents_and_key(
    tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "state"
    async with testing.started(folder, str(testing.SAMPLE)) as process:
        key = process.platform.key
        addresses = (process.platform.endpoints.http_url, process.platform.endpoints.grpc_address)
        assert await process.stop(number) == 0
        assert "Stopping" in process.output
        assert "Traceback" not in process.output
    assert not (folder / "running.json").exists()
    assert not (folder / "run").exists()
    for address in addresses:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", int(address.rpartition(":")[2])))
    async with testing.started(folder, str(testing.SAMPLE)) as process:
        assert process.platform.key == key
        assert "8 unchanged" in process.output


async def test_a_second_platform_on_the_folder_or_the_port_is_refused_in_one_line(
    shared_process: Process, tmp_path: Path
) -> None:
    port = shared_process.platform.endpoints.http_url.rpartition(":")[2]
    taken = ["run", "--state", str(tmp_path / "other"), "--port", port, "--grpc-port", "0"]
    for arguments, message in (
        (["run", "--port", "0", "--grpc-port", "0"], "Another process runs a platform"),
        (taken, f"Port {port} on 127.0.0.1 is in use by another program. Choose another: --port "),
    ):
        code, _, err = await shared_process.genaifactory(*arguments)
        assert code == 1
        assert message in err
        assert err.count("\n") == 1


async def test_its_files_are_readable_by_their_owner_only(shared_process: Process) -> None:
    folder = shared_process.platform.state.folder
    open_to_others = [path for path in (folder, *folder.rglob("*")) if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert list(folder.glob("data/**/*")), "there are no files to check"
    assert open_to_others == []


def _write_many(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:05}.md").write_text(f"# Rule {number}\n\nRoom {number} is cleaned on day {number}.\n")
