"""Damaged files of the state folder: one line names the file, what is lost without it, and the command to type."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from genaifactory_local import cli, state
from genaifactory_local.state import State


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def noise(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(64))


def a_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    (path / "below").mkdir(parents=True)


def a_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("something else")


ANY_CONTENT = (emptied, cut_in_half, noise, a_folder)
# A file of the state folder, how it is damaged, and what its loss costs.
HARMS: list[tuple[str, Callable[[Path], None], str]] = [
    *(("key", harm, "the key that clients use") for harm in ANY_CONTENT),
    *(("signing-key", harm, "nothing: a new one is made") for harm in ANY_CONTENT),
    ("running.json", a_folder, "nothing: a new one is made"),
    ("log", a_file, "what it holds"),
    ("log/genaifactory.jsonl", a_folder, "what it holds"),
    ("data/monitor/monitor.sqlite", emptied, "the record of requests so far"),
    ("data/monitor/monitor.sqlite", noise, "the record of requests so far"),
    ("data/monitor/monitor.sqlite", a_folder, "the record of requests so far"),
]


@pytest.mark.parametrize(("name", "harm", "loss"), HARMS, ids=lambda each: getattr(each, "__name__", each))
def test_run_names_the_file_its_loss_and_the_command(
    name: str,
    harm: Callable[[Path], None],
    loss: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with state.held(tmp_path / "state") as held:
        state.development_key(held)
        state.signer(held)
    path = held.folder / name
    if not path.exists() and harm is not a_file:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x" * 100)
    harm(path)
    monkeypatch.setattr(
        sys, "argv", ["genaifactory", "run", "--state", str(held.folder), "--port", "0", "--grpc-port", "0"]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"genaifactory: {path} cannot be used: ")
    assert f"To start without it, move it aside (this loses {loss}" in line
    subprocess.run(["bash", "-euc", line.rpartition("): ")[2]], check=True)
    assert not path.exists()
    assert list(path.parent.glob("*damaged-*"))


def test_a_file_in_place_of_the_folder_of_sockets_is_replaced(tmp_path: Path) -> None:
    a_file(tmp_path / "run")
    with state.socket_folder(State(tmp_path)) as folder:
        assert folder.is_dir()
