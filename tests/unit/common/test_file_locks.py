"""File locks: one holder at a time, released when its process dies, and checked without acquiring."""

from __future__ import annotations

import errno
import stat
import subprocess
import sys
import threading
from pathlib import Path

import filelock
import pytest
from filelock import Timeout

from genaifactory_common.file_locks import file_lock, is_held

HOLDER = """
import sys, pathlib
from genaifactory_common.file_locks import file_lock
lock = file_lock(pathlib.Path(sys.argv[1]))
lock.acquire(blocking=False)
print("held", flush=True)
sys.stdin.read()
"""


def test_another_process_holds_it_until_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    command = (sys.executable, "-c", HOLDER, path)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert is_held(path)
        with pytest.raises(Timeout):
            file_lock(path).acquire(blocking=False)
        other.kill()
        other.wait()
    assert not is_held(path)
    with file_lock(path).acquire(blocking=False):
        assert is_held(path)
    assert not is_held(path)
    assert path.exists()


def test_two_objects_of_one_process_exclude_each_other_and_any_thread_may_release(tmp_path: Path) -> None:
    first, second = file_lock(tmp_path / "lock"), file_lock(tmp_path / "lock")
    first.acquire(blocking=False)
    with pytest.raises(Timeout):
        second.acquire(blocking=False)
    thread = threading.Thread(target=first.release)
    thread.start()
    thread.join()
    with second.acquire(blocking=False):
        pass


def test_concurrent_checks_of_a_lock_do_not_report_each_other_as_its_holder(tmp_path: Path) -> None:
    """Commands that search for a running platform check concurrently."""
    path = tmp_path / "lock"
    with pytest.raises(FileNotFoundError):
        is_held(path)
    assert not path.exists()
    path.touch()
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda: found.extend(is_held(path) for _ in range(200)), daemon=True) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [False] * 800


def test_a_new_file_has_the_given_mode(tmp_path: Path) -> None:
    with file_lock(tmp_path / "lock", mode=0o600).acquire(blocking=False):
        assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o600


def test_a_file_system_without_locks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of a lock by the file's existence, which a killed holder would leave behind."""

    def missing(descriptor: int) -> bool:
        raise OSError(errno.ENOSYS, "flock is not implemented")

    monkeypatch.setattr(sys.modules[filelock.UnixFileLock.__module__], "lock_fd_nonblocking", missing)
    with pytest.raises(OSError, match="flock is not implemented"):
        file_lock(tmp_path / "lock").acquire(blocking=False)
