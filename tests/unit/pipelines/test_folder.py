"""Which files are documents, and their ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from genaifactory_common import formats
from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines.sources import folder as finding
from genaifactory_retriever.parsing import parser


def _ids(found: finding.FoundFiles) -> list[str]:
    return [document.document_id for document in found.documents]


def test_documents_are_named_by_their_folder_and_path_and_sorted(tmp_path: Path) -> None:
    for name in ("b.md", "a/c.PDF", "a/b.html", "z.docx", "t.txt"):
        path = tmp_path / "handbook" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    found = finding.find([tmp_path / "handbook"])
    assert _ids(found) == [f"handbook/{name}" for name in ("a/b.html", "a/c.PDF", "b.md", "t.txt", "z.docx")]
    assert found.skipped == ()
    (source,) = found.sources
    assert (source.name, source.label) == (str(tmp_path / "handbook"), "handbook")


def test_one_file_is_a_document_too(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("x")
    assert _ids(finding.find([tmp_path / "a.md"])) == ["a.md"]


def test_files_of_one_name_in_two_folders_stay_two_documents(tmp_path: Path) -> None:
    for folder in ("en", "vi"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.md").write_text("x")
    assert _ids(finding.find([tmp_path / "en", tmp_path / "vi"])) == ["en/a.md", "vi/a.md"]


def test_a_folder_that_is_given_twice_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("x")
    assert len(finding.find([tmp_path, tmp_path / "x" / "..", tmp_path]).documents) == 1


def test_labels_of_a_path_grow_by_the_folders_above_it() -> None:
    assert list(finding.labels(Path("/home/an/docs"))) == ["docs", "an/docs", "home/an/docs"]
    assert list(finding.labels(Path("/"))) == ["root"]


@pytest.mark.parametrize(
    ("name", "message"), [("nowhere", "does not exist"), ("program.exe", r"is not a document.*\.pdf")]
)
def test_the_error_for_a_path_without_documents_names_it(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "program.exe").write_bytes(b"MZ")
    with pytest.raises(InvalidArgument, match=f"{name} {message}"):
        finding.find([tmp_path / name])


@pytest.mark.parametrize("ending", sorted(formats.BY_ENDING))
def test_every_ending_of_a_document_is_one_that_the_retriever_parses(ending: str) -> None:
    assert parser.media_type_of("", f"handbook/leave{ending}")
