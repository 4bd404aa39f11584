"""Room on disk: checked with two marks, work refused in time, and spare room for work that must finish."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from genaifactory_common import settings, space
from genaifactory_common.errors import OutOfSpace
from genaifactory_common.space import SPARE_FILE, Room, Space, Volume

MIB = 1 << 20
BOUNDS = settings.Space(low_bytes=100 * MIB, full_bytes=20 * MIB, spare_bytes=1 * MIB)


@dataclass
class Disk:
    """A volume with free space that the test sets, and a clock."""

    free: int = 500 * MIB
    size: int = 1000 * MIB
    now: float = 0.0
    looks: list[float] = field(default_factory=list)

    def read(self, folder: Path) -> Volume:
        self.looks.append(self.now)
        return Volume(self.free, self.size)

    def space(self, folder: Path, bounds: settings.Space = BOUNDS) -> Space:
        return Space("any", folder, bounds, read=self.read, clock=lambda: self.now)

    def after(self, watched: Space, free: int) -> Room:
        self.now += 1
        self.free = free
        return watched.look()


def test_a_nearly_full_disk_is_reported_and_with_a_full_one_nothing_new_is_accepted(tmp_path: Path) -> None:
    disk = Disk()
    watched = disk.space(tmp_path)
    assert watched.look() is Room.ENOUGH
    assert disk.after(watched, 99 * MIB) is Room.LOW
    watched.require()
    assert disk.after(watched, 19 * MIB) is Room.FULL
    with pytest.raises(OutOfSpace) as refused:
        watched.require()
    assert refused.value.retry_after_seconds == space.RETRY_SECONDS
    assert re.fullmatch(
        rf"The disk that holds {re.escape(str(tmp_path))} has too little room: 19\.0 MiB are free, 25\.0 MiB are "
        r"needed\. Make room on it, or enlarge the volume; the platform then goes on by itself.",
        refused.value.message,
    )


def test_a_state_ends_only_when_there_is_clearly_more_room_again(tmp_path: Path) -> None:
    disk = Disk(free=19 * MIB)
    watched = disk.space(tmp_path)
    assert watched.look() is Room.FULL
    assert disk.after(watched, 24 * MIB) is Room.FULL
    assert disk.after(watched, 26 * MIB) is Room.LOW
    watched.require()
    assert disk.after(watched, 124 * MIB) is Room.LOW
    assert disk.after(watched, 126 * MIB) is Room.ENOUGH


def test_work_that_would_fill_the_disk_is_refused(tmp_path: Path) -> None:
    watched = Disk(free=200 * MIB).space(tmp_path)
    watched.look()
    watched.require(180 * MIB)
    with pytest.raises(OutOfSpace, match=r"200\.0 MiB are free, 206\.0 MiB are needed"):
        watched.require(181 * MIB)


def test_on_a_small_volume_the_marks_are_shares_of_it(tmp_path: Path) -> None:
    disk = Disk(free=60 * MIB, size=80 * MIB)
    watched = disk.space(tmp_path)
    assert watched.look() is Room.ENOUGH
    assert disk.after(watched, 19 * MIB) is Room.LOW
    assert disk.after(watched, 9 * MIB) is Room.FULL


def test_the_disk_is_checked_at_most_once_a_second(tmp_path: Path) -> None:
    disk = Disk()
    watched = disk.space(tmp_path)
    for moment in (0.0, 0.5, 0.99, 1.0, 1.5, 2.0):
        disk.now = moment
        watched.look()
    assert disk.looks == [0.0, 1.0, 2.0]


def test_each_change_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=space.__name__)
    disk = Disk()
    watched = disk.space(tmp_path)
    for free in (500 * MIB, 50 * MIB, 40 * MIB, 5 * MIB, 4 * MIB, 300 * MIB):
        disk.after(watched, free)
    assert [
        (record.levelname, record.message.split(", ")[0].partition(str(tmp_path))[2]) for record in caplog.records
    ] == [
        ("WARNING", " is nearly full"),
        ("WARNING", " is full"),
        ("INFO", " has room again"),
    ]


@pytest.mark.allow_blocking
async def test_spare_room_is_reserved_and_released(tmp_path: Path) -> None:
    folder = tmp_path / "of" / "a first start"
    watched = Space("any", folder, settings.Space(low_bytes=0, full_bytes=2 * MIB, spare_bytes=1 * MIB))
    async with watched.watched():
        spare = folder / SPARE_FILE
        found = spare.stat()
        assert found.st_blocks * 512 >= found.st_size == MIB, "blocks, not a hole"
        watched.release_spare()
        assert not spare.exists()
