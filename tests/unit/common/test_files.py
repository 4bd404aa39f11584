"""Files that are written atomically, and outputs through links, pipes and devices."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from genaifactory_common import files

OLD, NEW = b"what was there\n", b"what is new\n"


def put(path: Path) -> None:
    with files.output(path) as file:
        file.write(NEW[:5])
        file.write(NEW[5:])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def contents(folder: Path) -> dict[str, str | bytes]:
    """By name: a link's target, or a file's bytes."""
    found = [each for each in folder.rglob("*") if each.is_symlink() or each.is_file()]
    return {each.name: os.readlink(each) if each.is_symlink() else each.read_bytes() for each in found}


@contextmanager
def as_nobody() -> Iterator[Path]:
    """Runs the block as a user other than root, who ignores modes; yields a folder of that user."""
    if os.geteuid() != 0:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
        return
    with tempfile.TemporaryDirectory() as name:
        os.chown(name, 65534, 65534)
        os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(0)


# Each prepares a folder and returns the path to write and the file that must hold the new content.
Case = Callable[[Path], tuple[Path, Path]]


def a_new_file(folder: Path) -> tuple[Path, Path]:
    return folder / "new", folder / "new"


def a_file(folder: Path) -> tuple[Path, Path]:
    (folder / "old").write_bytes(OLD)
    (folder / "old").chmod(0o644)
    return folder / "old", folder / "old"


def a_name_of_255_bytes(folder: Path) -> tuple[Path, Path]:
    return folder / ("ế" * 85), folder / ("ế" * 85)


def a_name_that_is_not_utf_8(folder: Path) -> tuple[Path, Path]:
    path = folder / os.fsdecode(b"bad\xff\n")
    return path, path


def a_link(folder: Path) -> tuple[Path, Path]:
    a_file(folder)
    (folder / "link").symlink_to("old")
    return folder / "link", folder / "old"


def a_chain_of_links_through_folders(folder: Path) -> tuple[Path, Path]:
    (folder / "below").mkdir()
    (folder / "below" / "file").write_bytes(OLD)
    (folder / "other").symlink_to(folder / "below")
    (folder / "second").symlink_to("other/file")
    (folder / "first").symlink_to("second")
    return folder / "first", folder / "below" / "file"


def a_dangling_link(folder: Path) -> tuple[Path, Path]:
    (folder / "link").symlink_to("not-yet")
    return folder / "link", folder / "not-yet"


def a_relative_path(folder: Path) -> tuple[Path, Path]:
    a_file(folder)
    return Path(os.path.relpath(folder / "old")), folder / "old"


WRITTEN: tuple[Case, ...] = (
    a_new_file,
    a_file,
    a_name_of_255_bytes,
    a_name_that_is_not_utf_8,
    a_link,
    a_chain_of_links_through_folders,
    a_dangling_link,
    a_relative_path,
)


@pytest.mark.parametrize("case", WRITTEN, ids=lambda case: case.__name__)
@pytest.mark.parametrize("writer", [put, lambda path: files.write(path, NEW)], ids=["output", "write"])
def test_the_target_of_links_is_replaced_and_private_to_its_owner(
    case: Case, writer: Callable[[Path], None], tmp_path: Path
) -> None:
    path, target = case(tmp_path)
    before = set(names(tmp_path))
    links = {each: os.readlink(each) for each in tmp_path.rglob("*") if each.is_symlink()}
    writer(path)
    assert target.read_bytes() == NEW
    assert not target.is_symlink()
    assert mode(target) == 0o600
    assert {each: os.readlink(each) for each in links} == links
    assert set(names(tmp_path)) == before | {target.name}


@pytest.mark.parametrize("case", WRITTEN, ids=lambda case: case.__name__)
def test_the_former_content_stays_when_the_output_fails(case: Case, tmp_path: Path) -> None:
    path, _ = case(tmp_path)
    before = contents(tmp_path)

    def fail() -> None:
        with files.output(path) as file:
            file.write(NEW)
            file.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert contents(tmp_path) == before


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path, _ = a_file(tmp_path)
    with files.output(path) as file:
        file.write(NEW)
        file.flush()
        assert path.read_bytes() == OLD
    assert path.read_bytes() == NEW


def test_the_target_of_a_link_on_another_volume_is_written(tmp_path: Path) -> None:
    volumes = [Path("/dev/shm"), Path("/var/tmp")]  # in memory, and on a disk
    others = [each for each in volumes if each.is_dir() and each.stat().st_dev != tmp_path.stat().st_dev]
    if not others:
        pytest.skip("there is no second volume")
    elsewhere = others[0]
    with tempfile.TemporaryDirectory(dir=elsewhere) as name:
        target = Path(name, "target")
        target.write_bytes(OLD)
        (tmp_path / "link").symlink_to(target)
        put(tmp_path / "link")
        assert target.read_bytes() == NEW
        assert (tmp_path / "link").is_symlink()
    assert names(tmp_path) == ["link"]


@contextmanager
def collected(descriptor: int) -> Iterator[bytearray]:
    """The bytes read from a pipe until its end, complete at the end of the block."""
    found = bytearray()

    def read() -> None:
        while piece := os.read(descriptor, 4096):
            found.extend(piece)

    thread = threading.Thread(target=read)
    thread.start()
    yield found
    thread.join(timeout=10)
    assert not thread.is_alive()


@pytest.mark.parametrize("linked", [False, True], ids=["itself", "through a link"])
def test_a_named_pipe_is_written_and_stays(linked: bool, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    path = tmp_path / "link" if linked else pipe
    if linked:
        path.symlink_to("pipe")
    descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    with os.fdopen(descriptor), files.output(path) as file, collected(descriptor) as found:
        file.write(NEW)
        file.close()
    assert found == NEW
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert names(tmp_path) == ["link", "pipe"] if linked else ["pipe"]


def test_a_terminal_is_written_and_stays() -> None:
    ours, theirs = os.openpty()
    try:
        name = Path(os.ttyname(theirs))
        put(name)
        assert os.read(ours, 100).replace(b"\r\n", b"\n") == NEW
        assert stat.S_ISCHR(name.stat().st_mode)
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(("minor", "refused"), [(3, None), (7, errno.ENOSPC)], ids=["null", "full"])
def test_a_device_is_written_and_stays_also_for_root(minor: int, refused: int | None, tmp_path: Path) -> None:
    device = tmp_path / "device"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, minor))
        os.close(os.open(device, os.O_WRONLY))
    except PermissionError:
        pytest.skip("only root can create and open a device, on a volume that allows devices")
    if refused is None:
        put(device)
    else:
        with pytest.raises(OSError) as failed:  # noqa: PT011  # its number is checked
            put(device)
        assert failed.value.errno == refused
    assert stat.S_ISCHR(device.stat().st_mode)
    assert device.stat().st_rdev == os.makedev(1, minor)
    assert names(tmp_path) == ["device"]


def test_a_pipe_is_written_through_its_descriptors_path() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "wb") as pipe:
        put(Path(f"/dev/fd/{writing}"))
        pipe.close()
        assert os.read(reading, 100) == NEW


@pytest.mark.parametrize(
    ("flags", "expected"), [(os.O_APPEND, OLD + NEW), (os.O_TRUNC, NEW)], ids=[">> file", "> file"]
)
def test_a_file_that_the_shell_opened_is_written_in_place(flags: int, expected: bytes, tmp_path: Path) -> None:
    path, _ = a_file(tmp_path)
    number = path.stat().st_ino
    descriptor = os.open(path, os.O_WRONLY | flags)
    try:
        put(Path(f"/proc/self/fd/{descriptor}"))
        os.write(descriptor, b"and on\n")
    finally:
        os.close(descriptor)
    assert path.read_bytes() == expected + b"and on\n"
    assert path.stat().st_ino == number


def a_loop(folder: Path) -> Path:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    return folder / "a"


def below_a_file(folder: Path) -> Path:
    a_file(folder)
    return folder / "old" / "new"


def a_socket(folder: Path) -> Path:
    os.mknod(folder / "socket", stat.S_IFSOCK)
    return folder / "socket"


REFUSED: dict[Callable[[Path], Path], int] = {
    a_loop: errno.ELOOP,
    below_a_file: errno.ENOTDIR,
    a_socket: errno.ENXIO,
    lambda folder: folder: errno.EISDIR,
    lambda folder: folder / "missing" / "new": errno.ENOENT,
    lambda folder: folder / ("n" * 256): errno.ENAMETOOLONG,
}


@pytest.mark.parametrize("number", [*REFUSED.values()], ids=errno.errorcode.get)
def test_an_error_names_the_path_and_nothing_changes(number: int, tmp_path: Path) -> None:
    path = next(make for make, refusal in REFUSED.items() if refusal == number)(tmp_path)
    before = names(tmp_path)
    with pytest.raises(OSError) as refused:  # noqa: PT011  # its number is checked
        put(path)
    assert (refused.value.errno, refused.value.filename) == (number, str(path))
    assert names(tmp_path) == before


def test_the_error_for_a_read_only_folder_names_the_output_and_its_file_stays() -> None:
    with as_nobody() as folder:
        path, _ = a_file(folder)
        folder.chmod(0o500)
        for wanted in (path, folder / "new"):
            with pytest.raises(PermissionError) as refused:
                put(wanted)
            assert refused.value.filename == str(wanted)
        assert path.read_bytes() == OLD
        folder.chmod(0o700)


def test_a_read_only_file_in_a_writable_folder_is_not_replaced() -> None:
    with as_nobody() as folder:
        path, _ = a_file(folder)
        path.chmod(0o400)
        with pytest.raises(PermissionError):
            put(path)
        assert path.read_bytes() == OLD


def test_a_mode_for_others_is_bounded_by_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write(tmp_path / "shared", NEW, mode=0o666)
    finally:
        os.umask(before)
    assert mode(tmp_path / "shared") == 0o640


def test_a_file_and_then_its_name_are_flushed_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def flushed(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        steps.append(("fsync", kind))
        fsync(descriptor)

    def named(old: Path, new: Path) -> None:
        steps.append(("rename", Path(old).read_text()))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", named)
    files.write(tmp_path / "kept", b"whole")
    assert steps == [("fsync", "file"), ("rename", "whole"), ("fsync", "folder")]
    assert (tmp_path / "kept").read_bytes() == b"whole"
