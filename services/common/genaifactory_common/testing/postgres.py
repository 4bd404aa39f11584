"""A real PostgreSQL server for tests."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class PostgresServer:
    """A server for the tests alone, on a unix socket in a temporary folder."""

    binaries: Path
    folder: Path
    user: str | None
    """The account that runs it, when the tests run as root; PostgreSQL refuses root."""

    def run(self, program: str, *arguments: str) -> None:
        """Runs one of PostgreSQL's own programs."""
        subprocess.run(  # noqa: S603  # a program of the server's folder
            [self.binaries / program, *arguments],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=self.user,
            cwd=self.folder,
        )

    def start(self) -> None:
        """Starts the server; returns when it accepts connections."""
        options = f"-k {self.folder} -c listen_addresses= -c fsync=off -c max_connections=200"
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-w", "-o", options, "-l", f"{self.folder}/log", "start")

    def stop(self) -> None:
        """Stops the server at once, as a crash would."""
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-w", "-m", "immediate", "stop")

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """Stops the server inside the block."""
        await asyncio.to_thread(self.stop)
        try:
            yield
        finally:
            await asyncio.to_thread(self.start)

    def url(self, database: str) -> str:
        """The URL of a database."""
        return f"postgresql://postgres:unused@/{database}?host={self.folder}"

    def new_database(self) -> str:
        """Creates an empty database; returns its URL."""
        name = f"t{uuid.uuid4().hex}"
        self.run("createdb", "-h", str(self.folder), "-U", "postgres", name)
        return self.url(name)


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A running server. Where PostgreSQL is not installed, the test is skipped; in CI that is a failure."""
    binaries = _binaries()
    if binaries is None:
        reason = "PostgreSQL's server programs are not installed (Debian: apt-get install postgresql)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="gf-pg-"))
    server = PostgresServer(binaries, folder, user)
    try:
        if user is not None:
            shutil.chown(folder, user)
        server.run("initdb", "-D", f"{folder}/data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _binaries() -> Path | None:
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    return folders[-1].parent if folders else None
