"""What `make` prints to somebody who types it for the first time."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(autouse=True)
def has_make() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")


def test_the_list_of_targets_has_two_columns() -> None:
    done = make()
    assert (done.returncode, done.stderr) == (0, "")
    targets, texts = zip(*(line.split(maxsplit=1) for line in done.stdout.splitlines()), strict=True)
    assert {"help", "run", "test", "clean", "test-cluster"} <= set(targets)
    assert {line.index(text) for line, text in zip(done.stdout.splitlines(), texts, strict=True)} == {22}


def test_uv_is_fetched_without_a_warning_about_root(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 0\n[ "$PIP_ROOT_USER_ACTION" = ignore ] || echo warned\n')
    python.chmod(0o755)
    done = make(f"PYTHON={python}", "UV=.cache/uv/bin/uv", ".cache/uv/bin/uv", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
