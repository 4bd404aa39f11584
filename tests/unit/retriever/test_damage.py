"""Damaged files of the retriever: an index is rebuilt; for the library the error names the loss and the remedy."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from genaifactory_common.damage import Damaged
from genaifactory_common.errors import Unavailable
from genaifactory_common.testing import act_as

from .conftest import Client, Doc, outcomes, retriever

pytestmark = pytest.mark.allow_blocking

INDEX = "docs--v1"
DOCUMENTS = [
    Doc("boot", "To boot the installer, write the image to a USB stick and choose it in the firmware's menu."),
    Doc("raid", "RAID 6 keeps two blocks of parity and so survives the loss of any two disks."),
    Doc("swap", "A swap partition of the size of the memory is needed to hibernate the machine."),
    Doc("copy", "A swap partition of the size of the memory is needed to hibernate the machine."),
    Doc("hidden", "The safe is opened with the second key of the treasurer.", groups=("finance",)),
]
QUESTION = "how many disks may be lost"


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def noise(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(min(path.stat().st_size, 1 << 18)))


def gone(path: Path) -> None:
    path.unlink()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "x").write_text("of somebody else")


def typed(message: str, data: Path) -> bytes | None:
    """Runs the command of a message; returns the bytes of the file that it moved aside, None if that is no file."""
    subprocess.run(["bash", "-euc", message.rpartition(":   ")[2]], check=True)
    (aside,) = data.glob("damaged-*/library.sqlite")
    return aside.read_bytes() if aside.is_file() else None


Harm = Callable[[Path], None]


@pytest.fixture(autouse=True)
def caller() -> None:
    act_as()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> tuple[Path, str]:
    """A retriever's folder that holds DOCUMENTS, and the answer to QUESTION."""
    folder = tmp_path_factory.mktemp("stored") / "data"

    async def fill() -> str:
        act_as()
        async with retriever(folder, model_dir) as client:
            await client.ingest(DOCUMENTS)
            found = await client.search(QUESTION)
        assert found.passages[0].document_id == "raid"
        return str(found)

    return folder, asyncio.run(fill())


@pytest.fixture
def data(stored: tuple[Path, str], tmp_path: Path) -> Path:
    subprocess.run(["cp", "-a", stored[0], tmp_path / "data"], check=True)
    return tmp_path / "data"


# Files of a shard, by the end of their paths, one of each kind, each damaged in its own way. Edge refuses some, panics
# on some, and opens others: with passages missing, none found, or deletions without effect.
SHARD_HARMS: tuple[tuple[Harm, str], ...] = (
    (emptied, "edge_config.json"),
    (noise, "wal/open-1"),
    (gone, "wal/open-1"),
    (cut_in_half, "wal/first-index"),
    (a_folder, "segment.json"),
    (gone, "version.info"),
    (emptied, "mutable_id_tracker.mappings"),
    (cut_in_half, "mutable_id_tracker.versions"),
    (noise, "mutable_id_tracker.versions"),
    (emptied, "vector_storage-dense/vectors/status.dat"),
    (gone, "vector_storage-dense/vectors/status.dat"),
    (noise, "vector_storage-dense/vectors/chunk_0.mmap"),
    (emptied, "vector_storage-lexical/store/page_0.dat"),
    (cut_in_half, "vector_storage-lexical/deleted/status.dat"),
    (noise, "payload_storage/page_0.dat"),
    (emptied, "payload_storage/tracker.dat"),
)


@pytest.mark.parametrize(("harm", "end"), SHARD_HARMS, ids=lambda each: getattr(each, "__name__", each))
async def test_a_damaged_index_answers_as_before_after_a_restart(
    harm: Harm, end: str, data: Path, stored: tuple[Path, str], model_dir: Path
) -> None:
    (file,) = [path for path in (data / "vectors" / INDEX).rglob("*") if str(path).endswith(end)]
    harm(file)
    async with retriever(data, model_dir) as client:
        assert str(await client.search(QUESTION)) == stored[1]
        assert outcomes(await client.ingest(DOCUMENTS[:2])) == ["unchanged"] * 2
        assert await client.delete("raid") == 1
        assert "RAID" not in str(await client.search(QUESTION))


@pytest.mark.parametrize("instead", [None, "a file"])
async def test_a_lost_index_is_rebuilt_and_the_rebuild_is_logged(
    instead: str | None, data: Path, stored: tuple[Path, str], model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(data / "vectors" / INDEX)
    if instead is not None:
        (data / "vectors" / INDEX).write_text(instead)
    async with retriever(data, model_dir) as client:
        assert str(await client.search(QUESTION)) == stored[1]
    (line,) = [record.getMessage() for record in caplog.records if INDEX in record.getMessage()]
    assert "is damaged" in line
    assert "it is rebuilt from the 4 stored documents" in line


async def test_a_sound_index_is_not_rebuilt(data: Path, model_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with retriever(data, model_dir) as client:
        same = "The same words stand in more documents than a search looks at."
        await client.ingest([Doc(f"{n}", f"# {n}\n\n{same}", groups=(f"g{n % 2}",)) for n in range(40)])
    async with retriever(data, model_dir):
        pass
    assert [line for line in (record.getMessage() for record in caplog.records) if "rebuilt" in line] == []


@pytest.mark.parametrize("harm", [emptied, cut_in_half, noise, a_folder], ids=lambda harm: harm.__name__)
async def test_a_damaged_library_is_refused_until_the_command_of_the_message_was_run(
    harm: Harm, data: Path, model_dir: Path
) -> None:
    library = data / "library.sqlite"
    harm(library)
    held = library.read_bytes() if library.is_file() else b""
    with pytest.raises(Damaged) as refused:
        async with retriever(data, model_dir):
            pass
    message = refused.value.message
    assert message.startswith(f"{library} cannot be used: ")
    assert "this loses the documents that were stored: those of DOCS are read again" in message
    assert typed(message, data) in (held, None)
    async with retriever(data, model_dir) as client:
        assert list((await client.search(QUESTION)).passages) == []
        assert outcomes(await client.ingest(DOCUMENTS[:1])) == ["added"]
        assert (await client.search("USB stick")).passages[0].document_id == "boot"


async def test_the_write_ahead_log_of_a_former_library_is_not_replayed_into_a_new_one(
    data: Path, model_dir: Path
) -> None:
    with sqlite3.connect(data / "library.sqlite") as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("UPDATE documents SET title = 'of the former'")
        connection.commit()
        shutil.copy(data / "library.sqlite-wal", data / "kept")
    connection.close()
    (data / "library.sqlite").unlink()
    shutil.move(data / "kept", data / "library.sqlite-wal")
    async with retriever(data, model_dir) as client:
        assert list((await client.search(QUESTION)).passages) == []
        assert outcomes(await client.ingest(DOCUMENTS[:1])) == ["added"]


async def test_damage_found_at_run_time_is_unavailable_and_its_remedy_is_logged(
    data: Path, model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(client: Client) -> str:
        with pytest.raises(Unavailable) as failed:
            await client.ingest([Doc("new", "Something new.")])
        return failed.value.message

    async with retriever(data, model_dir) as client:
        with (data / "library.sqlite").open("r+b") as file:
            file.seek(4096)
            file.write(random.Random(1).randbytes((data / "library.sqlite").stat().st_size - 4096))
        assert [await fails(client) for _ in range(2)] == [
            "The library of documents is damaged; the log of the service says what to do."
        ] * 2
    remedies = {record.getMessage() for record in caplog.records if "To start without it" in record.getMessage()}
    assert len(remedies) >= 1
    assert all(f"{data / 'library.sqlite'} cannot be used: it is damaged" in line for line in remedies)
