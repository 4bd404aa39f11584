"""The outbox: durable, bounded, at-least-once, and not blocked by a bad record."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_common import settings as common_settings
from genaifactory_common.errors import FactoryError, Internal, InvalidArgument, OutOfSpace, Overloaded, Unavailable
from genaifactory_common.space import Space, Volume
from genaifactory_orchestrator import settings
from genaifactory_orchestrator.stores.outbox import Outbox


class Monitor:
    """A monitor that stores what it receives, with configurable failures."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.calls = 0
        self.failures: list[FactoryError] = []
        self.bad: set[str] = set()
        self.bad_error: Callable[[], FactoryError] = lambda: InvalidArgument("bad record")
        self.down = False

    async def send(self, interactions: list[monitor_pb2.Interaction]) -> None:
        self.calls += 1
        if self.down:
            raise Unavailable("down")
        if self.failures:
            raise self.failures.pop(0)
        if self.bad & {i.request_id for i in interactions}:
            raise self.bad_error()
        self.ids += [i.request_id for i in interactions]


async def opened(path: Path, monitor: Monitor, **bounds: Any) -> Outbox:
    fields = {"gather_seconds": 0, "flush_seconds": 60, "max_backoff_seconds": 0.01, **bounds}
    space = Space("orchestrator", path, common_settings.Space())
    outbox = Outbox(path / "outbox.db", settings.Outbox(**fields), space, monitor.send)
    await outbox.open()
    return outbox


async def put(outbox: Outbox, request_id: str) -> None:
    with outbox.reserve() as place:
        await place.put(monitor_pb2.Interaction(request_id=request_id))


async def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    return await asyncio.to_thread(lambda: sqlite3.connect(path / "outbox.db").execute(query).fetchall())


async def test_records_are_sent_and_removed_from_disk(tmp_path: Path) -> None:
    monitor = Monitor()
    outbox = await opened(tmp_path, monitor)
    await asyncio.gather(*(put(outbox, f"r{i}") for i in range(300)))
    await outbox.close()
    assert sorted(monitor.ids) == sorted(f"r{i}" for i in range(300))
    assert await rows(tmp_path, "SELECT * FROM records") == []


async def test_concurrent_records_share_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = await opened(tmp_path, Monitor())
    commits = 0
    commit = outbox._commit

    async def counted() -> None:
        nonlocal commits
        commits += 1
        await commit()

    monkeypatch.setattr(outbox, "_commit", counted)
    await asyncio.gather(*(put(outbox, f"r{i}") for i in range(64)))
    assert commits <= 2
    await outbox.close()


async def test_records_that_monitor_does_not_accept_are_sent_by_the_next_process(tmp_path: Path) -> None:
    monitor = Monitor()
    monitor.down = True
    outbox = await opened(tmp_path, monitor, flush_seconds=0.05)
    await asyncio.gather(*(put(outbox, f"r{i}") for i in range(5)))
    await outbox.close()
    assert monitor.calls > 1
    monitor.down = False
    outbox = await opened(tmp_path, monitor)
    await outbox.close()
    assert sorted(monitor.ids) == ["r0", "r1", "r2", "r3", "r4"]


async def test_a_record_that_monitor_refuses_is_moved_aside_and_the_others_are_sent(tmp_path: Path) -> None:
    monitor = Monitor()
    monitor.bad = {"r3", "r7"}
    outbox = await opened(tmp_path, monitor)
    await asyncio.gather(*(put(outbox, f"r{i}") for i in range(10)))
    await outbox.close()
    assert sorted(monitor.ids) == [f"r{i}" for i in range(10) if i not in (3, 7)]
    assert await rows(tmp_path, "SELECT request_id, error FROM poison ORDER BY 1") == [
        ("r3", "bad record"),
        ("r7", "bad record"),
    ]
    assert await rows(tmp_path, "SELECT * FROM records") == []


async def test_a_record_that_causes_internal_errors_is_moved_aside_after_some_attempts(tmp_path: Path) -> None:
    monitor = Monitor()
    monitor.bad = {"r1"}
    monitor.bad_error = lambda: Internal("a mistake")
    outbox = await opened(tmp_path, monitor)
    await asyncio.gather(*(put(outbox, f"r{i}") for i in range(3)))
    await outbox.close()
    assert sorted(monitor.ids) == ["r0", "r2"]
    assert await rows(tmp_path, "SELECT request_id FROM poison") == [("r1",)]


async def test_internal_errors_at_every_record_lose_none(tmp_path: Path) -> None:
    monitor = Monitor()
    monitor.bad = {f"r{i}" for i in range(3)}
    monitor.bad_error = lambda: Internal("the store is gone")
    outbox = await opened(tmp_path, monitor)
    await asyncio.gather(*(put(outbox, f"r{i}") for i in range(3)))
    while monitor.calls < 30:  # noqa: ASYNC110  # it has no public event
        await asyncio.sleep(0.005)
    monitor.bad = set()
    await outbox.close()
    assert sorted(monitor.ids) == ["r0", "r1", "r2"]
    assert await rows(tmp_path, "SELECT * FROM poison") == []


async def test_temporary_errors_of_monitor_lose_no_record(tmp_path: Path) -> None:
    monitor = Monitor()
    monitor.failures = [Internal("x"), Unavailable("y"), Internal("z")]
    outbox = await opened(tmp_path, monitor)
    await put(outbox, "r")
    await outbox.close()
    assert monitor.ids == ["r"]


@pytest.mark.parametrize("bounds", [{"max_records": 3}, {"max_bytes": 12}])
async def test_a_full_outbox_refuses_until_monitor_has_accepted_some(tmp_path: Path, bounds: dict[str, int]) -> None:
    monitor = Monitor()
    monitor.down = True
    outbox = await opened(tmp_path, monitor, **bounds)
    for i in range(3):
        await put(outbox, f"r{i}")
    with pytest.raises(Overloaded):
        outbox.reserve()
    monitor.down = False
    while outbox.waiting:  # noqa: ASYNC110  # it has no public event
        await asyncio.sleep(0.005)
    await put(outbox, "r3")
    await outbox.close()
    assert sorted(monitor.ids) == ["r0", "r1", "r2", "r3"]


async def test_an_unused_place_is_released(tmp_path: Path) -> None:
    outbox = await opened(tmp_path, Monitor(), max_records=1)
    for _ in range(3):
        with outbox.reserve(), pytest.raises(Overloaded):
            outbox.reserve()
    await outbox.close()


async def test_the_record_of_a_cancelled_request_is_sent(tmp_path: Path) -> None:
    monitor = Monitor()
    outbox = await opened(tmp_path, monitor)
    putting = asyncio.create_task(put(outbox, "r"))
    await asyncio.sleep(0)
    putting.cancel()
    with outbox.reserve() as place:
        place.put_soon(monitor_pb2.Interaction(request_id="s"))
    await outbox.close()
    assert sorted(monitor.ids) == ["r", "s"]


async def test_a_failing_disk_is_an_error_of_the_request(tmp_path: Path) -> None:
    outbox = await opened(tmp_path, Monitor())
    await outbox._database.run(lambda connection: connection.execute("DROP TABLE records"))
    with pytest.raises(Unavailable, match="recorded"):
        await put(outbox, "r")
    await outbox.close()


async def test_a_full_disk_is_an_error_and_later_records_are_stored_when_there_is_room(tmp_path: Path) -> None:
    monitor = Monitor()
    outbox = await opened(tmp_path, monitor)

    def pages(most: int) -> Callable[[sqlite3.Connection], object]:
        return lambda connection: connection.execute(f"PRAGMA max_page_count = {most}")

    await outbox._database.run(pages(1))  # SQLite uses the file's present size as the limit, so it is full
    with pytest.raises(OutOfSpace, match=r"cannot be recorded, so it is withdrawn\. The disk that holds .* room"):
        await put_long(outbox, "lost")
    await outbox._database.run(pages(1 << 30))
    await put_long(outbox, "kept")
    await outbox.close()
    assert monitor.ids == ["kept"]


async def test_on_a_full_disk_an_accepted_record_is_stored_in_the_spare_room(tmp_path: Path) -> None:
    class Kept(Space):
        def release_spare(self) -> None:
            assert outbox._database._connection is not None
            outbox._database._connection.execute(f"PRAGMA max_page_count = {1 << 30}")

    monitor = Monitor()
    outbox = Outbox(
        tmp_path / "outbox.db",
        settings.Outbox(),
        Kept("orchestrator", tmp_path, common_settings.Space()),
        monitor.send,
    )
    await outbox.open()
    await outbox._database.run(lambda connection: connection.execute("PRAGMA max_page_count = 1"))
    await put_long(outbox, "kept")
    await outbox.close()
    assert monitor.ids == ["kept"]


async def put_long(outbox: Outbox, name: str) -> None:
    with outbox.reserve() as place:
        await place.put(monitor_pb2.Interaction(request_id=name, output="x" * 100_000))


async def test_an_answer_is_refused_before_it_begins_when_there_is_no_room_for_its_record(tmp_path: Path) -> None:
    space = Space("orchestrator", tmp_path, common_settings.Space(), read=lambda _: Volume(free=1 << 20, size=1 << 40))
    outbox = Outbox(tmp_path / "outbox.db", settings.Outbox(), space, Monitor().send)
    await asyncio.to_thread(space.look)
    with pytest.raises(OutOfSpace, match=r"1\.0 MiB are free, 40\.0 MiB are needed"):
        outbox.reserve()


_WRITER = """
    import asyncio, sys
    from pathlib import Path
    from genaifactory.monitor.v1 import monitor_pb2
    from genaifactory_common.errors import Unavailable
    from genaifactory_common.space import Space
    from genaifactory_orchestrator import settings
    from genaifactory_orchestrator.stores.outbox import Outbox

    async def send(interactions):
        print(*(f"sent {i.request_id}" for i in interactions), sep="\\n", flush=True)
        if len(interactions) % 2:
            raise Unavailable("down")

    async def put(outbox, name):
        with outbox.reserve() as place:
            await place.put(monitor_pb2.Interaction(request_id=name, output="x" * 500))
        print("done", name, flush=True)

    async def main():
        folder = Path(sys.argv[1])
        space = Space("orchestrator", folder, settings.settings.Space())
        outbox = Outbox(folder / "outbox.db", settings.Outbox(gather_seconds=0), space, send)
        await outbox.open()
        for round in range(10**6):
            await asyncio.gather(*(put(outbox, f"{sys.argv[2]}-{round}-{i}") for i in range(16)))

    asyncio.run(main())
"""


def test_no_acknowledged_record_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    acknowledged: set[str] = set()
    sent: set[str] = set()
    for run in range(5):
        lines: list[list[str]] = []
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_WRITER), str(tmp_path), str(run)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line.split())
                if len(lines) == 150 + 37 * run:
                    os.kill(process.pid, signal.SIGKILL)
        acknowledged |= {words[1] for words in lines if len(words) == 2 and words[0] == "done"}
        sent |= {words[1] for words in lines if len(words) == 2 and words[0] == "sent"}

    monitor = Monitor()

    async def drain() -> None:
        outbox = await opened(tmp_path, monitor)
        await outbox.close()

    asyncio.run(drain())
    assert len(acknowledged) > 200
    assert acknowledged <= sent | set(monitor.ids)


async def test_a_record_is_flushed_to_disk_before_its_request_continues(tmp_path: Path) -> None:
    outbox = await opened(tmp_path, Monitor())
    (mode,) = await outbox._database.run(lambda connection: connection.execute("PRAGMA synchronous").fetchone())
    assert mode == 2  # FULL: a property of this connection
    await outbox.close()
