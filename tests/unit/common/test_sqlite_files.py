"""SQLite files: created atomically and checked; errors of damaged ones name the loss and the remedy."""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import stat
import subprocess
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal
from unittest.mock import ANY

import pytest

from genaifactory_common import sqlite_files
from genaifactory_common.damage import Damaged
from genaifactory_common.sqlite_files import Pragmas, SqliteFile, connect, transaction

ROWS = 2000


def file_in(folder: Path) -> SqliteFile:
    return SqliteFile(folder / "it's here" / "some.sqlite", "The store", "all that was stored")


def filled(file: SqliteFile) -> None:
    file.prepare()
    with closing(sqlite3.connect(file.path)) as connection, connection:
        connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)")
        connection.executemany("INSERT INTO t (b) VALUES (?)", [("x" * 200,)] * ROWS)


def count(file: SqliteFile) -> int:
    with closing(sqlite3.connect(file.path)) as connection:
        return int(connection.execute("SELECT count(*) FROM t").fetchone()[0])


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def noise(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(path.stat().st_size))


def noise_in_the_middle(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(random.Random(1).randbytes(size // 4))


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


HARMS: dict[Callable[[Path], None], str] = {
    emptied: "it is empty",
    cut_in_half: "it is damaged (",
    noise: "it is damaged (file is not a database)",
    noise_in_the_middle: "it is damaged (",
    a_folder: "it is no file",
}


def test_a_new_file_is_private_to_its_owner_and_never_empty(tmp_path: Path) -> None:
    file = file_in(tmp_path)
    file.prepare()
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert file.path.stat().st_size > 0
    assert [path.name for path in file.path.parent.iterdir()] == [file.path.name]
    file.prepare()  # accepts it


def test_a_database_that_was_not_closed_keeps_its_content(tmp_path: Path) -> None:
    file = file_in(tmp_path)
    file.prepare()
    connection = sqlite3.connect(file.path)
    connection.execute("CREATE TABLE t (a)")
    connection.commit()
    for suffix in ("", "-wal"):  # the files that a killed process leaves
        path = Path(f"{file.path}{suffix}")
        (tmp_path / path.name).write_bytes(path.read_bytes())
    connection.close()
    left = SqliteFile(tmp_path / file.path.name, "The store", "all")
    left.prepare()
    assert count(left) == 0


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_a_damaged_file_is_refused_until_the_command_of_the_message_is_run(
    harm: Callable[[Path], None], tmp_path: Path
) -> None:
    file = file_in(tmp_path)
    filled(file)
    assert count(file) == ROWS
    harm(file.path)
    with pytest.raises(Damaged) as refused:
        file.prepare()
    message = refused.value.message
    assert message.startswith(f"{file.path} cannot be used: {HARMS[harm]}")
    assert "To start without it, move it aside (this loses all that was stored):   mkdir " in message
    subprocess.run(["bash", "-euc", message.rpartition(":   ")[2]], check=True)
    file.prepare()
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        count(file)
    assert len(list(file.path.parent.glob("damaged-*/some.sqlite"))) == 1


def test_a_file_that_another_process_has_locked_is_not_checked(tmp_path: Path) -> None:
    file = file_in(tmp_path)
    filled(file)
    with closing(sqlite3.connect(file.path)) as connection:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
        file.prepare()


def test_a_large_file_is_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_files, "_CHECKED_BYTES", 1000)
    file = file_in(tmp_path)
    filled(file)
    noise_in_the_middle(file.path)
    file.prepare()


def test_the_client_gets_the_meaning_of_an_error_and_the_remedy_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file = file_in(tmp_path)
    filled(file)
    noise_in_the_middle(file.path)
    for _ in range(3):
        with pytest.raises(sqlite3.DatabaseError) as failed:
            count(file)
        assert file.explained(failed.value).message == "The store is damaged; the log of the service says what to do."
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{file.path} cannot be used: it is damaged (")
    full = file.explained(sqlite3.OperationalError("database or disk is full"))
    assert full.message == "The store has no room left on its disk."
    assert full.retry_after_seconds == 1.0


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("secure_delete", [False, True])
@pytest.mark.parametrize(("synchronous", "value"), [("NORMAL", 1), ("FULL", 2)])
def test_a_connection_has_the_requested_pragmas(
    synchronous: Literal["FULL", "NORMAL"], value: int, secure_delete: bool, exclusive: bool, tmp_path: Path
) -> None:
    file = file_in(tmp_path)
    filled(file)
    pragmas = Pragmas(synchronous, exclusive=exclusive, secure_delete=secure_delete)
    with closing(connect(file.path, pragmas, busy_seconds=2.5)) as connection:
        found: dict[str, object] = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("synchronous", "locking_mode", "secure_delete", "journal_mode", "busy_timeout")
        }
        assert found == {
            "synchronous": value,
            "locking_mode": "exclusive" if exclusive else "normal",
            "secure_delete": True if secure_delete else ANY,  # builds of SQLite have their own default
            "journal_mode": "wal",
            "busy_timeout": 2500,
        }


def test_a_transaction_is_stored_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    file = file_in(tmp_path)
    filled(file)
    with closing(connect(file.path, Pragmas("FULL"), busy_seconds=0)) as connection:
        with suppress(ZeroDivisionError), transaction(connection):
            connection.execute("DELETE FROM t")
            raise ZeroDivisionError
        assert count(file) == ROWS
        with transaction(connection):
            connection.execute("DELETE FROM t WHERE a > 10")
            with closing(connect(file.path, Pragmas("FULL"), busy_seconds=0)) as other:
                with pytest.raises(sqlite3.OperationalError, match="locked"), transaction(other):
                    pass
                assert other.execute("SELECT count(*) FROM t").fetchone() == (ROWS,)
        assert count(file) == 10
