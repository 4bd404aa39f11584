"""Which files are taken for documents."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from genaifactory_common import formats
from genaifactory_common.errors import InvalidArgument
from genaifactory_local import documents
from genaifactory_retriever import parsing


def _ids(found: documents.Found) -> list[str]:
    return [document.document_id for document in found.documents]


def test_documents_are_named_by_their_folder_and_path_and_sorted(tmp_path: Path) -> None:
    for name in ("b.md", "a/c.PDF", "a/b.html", "z.docx", "t.txt"):
        path = tmp_path / "handbook" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    found = documents.find([tmp_path / "handbook"])
    assert _ids(found) == [f"handbook/{name}" for name in ("a/b.html", "a/c.PDF", "b.md", "t.txt", "z.docx")]
    assert found.skipped == 0
    assert found.folders == {"handbook"}


def test_hidden_files_other_types_and_things_that_are_no_files_are_skipped_and_counted(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "readme.md").write_text("in a hidden folder, which is not even looked into")
    (tmp_path / ".hidden.md").write_text("x")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8")
    (tmp_path / "dangling.md").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "good.md").write_text("x")
    found = documents.find([tmp_path])
    assert [document.path.name for document in found.documents] == ["good.md"]
    assert found.skipped == 4


def test_a_folder_that_links_to_itself_is_walked_once(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("x")
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    assert len(documents.find([tmp_path]).documents) == 1


def test_one_file_is_a_document_too(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("x")
    assert _ids(documents.find([tmp_path / "a.md"])) == ["a.md"]


def test_files_of_one_name_in_two_folders_stay_two_documents(tmp_path: Path) -> None:
    for folder in ("en", "vi"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.md").write_text("x")
    assert _ids(documents.find([tmp_path / "en", tmp_path / "vi"])) == ["en/a.md", "vi/a.md"]


def test_folders_of_one_name_do_not_hide_each_others_files(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / "docs").mkdir(parents=True)
        (tmp_path / folder / "docs" / "a.md").write_text(folder)
    with pytest.raises(InvalidArgument, match=r"docs/a\.md"):
        documents.find([tmp_path / "one" / "docs", tmp_path / "two" / "docs"])


@pytest.mark.parametrize(
    ("name", "message"), [("nowhere", "does not exist"), ("program.exe", r"is no document.*\.pdf")]
)
def test_a_path_that_cannot_be_read_as_documents_is_refused_by_its_name(
    tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "program.exe").write_bytes(b"MZ")
    with pytest.raises(InvalidArgument, match=f"{name} {message}"):
        documents.find([tmp_path / name])


@pytest.mark.parametrize("ending", sorted(formats.BY_ENDING))
def test_every_ending_that_is_taken_is_one_that_the_retriever_reads(ending: str) -> None:
    assert parsing.media_type_of("", f"handbook/leave{ending}")
