"""Whatever a folder holds: each entry is read under a stable, printable name, or skipped with a reason.

Each row is one entry: how it is made in the folder `docs`, and its outcome. The walk, the reading, and the retriever's
checks of id and uri are the real ones.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from genaifactory_common import formats, specs
from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines.sources import folder as finding
from genaifactory_pipelines.sources.printable import printable
from genaifactory_pipelines.sources.selection import Reason
from genaifactory_retriever import upload
from genaifactory_retriever.parsing import parser

TEXT = b"# Leave\n\nFourteen days."
NOBODY = 65534
Make = Callable[[bytes], None]
"""Makes something, given the folder."""


@dataclass(frozen=True)
class Row:
    """One entry of a folder."""

    id: str
    make: Make
    read: tuple[str, ...] = ()
    """Ids, below the folder, of its documents."""
    skipped: tuple[tuple[str, Reason], ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    """Ids of documents whose bytes cannot be read, with words of the reason."""


def file(name: bytes, data: bytes = TEXT) -> Make:
    def make(folder: bytes) -> None:
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as target:
            target.write(data)

    return make


def link(name: bytes, target: bytes) -> Make:
    return lambda folder: os.symlink(target, os.path.join(folder, name))


def both(*makes: Make) -> Make:
    def make(folder: bytes) -> None:
        for each in makes:
            each(folder)

    return make


def bound_socket(folder: bytes) -> None:
    here = os.getcwd()
    os.chdir(folder)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket.md")
    finally:
        os.chdir(here)


def deep(folder: bytes) -> None:
    """Deeper than a path may be long, and than Python may recurse."""
    descriptor = os.open(folder, os.O_RDONLY)
    for _ in range(2200):
        os.mkdir(b"d", dir_fd=descriptor)
        below = os.open(b"d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)


def readable(text: str) -> Row:
    """A name that is kept as it is."""
    return Row(f"kept {text[:40]}", file(text.encode()), read=(text,))


def written(raw: bytes, text: str) -> Row:
    """A name that is changed to be printable."""
    return Row(f"written {text[:40]}", file(raw), read=(text,))


NFC, NFD = unicodedata.normalize("NFC", "nghỉ phép.md"), unicodedata.normalize("NFD", "nghỉ phép.md")
ROWS = (
    # Names
    readable("plain.md"),
    readable("UPPER.MD"),
    readable("two words.md"),
    readable("a#b.md"),
    readable("what?.md"),
    readable("100%.md"),
    readable("a%20b.md"),
    readable("a%FFb.md"),
    readable("a:b.md"),
    readable("c:\\x.md"),
    readable("\\\\host\\share.md"),
    readable("http:x.md"),
    readable("-rf.md"),
    readable("--help.md"),
    readable("~.md"),
    readable("$HOME `id` ;&|.md"),
    readable("'quoted' \"twice\".md"),
    readable("[bold]markup[/bold].md"),
    readable("{json}.md"),
    readable("<b>.html"),
    readable("a.b.c.md"),
    readable("tiếng việt.md"),
    readable("日本語.md"),
    readable("👩‍💻 emoji.md"),
    readable("שלום عليكم.md"),
    readable(" leading.md"),
    readable("sub/x .. y/z.md"),
    readable("a" * 252 + ".md"),
    readable("deep/er/and/deep/er.md"),
    readable("x;y=z&q.md"),
    readable("@at!.md"),
    readable("nbsp\u00a0.md"),
    written(b"bad\xff.md", "bad%FF.md"),
    written(b"\xff\xfe\x80.md", "%FF%FE%80.md"),
    written(b"folder\xe9/x.md", "folder%E9/x.md"),
    written("ngh\u1ec9".encode("utf-8")[:-1] + b".md", "ngh%E1%BB.md"),
    written(b"\xed\xa0\x80.md", "%ED%A0%80.md"),
    written(b"line\nbreak.md", "line%0Abreak.md"),
    written(b"tab\tname.md", "tab%09name.md"),
    written(b"bell\x07\x1b[31mred.md", "bell%07%1B[31mred.md"),
    written(b"del\x7f.md", "del%7F.md"),
    written("next\u0085line.md".encode(), "next%C2%85line.md"),
    written("para\u2029.md".encode(), "para%E2%80%A9.md"),
    written("fdp\u202edm.md".encode(), "fdp%E2%80%AEdm.md"),
    written("zero\u200bwidth.md".encode(), "zero%E2%80%8Bwidth.md"),
    written("\ufeffbom.md".encode(), "%EF%BB%BFbom.md"),
    written(NFD.encode(), NFC),
    Row(
        "NFC and NFD twins",
        both(file(NFC.encode(), b"one"), file(NFD.encode(), b"two")),
        read=(NFC,),
        skipped=((NFC, Reason.TWIN),),
    ),
    Row(
        "a name written like another",
        both(file(b"a\xff.md", b"one"), file(b"a%FF.md", b"two")),
        read=("a%FF.md",),
        skipped=(("a%FF.md", Reason.TWIN),),
    ),
    Row(
        "a path too long",
        file(b"/".join([b"f" * 200] * 3) + b".md"),
        skipped=(("/".join(["f" * 200] * 3) + ".md", Reason.LONG),),
    ),
    Row("no name before the ending", file(b".md"), skipped=((".md", Reason.HIDDEN),)),
    # Hidden and other types
    Row("a hidden file", file(b".secret.md"), skipped=((".secret.md", Reason.HIDDEN),)),
    Row("a hidden folder", file(b".git/readme.md"), skipped=((".git/", Reason.HIDDEN),)),
    Row("a picture", file(b"photo.jpg"), skipped=(("photo.jpg", Reason.TYPE),)),
    Row("no ending", file(b"Makefile"), skipped=(("Makefile", Reason.TYPE),)),
    Row("an ending with a line break", file(b"x.md\n"), skipped=(("x.md%0A", Reason.TYPE),)),
    # Links
    Row("a link out of the folder", link(b"passwd.md", b"/etc/passwd"), skipped=(("passwd.md", Reason.LEAVES),)),
    Row("a link up and out", link(b"up.md", b"../outside.md"), skipped=(("up.md", Reason.LEAVES),)),
    Row("a link to the folder's own beginning", link(b"x.md", b"../docs-too/x.md"), skipped=(("x.md", Reason.LEAVES),)),
    Row("a folder link out", link(b"etc", b"/etc"), skipped=(("etc", Reason.LEAVES),)),
    Row("a link within", both(file(b"v2/a.md"), link(b"latest.md", b"v2/a.md")), read=("latest.md", "v2/a.md")),
    Row(
        "a folder link within",
        both(file(b"v2/a.md"), link(b"latest", b"v2")),
        read=("v2/a.md",),
        skipped=(("latest/", Reason.AGAIN),),
    ),
    Row(
        "a mounted ConfigMap",
        both(file(b"..2026/a.md"), link(b"..data", b"..2026"), link(b"a.md", b"..data/a.md")),
        read=("a.md",),
        skipped=(("..2026/", Reason.HIDDEN), ("..data", Reason.HIDDEN)),
    ),
    Row(
        "links to a hidden folder",
        both(file(b".v/a.md"), link(b"one", b".v"), link(b"two", b".v")),
        read=("one/a.md",),
        skipped=((".v/", Reason.HIDDEN), ("two/", Reason.AGAIN)),
    ),
    Row("a link to the folder itself", link(b"again", b"."), skipped=(("again/", Reason.AGAIN),)),
    Row(
        "links in a circle",
        both(link(b"a.md", b"b.md"), link(b"b.md", b"a.md")),
        skipped=(("a.md", Reason.CIRCLE), ("b.md", Reason.CIRCLE)),
    ),
    Row("a link to nothing", link(b"gone.md", b"nowhere"), skipped=(("gone.md", Reason.DANGLING),)),
    Row(
        "a link through a file",
        both(file(b"a.md"), link(b"b.md", b"a.md/x")),
        read=("a.md",),
        skipped=(("b.md", Reason.DANGLING),),
    ),
    Row("a link to a device", link(b"null.md", b"/dev/null"), skipped=(("null.md", Reason.LEAVES),)),
    # What is no file
    Row("a pipe", lambda folder: os.mkfifo(os.path.join(folder, b"pipe.md")), skipped=(("pipe.md", Reason.SPECIAL),)),
    Row("a socket", bound_socket, skipped=(("socket.md", Reason.SPECIAL),)),
    Row(
        "a link to a pipe",
        both(lambda folder: os.mkfifo(os.path.join(folder, b"p")), link(b"p.md", b"p")),
        skipped=(("p", Reason.SPECIAL), ("p.md", Reason.SPECIAL)),
    ),
    Row("a folder named like a document", file(b"folder.md/a.md"), read=("folder.md/a.md",)),
    # Content
    Row("an empty file", file(b"empty.md", b""), refused=(("empty.md", "is empty"),)),
    Row(
        "a file over the bound",
        lambda folder: os.truncate(os.open(os.path.join(folder, b"big.md"), os.O_CREAT | os.O_RDWR), (32 << 20) + 1),
        refused=(("big.md", "is larger than 32 MiB"),),
    ),
)


def test_the_table_is_long() -> None:
    assert len(ROWS) >= 70
    assert len({row.id for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: ascii(row.id))
def test_each_thing_is_read_or_has_its_reason(row: Row, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    for name in ("docs", "docs-too"):
        (tmp_path / name).mkdir()
    (tmp_path / "docs-too" / "x.md").write_bytes(TEXT)
    (tmp_path / "outside.md").write_bytes(TEXT)
    row.make(os.fsencode(folder))
    found = finding.find([folder])
    data = {document.document_id: finding.read(document) for document in found.documents}
    taken = [name for name, content in data.items() if isinstance(content, bytes)]
    assert taken == sorted(f"docs/{name}" for name in row.read)
    assert [(each.name, each.reason) for each in found.skipped] == [(f"docs/{n}", r) for n, r in row.skipped]
    refused = {name: content for name, content in data.items() if isinstance(content, str)}
    assert set(refused) == {f"docs/{name}" for name, _ in row.refused}
    for name, words in row.refused:
        assert words in refused[f"docs/{name}"]
    for name in data:
        upload.check_document_id("document_id", name)
        upload.check_uri("uri", formats.uri(name))
        assert parser.media_type_of("", formats.uri(name))
        name.encode()
    for each in found.skipped:
        (each.name + each.why).encode()
        assert "\n" not in each.name


def test_a_folder_deeper_than_the_longest_path_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_bytes(TEXT)
    deep(os.fsencode(tmp_path / "docs"))
    try:
        found = finding.find([tmp_path / "docs"])
    finally:  # pytest, which recurses, could not remove it
        subprocess.run(["rm", "-rf", tmp_path / "docs" / "d"], check=True)
    assert [document.document_id for document in found.documents] == ["docs/a.md"]
    (skipped,) = found.skipped
    assert (skipped.reason, skipped.detail) == (Reason.UNREADABLE, "File name too long")


@pytest.fixture
def folder_of_nobody() -> Iterator[Path]:
    """A folder of a user without rights; the test runs as that user."""
    with tempfile.TemporaryDirectory(prefix="gf-", dir="/tmp") as name:
        if os.geteuid() != 0:
            yield Path(name)
            return
        os.chown(name, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        try:
            yield Path(name)
        finally:
            os.seteuid(0)


def test_files_that_may_not_be_read_are_named_and_stop_nothing(folder_of_nobody: Path) -> None:
    (folder_of_nobody / "shut").mkdir(mode=0)
    (folder_of_nobody / "shut.md").write_bytes(TEXT)
    (folder_of_nobody / "shut.md").chmod(0)
    (folder_of_nobody / "open.md").write_bytes(TEXT)
    (folder_of_nobody / "into.md").symlink_to("shut/a.md")
    found = finding.find([folder_of_nobody])
    assert [(each.below, each.why) for each in found.skipped] == [
        ("into.md", "not readable (Permission denied)"),
        ("shut/", "not readable (Permission denied)"),
    ]
    data = {document.below: finding.read(document) for document in found.documents}
    assert data == {"open.md": TEXT, "shut.md": "cannot be read: Permission denied"}
    with pytest.raises(InvalidArgument, match="shut cannot be read: Permission denied"):
        finding.find([folder_of_nobody / "shut"])
    (folder_of_nobody / "shut").chmod(0o700)


@pytest.mark.allow_blocking  # makes files
async def test_what_a_source_cannot_read_may_still_be_there_whatever_its_patterns_are(folder_of_nobody: Path) -> None:
    (folder_of_nobody / "shut").mkdir(mode=0)
    (folder_of_nobody / "open.md").write_bytes(TEXT)
    (folder_of_nobody / "draft.md").write_bytes(TEXT)
    source = specs.FolderSource(
        name="wiki",
        type="folder",
        path=str(folder_of_nobody),
        knowledge_base="documents",
        include=("*.md",),
        exclude=("draft*",),
    )
    async with finding.reading(source) as listing:
        assert [each.document_id for each in listing.documents] == ["wiki/open.md"]
        assert listing.unknown == ("wiki/shut/",)
    (folder_of_nobody / "shut").chmod(0o700)


def _swapped(tmp_path: Path, name: str = "a.md") -> tuple[finding.DocumentFile, Path]:
    path = tmp_path / "docs" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(TEXT)
    (document,) = finding.find([tmp_path / "docs"]).documents
    return document, path


def test_a_file_that_became_a_link_out_of_the_folder_is_not_read(tmp_path: Path) -> None:
    document, path = _swapped(tmp_path)
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert finding.read(document) == f"is {Reason.LEAVES}"


def test_a_folder_that_became_a_link_out_of_the_folder_is_not_read(tmp_path: Path) -> None:
    document, path = _swapped(tmp_path, "sub/a.md")
    outside = tmp_path / "outside"
    path.parent.rename(outside)
    path.parent.symlink_to(outside)
    assert finding.read(document) == f"is {Reason.LEAVES}"


def test_a_file_that_became_a_pipe_does_not_block(tmp_path: Path) -> None:
    document, path = _swapped(tmp_path)
    path.unlink()
    os.mkfifo(path)
    assert finding.read(document) == f"is {Reason.SPECIAL}"


def test_a_file_that_vanished_has_its_reason(tmp_path: Path) -> None:
    document, path = _swapped(tmp_path)
    path.unlink()
    assert finding.read(document) == "cannot be read: No such file or directory"


def test_a_file_that_grew_is_read_as_it_is_now(tmp_path: Path) -> None:
    document, path = _swapped(tmp_path)
    path.write_bytes(TEXT * 2)
    assert finding.read(document) == TEXT * 2
    os.truncate(path, formats.MAX_DOCUMENT_BYTES + 1)
    assert finding.read(document) == "is larger than 32 MiB"


def test_a_link_that_is_given_is_followed(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_bytes(TEXT)
    (tmp_path / "mine").symlink_to(tmp_path / "docs")
    (tmp_path / "one.md").symlink_to(tmp_path / "docs" / "a.md")
    found = finding.find([tmp_path / "mine", tmp_path / "one.md"])
    assert {each.document_id: finding.read(each) for each in found.documents} == {"mine/a.md": TEXT, "one.md": TEXT}


@pytest.mark.parametrize("name", [b"pipe.md", b"bad\xff"])
def test_a_path_that_is_no_file_or_has_no_printable_name_is_a_clear_error(tmp_path: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)
    if name == b"pipe.md":
        os.mkfifo(path)
    with pytest.raises(InvalidArgument) as caught:
        finding.find([Path(os.fsdecode(path))])
    assert printable(os.fsdecode(path)) in caught.value.message
    caught.value.message.encode()
