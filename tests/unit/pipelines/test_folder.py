"""Which files are documents, and their ids."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NoReturn

import pytest

from genaifactory_common import formats, specs
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


class Stale:
    """A folder of a file server that is gone: it can be opened, and not read."""

    def __enter__(self) -> NoReturn:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.allow_blocking  # makes files
@pytest.mark.parametrize("damaged", ["", "sub"])
async def test_a_folder_that_fails_while_it_is_read_loses_no_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    folder = tmp_path / "handbook"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.md").write_text("x")
    scandir = os.scandir

    def stale(path: str) -> object:
        return Stale() if Path(path) == folder / damaged else scandir(path)

    monkeypatch.setattr(os, "scandir", stale)
    found = finding.find([folder])
    assert _ids(found) == []
    assert "handbook/sub/a.md".startswith(found.unknown)
    source = specs.FolderSource(name="wiki", type="folder", path=str(folder), knowledge_base="documents")
    async with finding.reading(source) as listing:
        assert "wiki/sub/a.md".startswith(listing.unknown)


@pytest.mark.parametrize("ending", sorted(formats.BY_ENDING))
def test_every_ending_of_a_document_is_one_that_the_retriever_parses(ending: str) -> None:
    assert parser.media_type_of("", f"handbook/leave{ending}")
