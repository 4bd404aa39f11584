"""The orchestrator as a process of its own."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc.aio
import pytest

from genaifactory.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, settings
from genaifactory_common.errors import NotFound
from genaifactory_common.runtime import running
from genaifactory_common.testing import SIGNER, VERIFIER, act_as
from genaifactory_common.testing.modelserver import FakeModelServer
from genaifactory_common.testing.monitor import FakeMonitor
from genaifactory_common.testing.retriever import FakeRetriever
from genaifactory_common.testing.safety import FakeSafety

FACTORY = """
tenants: [{name: acme}]
roles: [{name: developer, permissions: [chat]}]
models: [{name: small, backend: {type: modelserver, model: small}}]
routes: [{name: chat, task: chat, models: [small]}]
policies: [{name: default, rules: [{entities: [PII]}]}]
"""


def environment(folder: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "GENAIFACTORY_SERVER__ADDRESS": f"unix:{folder}/orchestrator.sock",
        "GENAIFACTORY_CONTEXT_PUBLIC_KEY": base64.b64encode(SIGNER.public_key).decode(),
        "GENAIFACTORY_FACTORY_FILE": str(folder / "factory.yaml"),
        "GENAIFACTORY_DATA_DIR": str(folder / "data"),
        **{
            f"GENAIFACTORY_UPSTREAMS__{name.upper()}": f"unix:{folder}/{name}.sock"
            for name in ("safety", "retriever", "modelserver", "monitor")
        },
    }


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A unix socket's path is bounded to about 100 bytes."""
    with tempfile.TemporaryDirectory(prefix="gf-") as folder:
        yield Path(folder)


async def test_the_process_starts_answers_follows_factory_yaml_and_drains(
    short_path: Path,
) -> None:
    folder = short_path
    await asyncio.to_thread((folder / "factory.yaml").write_text, FACTORY)
    # The fakes do not implement what the orchestrator does not call.
    modelserver = FakeModelServer(["hello"])
    monitor = FakeMonitor()
    fakes = (FakeSafety(), FakeRetriever(), modelserver, monitor)
    async with AsyncExitStack() as stack:
        for fake in fakes:
            app = fake.app(VERIFIER)
            listening = settings.Server(address=f"unix:{folder}/{app.name}.sock", drain_seconds=0.1)
            await stack.enter_async_context(running(app, listening))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "genaifactory_orchestrator", env=environment(folder), stderr=asyncio.subprocess.PIPE
        )
        channel = await stack.enter_async_context(channels.connect(f"unix:{folder}/orchestrator.sock"))
        async with asyncio.timeout(60):
            await channel.channel_ready()
            assert await ask(channel, "chat") == "hello"
            changed = FACTORY.replace("name: chat, task", "name: talk, task")
            await asyncio.to_thread((folder / "factory.yaml").write_text, changed)
            while (answer := await ask(channel, "talk")) != "hello":
                assert answer == "NOT_FOUND"
                await asyncio.sleep(0.1)
            going_on = asyncio.Event()
            modelserver.script = ["going ", going_on, "on"]
            running_answer = asyncio.create_task(ask(channel, "talk"))
            while not modelserver.running:  # noqa: ASYNC110  # another service's counter
                await asyncio.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.1)
            going_on.set()
            assert await running_answer == "going on", "a running answer is finished"
            _, log = await process.communicate()
        assert process.returncode == 0, log.decode()
        assert len(monitor.interactions) == 3


_numbers = itertools.count(1)


async def ask(channel: grpc.aio.Channel, route: str) -> str:
    """The answer's text, or the status of its error."""
    act_as()
    stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
    request = orchestrator_pb2.AnswerRequest(
        request_id=f"r{next(_numbers)}",
        route=route,
        messages=[types_pb2.Message(role=types_pb2.ROLE_USER, content=f"question {next(_numbers)}")],
    )
    try:
        return "".join([e.delta.text async for e in channels.stream(stub.Answer, request, timeout_seconds=20)])
    except NotFound:
        return "NOT_FOUND"


async def test_a_missing_setting_is_named_and_prevents_the_start(tmp_path: Path) -> None:
    wanted = {
        "GENAIFACTORY_CONTEXT_PUBLIC_KEY": "CONTEXT_PUBLIC_KEY",
        "GENAIFACTORY_FACTORY_FILE": "factory.yaml: document: cannot be read",
    }
    for name, problem in wanted.items():
        variables = environment(tmp_path)
        await asyncio.to_thread((tmp_path / "named.yaml").write_text, FACTORY)
        variables["GENAIFACTORY_FACTORY_FILE"] = str(tmp_path / "named.yaml")
        del variables[name]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "genaifactory_orchestrator",
            env=variables,
            cwd=tmp_path,
            stderr=asyncio.subprocess.PIPE,
        )
        _, log = await process.communicate()
        assert process.returncode == 1
        assert problem in log.decode()
        assert "Traceback" not in log.decode()
