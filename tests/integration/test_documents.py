"""Documents on the command line: removal of the samples, folders with any content, list, show and remove."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from genaifactory_local import testing
from genaifactory_local.testing import Process
from tests.integration import commands

# The platform is another process, which blocking here does not affect.
pytestmark = [pytest.mark.slow, pytest.mark.allow_blocking, pytest.mark.asyncio(loop_scope="module")]

ALLOWANCE = "# Annual leave\n\nEverybody has 31 days of annual leave a year, from the first day on.\n"
QUESTION = "How many days of annual leave do I have?"


async def genaifactory(process: Process, *arguments: str) -> tuple[int, str, str]:
    return await commands.genaifactory(process.platform.state.folder, *arguments)


async def listed(process: Process, *arguments: str) -> list[dict[str, Any]]:
    code, out, err = await genaifactory(process, "documents", "list", "--json", *arguments)
    assert code == 0, err
    return list(json.loads(out))


async def test_samples_are_removed_when_documents_are_given_and_not_added_again(tmp_path: Path) -> None:
    """`make run`, later `make run DOCS=mine`, later `make run`: the fictional handbook answers the first time only."""
    state, mine = tmp_path / "state", tmp_path / "mine"
    mine.mkdir()
    (mine / "leave.md").write_text(ALLOWANCE)
    (mine / "passwd.md").symlink_to("/etc/passwd")
    (mine / "photo.jpg").touch()
    (mine / "empty.md").touch()
    (mine / os.fsdecode(b"bad\xff.md")).write_text("# Căng tin\n\nCăng tin mở cửa lúc mười một giờ rưỡi.\n")
    async with testing.started(state) as process:
        assert "16 days" in (await genaifactory(process, "ask", QUESTION))[1]
        assert {each["source"] for each in await listed(process)} >= {"samples"}
    async with testing.started(state, str(mine)) as process:
        assert "2 new" in process.output
        assert "removed" in process.output
        assert "refused mine/empty.md: is empty" in process.output
        assert "skipped 1, a link that leads out of the folder: mine/passwd.md" in process.output
        assert "skipped 1, of a type that is not read: mine/photo.jpg" in process.output
        assert "Traceback" not in process.output
        answer = json.loads((await genaifactory(process, "ask", QUESTION, "--json"))[1])
        assert "31 days" in answer["answer"]
        assert {each["document_id"] for each in answer["citations"]} == {"mine/leave.md"}
        found = await listed(process)
        assert [(each["id"], each["source"]) for each in found] == [
            ("mine/bad%FF.md", str(mine)),
            ("mine/leave.md", str(mine)),
        ]
        asked = await genaifactory(process, "ask", "Căng tin mở cửa lúc mấy giờ?", "--json")
        assert json.loads(asked[1])["citations"][0]["document_id"] == "mine/bad%FF.md"
    async with testing.started(state) as process:
        assert "answers come from what was read before" in process.output
        assert [each["id"] for each in await listed(process)] == ["mine/bad%FF.md", "mine/leave.md"]
        code, out, _ = await genaifactory(process, "documents", "remove", "--source", str(mine))
        assert (code, out) == (0, "2 documents removed\n")
        code, out, _ = await genaifactory(process, "documents", "list")
        assert (code, out) == (0, "No documents yet in 'documents'. Read some with: genaifactory ingest PATH\n")


async def test_two_folders_of_one_name_keep_their_documents_apart(shared_process: Process, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "docs").mkdir(parents=True)
        (tmp_path / name / "docs" / "a.md").write_text(f"# Pool\n\nThe pool of house {name} is closed.\n")
        code, _, err = await genaifactory(shared_process, "ingest", str(tmp_path / name / "docs"))
        assert code == 0, err
    assert [each["id"] for each in await listed(shared_process, "--source", str(tmp_path / "one" / "docs"))] == [
        "docs/a.md"
    ]
    assert [each["id"] for each in await listed(shared_process, "--source", str(tmp_path / "two" / "docs"))] == [
        "two/docs/a.md"
    ]


async def test_files_of_older_windows_are_read_and_named_with_their_encoding(
    shared_process: Process, tmp_path: Path
) -> None:
    french = "La cantine est fermée en août. Les équipes déjeunent à l’étage, près de l’entrée."
    (tmp_path / "cantine.txt").write_bytes(french.encode("cp1252"))
    (tmp_path / "russian.txt").write_bytes("Столовая закрыта в августе.".encode("cp1251"))
    code, out, _ = await genaifactory(shared_process, "ingest", str(tmp_path), "--verbose")
    assert code == 1
    assert "1 not in UTF-8, read as windows-1252: " in out
    assert "cantine.txt" in out
    assert "russian.txt: The document is not UTF-8 text at byte 0; save it as UTF-8." in " ".join(out.split())
    (document,) = [each for each in await listed(shared_process) if each["id"].endswith("cantine.txt")]
    _, shown, _ = await genaifactory(shared_process, "documents", "show", document["id"])
    assert french in " ".join(shown.split())
    assert (await genaifactory(shared_process, "documents", "remove", document["id"]))[0] == 0


async def test_documents_are_listed_shown_and_removed_here_and_over_http_with_a_key(shared_process: Process) -> None:
    platform = shared_process.platform
    over_http = ("--url", platform.endpoints.http_url, "--key", platform.key)
    for where in ((), over_http):
        code, out, err = await genaifactory(shared_process, "documents", "list", "--prefix", "sample/l", *where)
        assert code == 0, err
        assert "sample/leave.md" in out
        shown = await genaifactory(shared_process, "documents", "show", "sample/leave.md", *where)
        assert "16 days" in shown[1]
        facts = json.loads((await genaifactory(shared_process, "documents", "show", "sample/leave.md", "--json"))[1])
        assert (facts["media_type"], facts["source"], facts["complete"]) == ("text/markdown", "samples", True)
        code, out, _ = await genaifactory(shared_process, "documents", "sources", *where)
        assert out.split()[:2] == ["Source", "Documents"]
        assert ["samples", str(len(await listed(shared_process, "--source", "samples")))] in [
            line.split() for line in out.splitlines()
        ]
        for command in ("show", "remove"):
            code, out, err = await genaifactory(shared_process, "documents", command, "leave.md", *where)
            assert (code, out, err.count("\n")) == (1, "", 1)
            assert "did you mean 'sample/leave.md'" in err
    code, out, err = await genaifactory(shared_process, "documents", "remove", "sample/leave.md", "x", *over_http)
    assert (code, out) == (1, "1 document removed\n")
    assert "no document 'x'" in err
    assert "sample/leave.md" not in [each["id"] for each in await listed(shared_process)]


async def test_unknown_names_are_errors_that_list_the_known_ones(shared_process: Process, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(ALLOWANCE)
    for arguments, known in (
        (("ingest", str(tmp_path / "a.md"), "--key", "gf-nope"), "The API key is not known."),
        (("ingest", str(tmp_path / "a.md"), "--knowledge-base", "nope"), "there are: documents"),
        (("documents", "list", "--key", "gf-nope"), "The API key is not known."),
        (("documents", "list", "--knowledge-base", "nope"), "there are: documents"),
        (("documents", "show", "x", "--knowledge-base", "nope"), "there are: documents"),
        (("documents", "remove", "x", "--knowledge-base", "nope"), "there are: documents"),
        (("documents", "remove", "--source", "nope"), "samples."),
        (("remove", "nope"), "no document 'nope'"),
        (("export", "--route", "nope"), "there are: "),
        (("export", "--key", "gf-nope"), "The API key is not known."),
    ):
        code, out, err = await genaifactory(shared_process, *arguments)
        assert (code, out, err.count("\n")) == (1, "", 1), arguments
        assert known in err, arguments
