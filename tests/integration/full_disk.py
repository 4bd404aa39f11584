"""Fills a small disk under a running platform, a little further each time; run by test_full_disk.py in a namespace.

python -m tests.integration.full_disk FOLDER mounts a tmpfs on FOLDER, which needs `unshare --user --map-root-user
--mount`; exits 0 when everything acknowledged is stored at the end. FULL=1: many more fill levels, and a search for
every stored document.
"""

from __future__ import annotations

import asyncio
import collections
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from genaifactory.retriever.v1 import retriever_pb2, retriever_pb2_grpc
from genaifactory_common import channels, files
from genaifactory_common.errors import OutOfSpace, Unavailable
from genaifactory_common.minilm import DIMENSIONS
from genaifactory_local import testing
from genaifactory_local.testing import Platform, Process
from genaifactory_retriever.vectors.edge import EdgeVectors
from genaifactory_retriever.vectors.protocol import Passage, Point, Sparse, Where
from tests.full import FULL

SIZE_MIB = 256
KIB, MIB = 1 << 10, 1 << 20
PAGE = 4 * KIB
# Free bytes at which the writes of the stores fail in turn: at the first page of a log, in the middle of a group, at
# the next block of a mapped file, after it.
LEVELS = (0, 8 * KIB, 64 * KIB, 300 * KIB, 1 * MIB, 3 * MIB, 6 * MIB)
MANY_LEVELS = (*range(0, 512 * KIB, 16 * KIB), *range(512 * KIB, 12 * MIB, 256 * KIB))
# Of one call: far longer than it lasts.
DEADLINE_SECONDS = 20.0
RECOVERY_SECONDS = 15.0
OUT_OF_SPACE = "out_of_space"
KINDS = ("ingest", "answer", "feedback", "export", "configuration")


@dataclass
class Disk:
    """The tmpfs, and the file that fills it."""

    folder: Path
    kept_full: bool = False
    """Whether a file of the test's own finds no page: it fits into what services free meanwhile, as by a checkpoint."""

    @property
    def _ballast(self) -> Path:
        return self.folder / "ballast"

    def mount(self) -> None:
        self.folder.mkdir(exist_ok=True)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m,mode=0700", "tmpfs", str(self.folder)], check=True
        )

    def free(self) -> int:
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def fill(self, leave: int) -> None:
        """Leaves so many bytes free, to the page."""
        with self._ballast.open("ab") as file:
            for piece in (MIB, PAGE):
                while self.free() >= leave + piece:
                    try:
                        os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, piece)
                    except OSError:  # another process has written meanwhile
                        break

    def empty(self) -> None:
        self._ballast.unlink(missing_ok=True)


@dataclass
class Acknowledged:
    """What the platform has acknowledged."""

    answers: list[str] = field(default_factory=list)
    documents: dict[str, str] = field(default_factory=dict)
    """Id -> a word that no other document has."""
    feedback: list[str] = field(default_factory=list)
    refused: collections.Counter[str] = field(default_factory=collections.Counter)
    """Calls that were refused, by kind."""


class Client:
    """Makes every kind of call that writes; each is acknowledged, or refused by the one error, within its deadline."""

    def __init__(self, platform: Platform, http: httpx.AsyncClient, disk: Disk, notes: Path) -> None:
        self.platform = platform
        self.http = http
        self.disk = disk
        self.notes = notes
        self.seen = Acknowledged()
        self._number = 0

    async def everything(self) -> None:
        """One call of each kind; the state folder's own files too."""
        self._number += 1
        await self._bounded("ingest", self._ingest())
        await self._bounded("answer", self._ask())
        await self._bounded("feedback", self._feedback())
        await self._bounded("export", self._export())
        await self._bounded("configuration", self._configure())

    async def _bounded(self, kind: str, call: Awaitable[bool]) -> None:
        started = time.monotonic()
        async with asyncio.timeout(DEADLINE_SECONDS):
            done = await call
        if not done:
            self.seen.refused[kind] += 1
        print(f"  {kind}: {'done' if done else 'refused'} in {time.monotonic() - started:.1f} s", flush=True)

    async def _ingest(self) -> bool:
        """More documents than are stored in one write, so that a write may fail after another has succeeded."""
        words = {f"n{self._number}x{i}.md": f"zq{self._number}x{i}" for i in range(20)}
        for name, word in words.items():
            text = f"# Note {word}\n\nThe secret word of note {word} is kept in the drawer of {word}.\n"
            await asyncio.to_thread((self.notes / name).write_text, text)
        try:
            summary = await self.platform.ingest([self.notes / name for name in words])
        except Unavailable as error:
            expect_full(error.message)
            return False
        refused = {failure.document_id for failure in summary.failures}
        for failure in summary.failures:
            expect_full(failure.message)
        assert summary.added + summary.unchanged == len(words) - len(refused), summary
        self.seen.documents.update({name: word for name, word in words.items() if name not in refused})
        return not refused

    async def _ask(self) -> bool:
        body = asked(f"How many days of annual leave do I have? ({self._number})", conversation_id=f"c{self._number}")
        response = await self.http.post("/chat/completions", json=body)
        return self._accepted(response, self.seen.answers)

    async def delete_one(self) -> None:
        """A deletion succeeds on a full disk too, with the space that is reserved for it."""
        name = next(iter(self.seen.documents))
        self.platform.sign_in()
        async with channels.connect(self.platform.endpoints.socket("retriever")) as channel:
            stub = retriever_pb2_grpc.RetrieverServiceStub(channel)
            request = retriever_pb2.DeleteDocumentsRequest(knowledge_base="documents", document_ids=[name])
            response = await channels.unary(stub.DeleteDocuments, request, timeout_seconds=DEADLINE_SECONDS)
        assert response.deleted == 1, response
        del self.seen.documents[name]

    async def _feedback(self) -> bool:
        body = {"request_id": f"req-{self._number:032x}", "rating": "up", "comment": f"c{self._number}"}
        response = await self.http.post("/feedback", json=body)
        return self._accepted(response, self.seen.feedback)

    def _accepted(self, response: httpx.Response, acknowledged: list[str]) -> bool:
        if response.status_code == 200:
            acknowledged.append(
                response.headers["x-request-id"] if "choices" in response.text else response.json()["id"]
            )
            return True
        assert response.status_code == 503, response.text
        expect_full(response.json()["error"]["message"])
        return False

    async def _export(self) -> bool:
        """As `genaifactory export -o` does, to a file on the disk: it is replaced whole or not at all."""
        return await self._written(self.disk.folder / "export.jsonl", await self.platform.export())

    async def _configure(self) -> bool:
        """Files of the state folder (configuration, keys, lists) are replaced whole or not at all."""
        return await self._written(self.platform.state.folder / "list.json", b'{"dev": {}}' + b" " * 8192)

    async def _written(self, path: Path, data: bytes) -> bool:
        before = await asyncio.to_thread(_read, path)
        if self.disk.kept_full:
            self.disk.fill(0)
            data += b" " * MIB  # more than a service frees before it is written
        try:
            await asyncio.to_thread(files.write, path, data)
        except OSError as error:
            if error.filename != str(path) or await asyncio.to_thread(_read, path) != before:
                raise
            return False
        assert await asyncio.to_thread(_read, path) == data
        return True


def expect_full(message: str) -> None:
    """Raises AssertionError unless the message is that of a full disk."""
    assert "The disk that holds" in message, message


def asked(question: str, **fields: object) -> dict[str, object]:
    """The body of a question to the route that answers from documents."""
    return {"model": "rag", "messages": [{"role": "user", "content": question}], **fields}


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


async def eventually(what: str, holds: Callable[[], Awaitable[bool]], seconds: float = RECOVERY_SECONDS) -> None:
    """Polls the condition until it is true. Raises TimeoutError that names it."""
    end = time.monotonic() + seconds
    while not await holds():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        await asyncio.sleep(0.1)


async def ready(client: Client) -> tuple[int, dict[str, Any]]:
    response = await client.http.get(f"{client.platform.endpoints.http_url}/readyz")
    return response.status_code, response.json()


async def exported(platform: Platform) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await platform.export()).splitlines()]


@asynccontextmanager
async def clients(process: Process, disk: Disk, notes: Path) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {process.platform.key}"}
    async with httpx.AsyncClient(
        trust_env=False, headers=headers, timeout=DEADLINE_SECONDS, base_url=process.platform.openai_url
    ) as http:
        yield Client(process.platform, http, disk, notes)


async def verify(client: Client, process: Process) -> None:
    """With room again and no restart: everything works, and everything acknowledged is stored, once."""

    async def works() -> bool:
        before = client.seen.refused.total()
        await client.everything()
        return client.seen.refused.total() == before

    await eventually("every call is accepted again", works)

    async def recorded() -> bool:
        counts = collections.Counter(record["request_id"] for record in await exported(client.platform))
        assert not counts or max(counts.values()) == 1, counts
        return counts.keys() >= set(client.seen.answers)

    await eventually("every answer that was given is on record", recorded)
    words = list(client.seen.documents.items())
    for name, word in words if FULL else words[:: max(1, len(words) // 12)]:
        body = {
            "model": "rag",
            "messages": [{"role": "user", "content": f"Where is the secret word of note {word} kept?"}],
        }
        text = (await client.http.post("/chat/completions", json=body)).text
        assert name in text, f"{name} was stored and is not found: {text[:500]}"
    os.kill(process.pid, 0)


async def watermark(disk: Disk, state: Path, notes: Path) -> None:
    """With the default marks: calls are refused in time by a clear error, /readyz reports it, and it ends by itself."""
    async with testing.started(state, str(testing.SAMPLE)) as process, clients(process, disk, notes) as client:
        await client.everything()
        assert not client.seen.refused, client.seen.refused
        disk.fill(0)

        async def full() -> bool:
            status, body = await ready(client)
            return status == 503 and body["upstreams"]["orchestrator"] == "out of space"

        await eventually("/readyz reports that the disk is full", full)
        body = {
            "model": "rag",
            "stream": True,
            "messages": [{"role": "user", "content": "How many days of annual leave?"}],
        }
        response = await client.http.post("/chat/completions", json=body)
        assert response.status_code == 503, response.text
        assert response.json()["error"]["code"] == OUT_OF_SPACE, response.text
        assert int(response.headers["retry-after"]) >= 1
        disk.kept_full = True
        await client.everything()
        disk.kept_full = False
        assert set(client.seen.refused) == {"ingest", "answer", "feedback", "export", "configuration"}, (
            client.seen.refused
        )
        await client.delete_one()
        metrics = (await client.http.get(f"{client.platform.endpoints.http_url}/metrics")).text
        for service in ("orchestrator", "retriever", "monitor"):
            assert f'genaifactory_data_space_full{{service="{service}"}} 1.0' in metrics
        disk.empty()

        async def over() -> bool:
            return (await ready(client))[0] == 200

        await eventually("/readyz reports that there is room again", over)
        await verify(client, process)
        assert await process.stop() == 0
    disk.fill(0)
    await refused_start(state)
    disk.empty()


async def refused_start(state: Path) -> None:
    """A start on a full disk ends with one line."""
    try:
        async with testing.started(state, str(testing.SAMPLE)):
            pass
    except RuntimeError as error:
        ended = str(error).strip()
    else:
        raise AssertionError("it started on a full disk")
    assert len(ended.splitlines()) == 1, ended
    assert "The disk that holds" in ended, ended


async def fault_by_fault(disk: Disk, state: Path, notes: Path) -> None:
    """Without the mark, so that writes themselves fail: nothing hangs, nothing is lost, no process ends."""
    environment = {"GENAIFACTORY_SPACE__FULL_BYTES": "0"}
    async with (
        testing.started(state, str(testing.SAMPLE), environment=environment) as process,
        clients(process, disk, notes) as client,
    ):
        await client.everything()
        for leave in MANY_LEVELS if FULL else LEVELS:
            disk.fill(leave)
            print(f"{leave >> 10} KiB free", flush=True)
            await client.everything()
            disk.empty()
        assert client.seen.refused, "no write failed: the levels are too high"
        print(f"refused: {dict(client.seen.refused)}", flush=True)
        await verify(client, process)
        assert await process.stop() == 0


async def mapped_files(disk: Disk) -> None:
    """Without the mark, a store with mapped files refuses points without blocks; else SIGBUS would end it."""
    vectors = EdgeVectors(disk.folder / "vectors", search_threads=1)
    await vectors.create("a", DIMENSIONS)
    stored = 0

    async def upsert() -> bool:
        nonlocal stored
        try:
            await vectors.upsert("a", [_point(stored + number) for number in range(64)])
        except OutOfSpace:
            return False
        stored += 64
        return True

    assert await upsert()
    for leave in (3 * MIB, 2 * MIB + 512 * KIB, 2 * MIB, 1 * MIB, 0):
        disk.fill(leave)
        while await upsert():
            pass
        assert (
            len(await vectors.search("a", dense=[0.1] * DIMENSIONS, lexical=None, where=Where("t", ()), limit=9)) == 9
        )
    assert await vectors.count("a") == stored
    disk.empty()
    assert await upsert()
    await vectors.close()
    again = EdgeVectors(disk.folder / "vectors", search_threads=1)
    await again.open("a")
    assert await again.count("a") == stored
    await again.close()


def _point(number: int) -> Point:
    passage = Passage("t", (), 1, f"p{number}", "d", "x" * 800, "Title", "d.md", (), 0, 800, "en", {"year": "2026"})
    terms = Sparse([number % 97 + each for each in range(60)], [1.0] * 60)
    return Point(number + 1, [((number * each) % 89) / 89 for each in range(DIMENSIONS)], terms, passage)


async def main(folder: Path) -> None:
    disk = Disk(folder / "disk")
    disk.mount()
    notes = folder / "notes"
    notes.mkdir()
    await watermark(disk, disk.folder / "state", notes)
    await fault_by_fault(disk, disk.folder / "state", notes)
    await mapped_files(disk)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
