"""A disk that fills up at every write of ingest, answer, record, export and configuration, on a small tmpfs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.full import FULL

# The platform, and the test that fills its disk, are other processes.
pytestmark = pytest.mark.allow_blocking

NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "--kill-child")
TIMEOUT_SECONDS = 3600 if FULL else 300


def _why_not() -> str:
    """Why a user cannot mount a tmpfs in a namespace here; empty when one can."""
    try:
        tried = subprocess.run(
            [*NAMESPACE, "sh", "-c", "mount -t tmpfs tmpfs /tmp"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except OSError as error:
        return str(error)
    return tried.stderr.strip() if tried.returncode else ""


def test_on_a_full_disk_nothing_is_lost_or_hangs_and_work_goes_on_without_a_restart(tmp_path: Path) -> None:
    if why := _why_not():
        pytest.skip(f"no tmpfs can be mounted in a user namespace: {why}")
    ended = subprocess.run(
        [*NAMESPACE, sys.executable, "-m", "tests.integration.full_disk", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
