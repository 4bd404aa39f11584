"""Whole platforms for tests: all six real services in this process, or `genaifactory run` as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from genaifactory_common import channels
from genaifactory_common.tokens import Signer
from genaifactory_local import configuration, finding, monitoring, platform, state
from genaifactory_local.state import Endpoints, State
from genaifactory_pipelines.sources import sending
from genaifactory_pipelines.sources.sending import Summary

SAMPLE = finding.SAMPLE
"""The sample handbook."""
DEFAULT_FACTORY = Path(__file__).parent / "factory.yaml"


@dataclass(frozen=True)
class Platform:
    """A running platform with its addresses and keys."""

    state: State
    endpoints: Endpoints
    key: str
    signer: Signer

    @property
    def openai_url(self) -> str:
        """The base_url for an openai client."""
        return f"{self.endpoints.http_url}/v1"

    def sign_in(self) -> None:
        """Signs the running task's calls to inner services as the development key's."""
        configuration.sign_in(self.signer, self.endpoints.tenant)

    def connected(self) -> grpc.aio.Channel:
        """A channel to the gateway with the development key."""
        return channels.connect(self.endpoints.grpc_address, api_key=self.key)

    async def ingest(self, paths: Iterable[Path], knowledge_base: str = "documents") -> Summary:
        """Ingests files and folders."""
        found = await asyncio.to_thread(finding.find, list(paths))
        async with self.connected() as channel:
            return await sending.ingest(channel, knowledge_base, found.documents)

    async def export(self) -> bytes:
        """The whole record, as JSON lines."""
        async with self.connected() as channel:
            return b"".join([piece.jsonl async for piece in monitoring.export(channel, None, None, "")])


@asynccontextmanager
async def running(
    folder: Path, *, factory: Path = DEFAULT_FACTORY, options: platform.Options
) -> AsyncIterator[Platform]:
    """Runs all six services in this process, with `folder` as their state."""

    stack = contextlib.ExitStack()

    def prepare() -> tuple[State, Path, str, Signer, configuration.Source]:
        held = stack.enter_context(state.held(folder))
        sockets = stack.enter_context(state.socket_folder(held))
        key = state.development_key(held)
        return held, sockets, key, state.signer(held), configuration.Source(factory, key)

    try:
        held, sockets, key, signer, source = await asyncio.to_thread(prepare)
        async with platform.running(held, sockets, source, signer, options) as endpoints:
            yield Platform(held, endpoints, key, signer)
    finally:
        await asyncio.to_thread(stack.close)


class Process:
    """`genaifactory run` as a process of its own; made by `started`."""

    def __init__(self, process: asyncio.subprocess.Process, platform_: Platform, output: bytearray) -> None:
        self.platform = platform_
        self._process = process
        self._output = output

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._output.decode(errors="replace")

    def resident_bytes(self) -> int:
        """Its resident memory."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    async def genaifactory(self, *arguments: str) -> tuple[int, str, str]:
        """Runs a command against this platform from another terminal; its exit code, stdout and stderr."""
        return await genaifactory(*arguments, environment=self.environment)

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with which commands find this platform."""
        return {"GENAIFACTORY_STATE": str(self.platform.state.folder)}

    async def kill(self) -> None:
        """Ends it as a power cut would (SIGKILL)."""
        self._process.kill()
        await self._process.wait()

    async def stop(self, number: signal.Signals = signal.SIGTERM, *, timeout_seconds: float = 30) -> int:
        """Sends it the signal; returns its exit code. Raises TimeoutError."""
        self._process.send_signal(number)
        async with asyncio.timeout(timeout_seconds):
            return await self._process.wait()


async def genaifactory(
    *arguments: str, environment: Mapping[str, str] | None = None, timeout_seconds: float = 120
) -> tuple[int, str, str]:
    """Runs `genaifactory` as a process; its exit code, stdout and stderr. Raises TimeoutError.

    timeout_seconds: a command needs three seconds of CPU, which may take long on a busy machine.
    """
    process = await begun(*arguments, environment=environment)
    try:
        async with asyncio.timeout(timeout_seconds):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, out.decode(), err.decode()


async def begun(*arguments: str, environment: Mapping[str, str] | None = None) -> asyncio.subprocess.Process:
    """Starts `genaifactory` in a wide terminal; the caller waits for its end."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "genaifactory_local", *arguments),
        env={**os.environ, "COLUMNS": "200", **(environment or {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@asynccontextmanager
async def started(
    folder: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    working_folder: Path | None = None,
    timeout_seconds: float = 120,
) -> AsyncIterator[Process]:
    """Runs `genaifactory run` on free ports and waits until it is ready; kills it at the end if it still runs.

    Raises RuntimeError with its output when it ends before, TimeoutError when it takes too long.
    """
    command = [sys.executable, "-m", "genaifactory_local", "run", *arguments, "--state", str(folder)]
    process = await asyncio.create_subprocess_exec(
        *command,
        "--port=0",
        "--grpc-port=0",
        cwd=working_folder or folder.parent,
        env={**os.environ, "COLUMNS": "200", **(environment or {})},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    output = bytearray()
    ready = asyncio.Event()

    async def read(stream: asyncio.StreamReader) -> None:
        while piece := await stream.read(4096):
            output.extend(piece)
            if b"Ctrl-C stops it." in output:
                ready.set()
        ready.set()

    reading = asyncio.create_task(read(process.stdout))
    try:
        async with asyncio.timeout(timeout_seconds):
            await ready.wait()
        if reading.done():
            raise RuntimeError(f"genaifactory run ended: {output.decode(errors='replace')}")
        held, endpoints = await asyncio.to_thread(state.find_running, folder)
        key, signer = await asyncio.to_thread(lambda: (state.development_key(held), state.signer(held)))
        yield Process(process, Platform(held, endpoints, key, signer), output)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading
