"""Which files of folders are documents, what they are named, and why the others are skipped.

A folder may hold anything: names that are no text, links that lead out or in circles, pipes, devices, files that may
not be read or change during the walk. None of it ends the walk; each is a document or has a reason why not.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from genaifactory_common import formats, specs
from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines.sources.printable import printable
from genaifactory_pipelines.sources.protocol import Content, Listing
from genaifactory_pipelines.sources.selection import EMPTY, LARGE, Reason, is_document, is_wanted


@dataclass(frozen=True)
class Source:
    """A folder or file that was given."""

    path: Path
    """Absolute, as it was given."""
    name: str
    """Stored with its documents, and printed: the path, unless it was given a name."""
    is_folder: bool
    root: str
    """The path without links; every file that is read is there or below."""
    label: str
    """The beginning of its documents' ids: one of `labels`."""

    def labelled(self, below: str) -> str:
        """The id of the document at this path below the source; "" for the source itself."""
        return f"{self.label}/{below}" if self.is_folder else self.label


@dataclass(frozen=True)
class Skipped:
    """Something in a folder that is not read."""

    source: Source
    below: str
    """Its path below the source, printable; a folder's ends in '/'."""
    reason: Reason
    detail: str = ""
    """The system's error text."""

    @property
    def name(self) -> str:
        """In the form of a document's id."""
        return self.source.labelled(self.below)

    @property
    def why(self) -> str:
        """The reason in words."""
        return f"{self.reason} ({self.detail})" if self.detail else str(self.reason)


@dataclass(frozen=True)
class DocumentFile:
    """A file to be ingested."""

    path: Path
    source: Source
    below: str = ""
    """The document's path below its source, printable; empty when the source is the file."""

    @property
    def document_id(self) -> str:
        """The source's label and the path below it, with '/': "handbook/leave.md"."""
        return self.source.labelled(self.below)

    @property
    def source_name(self) -> str:
        """See Document."""
        return self.source.name

    @property
    def uri(self) -> str:
        """Its id as a relative URL."""
        return formats.uri(self.document_id)

    async def content(self) -> Content | str:
        """See Document."""
        data = await asyncio.to_thread(read, self)
        return data if isinstance(data, str) else Content(data)


@dataclass(frozen=True)
class FoundFiles:
    """The files at and below the paths that were given."""

    documents: tuple[DocumentFile, ...]
    skipped: tuple[Skipped, ...] = ()
    sources: tuple[Source, ...] = ()

    @property
    def unknown(self) -> tuple[str, ...]:
        """Beginnings of the ids of documents that may still be there, below a folder that cannot be read."""
        return tuple(each.name for each in self.skipped if each.reason is Reason.UNREADABLE)


def find(paths: Iterable[Path], *, names: Mapping[Path, str] | None = None) -> FoundFiles:
    """The documents at and below `paths`, sorted, and what is skipped below them.

    names: of sources, by their absolute path; others are named by it. A given path that is itself a link is followed.
    Blocks. Raises InvalidArgument when a path does not
    exist, may not be read or is no document.
    """
    documents: list[DocumentFile] = []
    skipped: list[Skipped] = []
    sources: dict[Path, Source] = {}
    for path in paths:
        path = Path(os.path.abspath(path))  # without '..', which would become part of a label
        if path in sources:
            continue
        source = sources[path] = _source(path, (names or {}).get(path))
        if source.is_folder:
            walk = _Walk(source)
            walk.run()
            documents += walk.documents.values()
            skipped += walk.skipped
        else:
            documents.append(DocumentFile(path, source))
    documents.sort(key=lambda each: each.document_id)
    return FoundFiles(tuple(documents), tuple(sorted(skipped, key=lambda each: each.name)), tuple(sources.values()))


@asynccontextmanager
async def reading(source: specs.FolderSource) -> AsyncIterator[Listing]:
    """Lists a folder of factory.yaml. Raises InvalidArgument when it is none, or may not be read."""
    yield await asyncio.to_thread(_listed, source)


def _listed(source: specs.FolderSource) -> Listing:
    path = Path(os.path.abspath(Path(source.path).expanduser()))
    found = find([path], names={path: source.name})
    (place,) = found.sources
    if not place.is_folder:
        raise InvalidArgument(
            f"The source '{source.name}' must be a folder; {printable(str(path))} is a file.", field="sources"
        )
    named = relabelled(found, {place: replace(place, label=source.name)})
    # A folder that cannot be read is reported whatever the patterns are, since wanted documents may be below it.
    skipped = [each for each in named.skipped if each.reason is Reason.UNREADABLE or is_wanted(source, each.below)]
    return Listing([each for each in named.documents if is_wanted(source, each.below)], skipped, named.unknown)


def relabelled(found: FoundFiles, labels: Mapping[Source, Source]) -> FoundFiles:
    """The same files with other labels. labels: each source with its old label -> with the new one."""
    documents = [replace(document, source=labels[document.source]) for document in found.documents]
    skipped = [replace(each, source=labels[each.source]) for each in found.skipped]
    long = [each for each in documents if len(each.document_id) > formats.MAX_ID_CHARACTERS]
    skipped += [Skipped(each.source, each.below, Reason.LONG) for each in long]
    documents = sorted((each for each in documents if each not in long), key=lambda each: each.document_id)
    return FoundFiles(tuple(documents), tuple(skipped), tuple(labels.values()))


def labels(path: Path) -> Iterator[str]:
    """Possible labels of an absolute path, shortest first: its name, then with the folders above it."""
    parts = [printable(part) for part in path.parts if part != path.anchor] or ["root"]
    for count in range(1, len(parts) + 1):
        yield "/".join(parts[-count:])


def read(document: DocumentFile) -> bytes | str:
    """The file's bytes, or why it cannot be read. Blocks; never on a pipe or device.

    Checks the opened file, not the path as it was during the walk: it must be a regular file inside the source.
    """
    try:
        descriptor = os.open(document.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return f"is {Reason.SPECIAL}"
            if status.st_nlink == 0:
                return "vanished while it was read"
            if not _is_inside(os.readlink(f"/proc/self/fd/{descriptor}"), document.source.root):
                return f"is {Reason.LEAVES}"
            data = file.read(formats.MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not data:
        return EMPTY
    if len(data) > formats.MAX_DOCUMENT_BYTES:
        return LARGE
    return data


def _source(path: Path, name: str | None) -> Source:
    shown = _bounded(printable(str(path)))
    name = name or shown
    try:
        mode = path.stat().st_mode
        root = os.path.realpath(path, strict=True)
        if stat.S_ISDIR(mode):
            os.scandir(path).close()  # a folder that was named must be readable; those below it need not
    except FileNotFoundError:
        raise InvalidArgument(f"{shown} does not exist.", field="path") from None
    except OSError as error:
        raise InvalidArgument(f"{shown} cannot be read: {error.strerror}.", field="path") from None
    if stat.S_ISDIR(mode):
        return Source(path, name, is_folder=True, root=root, label=next(labels(path)))
    if not stat.S_ISREG(mode):
        raise InvalidArgument(f"{shown} is {Reason.SPECIAL}; give a file or a folder.", field="path")
    if not is_document(path.name):
        endings = ", ".join(sorted(formats.BY_ENDING))
        raise InvalidArgument(f"{shown} is not a document; documents end in {endings}.", field="path")
    return Source(path, name, is_folder=False, root=root, label=next(labels(path)))


def _bounded(name: str) -> str:
    return name if len(name) <= formats.MAX_SOURCE_CHARACTERS else f"…{name[1 - formats.MAX_SOURCE_CHARACTERS :]}"


class _Walk:
    """One walk through a folder: first its content, then the targets of its links to folders, each folder once."""

    def __init__(self, source: Source) -> None:
        self.documents: dict[str, DocumentFile] = {}
        self.skipped: list[Skipped] = []
        self._source = source
        self._seen: set[tuple[int, int]] = set()
        """Device and inode of the folders that were read."""

    def run(self) -> None:
        """Fills `documents` and `skipped`."""
        links: list[tuple[str, str]] = []
        waiting = [(str(self._source.path), "")]
        while waiting or links:
            # Targets of links come last, so that a file that is also in the folder is named by its path there.
            path, below = waiting.pop() if waiting else links.pop(0)
            folders = []
            for entry in self._entries(path, below):
                name = f"{below}/{entry.name}" if below else entry.name
                if entry.name.startswith("."):
                    self._skip(f"{name}/" if _is_folder(entry) else name, Reason.HIDDEN)
                elif entry.is_symlink():
                    self._link(entry, name, links)
                elif _is_folder(entry):
                    folders.append((entry.path, name))
                else:
                    self._file(entry, name)
            waiting += reversed(folders)

    def _entries(self, path: str, below: str) -> list[os.DirEntry[str]]:
        """A folder's entries; none, and the reason in `skipped`, when it cannot be read or was read before."""
        try:
            status = os.stat(path)
            place = (status.st_dev, status.st_ino)
            if place in self._seen:
                self._skip(f"{below}/", Reason.AGAIN)
                return []
            self._seen.add(place)
            with os.scandir(path) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            # The source itself is "": its name ends in one '/', as the ids of its documents begin.
            self._skip(f"{below}/" if below else "", Reason.UNREADABLE, error.strerror or "")
            return []

    def _link(self, entry: os.DirEntry[str], name: str, links: list[tuple[str, str]]) -> None:
        try:
            target, mode = os.path.realpath(entry.path, strict=True), os.stat(entry.path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            self._skip(name, Reason.DANGLING)
            return
        except OSError as error:
            reason = Reason.CIRCLE if error.errno == errno.ELOOP else Reason.UNREADABLE
            self._skip(name, reason, error.strerror or "")
            return
        if not _is_inside(target, self._source.root):
            self._skip(name, Reason.LEAVES)
        elif stat.S_ISDIR(mode):
            links.append((entry.path, name))
        else:
            self._file(entry, name)

    def _file(self, entry: os.DirEntry[str], name: str) -> None:
        try:
            is_file = entry.is_file()
        except OSError as error:
            self._skip(name, Reason.UNREADABLE, error.strerror or "")
            return
        document = DocumentFile(Path(entry.path), self._source, printable(name))
        if not is_file:
            self._skip(name, Reason.SPECIAL)
        elif not is_document(entry.name):
            self._skip(name, Reason.TYPE)
        elif len(document.document_id) > formats.MAX_ID_CHARACTERS:
            self._skip(name, Reason.LONG)
        else:
            self._add(document, name)

    def _add(self, document: DocumentFile, name: str) -> None:
        """Of two files with the same printable name, the one whose name is unchanged by it is read."""
        other = self.documents.get(document.below)
        if other is not None and name != document.below:
            self._skip(name, Reason.TWIN)
            return
        if other is not None:
            self._skip(other.below, Reason.TWIN)
        self.documents[document.below] = document

    def _skip(self, name: str, reason: Reason, detail: str = "") -> None:
        self.skipped.append(Skipped(self._source, printable(name), reason, detail))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _is_inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")
