"""Printed commands run when typed as they are printed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from genaifactory_local import invocation


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """An installed `genaifactory` that prints its own path."""
    file = tmp_path / "my project" / ".venv" / "bin" / "genaifactory"
    file.parent.mkdir(parents=True)
    file.write_text('#!/bin/sh\necho "$0"\n')
    file.chmod(0o700)
    return file


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        (".", ".venv/bin/genaifactory"),
        (".venv/bin", "./genaifactory"),
        ("docs", "../.venv/bin/genaifactory"),
    ],
)
def test_the_command_is_found_from_the_working_folder(
    folder: str, expected: str, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    working = program.parents[2] / folder
    working.mkdir(exist_ok=True)
    monkeypatch.chdir(working)
    monkeypatch.setattr(sys, "argv", [str(program)])
    assert invocation.command() == expected
    done = subprocess.run(invocation.command(), shell=True, capture_output=True, text=True, check=True, timeout=30)
    assert Path(done.stdout.strip()).resolve() == program


def test_from_a_distant_folder_it_is_the_whole_path_quoted(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/usr/bin")
    monkeypatch.setattr(sys, "argv", [str(program)])
    assert invocation.command() == f"'{program}'"


def test_on_path_it_is_the_plain_name(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr(sys, "argv", [str(program)])
    assert invocation.command() == "genaifactory"


def test_another_genaifactory_on_path_is_not_mistaken_for_this_one(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "bin" / "genaifactory"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\n")
    other.chmod(0o700)
    monkeypatch.chdir(program.parents[2])
    monkeypatch.setenv("PATH", str(other.parent), prepend=":")
    monkeypatch.setattr(sys, "argv", [str(program)])
    assert invocation.command() == ".venv/bin/genaifactory"


def test_run_as_a_module_it_is_python_with_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(Path(invocation.__file__).with_name("__main__.py"))])
    done = subprocess.run(
        f"{invocation.command()} --version", shell=True, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("genaifactory ")
