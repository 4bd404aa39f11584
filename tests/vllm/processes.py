"""A real model server as a process of its own, and what tests ask it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from genaifactory.modelserver.v1 import modelserver_pb2, modelserver_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, identity, testing
from tests import ports

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
Rendered = Callable[..., str]
"""A model's chat template as transformers applies it: to messages and the template's variables."""
OPERATOR = identity.Caller("acme", "ops", "ops", "operator", permissions=("chat", "embed", "operate"))

# As small as vLLM runs on a CPU.
ARGS: dict[str, Any] = {
    "max_model_len": 512,
    "enforce_eager": True,
    "kv_cache_memory_bytes": 64 << 20,
    "dtype": "float32",
    "max_num_seqs": 64,
}
MAX_LOADED = 6
"""Adapters that are in an engine at once."""
ENGINE_COMMANDS = ("VLLM::", "multiprocessing.spawn import spawn_main")
"""In the command lines of vLLM's own processes: their titles, and that with which one starts, which some keep."""
_FACTORY = {
    "tenants": [{"name": "acme"}],
    "roles": [{"name": "r", "permissions": ["chat"]}],
    "policies": [{"name": "default"}],
    "models": [{"name": "m", "backend": {"type": "modelserver", "model": "tiny"}}],
    "routes": [{"name": "c", "task": "chat", "models": ["m"]}],
}


@dataclass
class ModelServer:
    """A process; `folder` is its data folder, which a later one may take over."""

    folder: Path
    address: str
    metrics_port: int
    process: subprocess.Popen[bytes]
    log: Path
    environment: dict[str, str] = field(repr=False)

    def health(self, service: str = "") -> int | None:
        """What grpc.health.v1 says; None: nobody answers."""
        with grpc.insecure_channel(self.address) as channel:
            try:
                stub: Any = health_pb2_grpc.HealthStub(channel)  # the package's types leave its methods out
                return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=2).status)
            except grpc.RpcError:
                return None

    def wait_until_ready(self, seconds: float = 240) -> None:
        """Returns when it can answer; fails with the log's end when it has ended."""
        deadline = time.monotonic() + seconds
        while self.health() != SERVING:
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.tail()}"
            assert time.monotonic() < deadline, f"not ready after {seconds} s: {self.tail()}"
            time.sleep(0.2)

    def tail(self) -> str:
        """The end of the log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-3000:]

    def metrics(self) -> dict[str, float]:
        """Samples by name and labels, as Prometheus reads them."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(
            value
            for sample, value in self.metrics().items()
            if sample.partition("{")[0] == name and all(label in sample for label in wanted)
        )

    def engine_processes(self) -> list[int]:
        """vLLM's own processes."""
        return engines(self.process.pid)

    def session(self) -> str:
        """The command lines of its session, which has all that it starts, also what outlives it; a line each."""
        command = ("ps", "-wwo", "args=", "-s", str(self.process.pid))
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def entry(model: Path | str, name: str = "tiny", **rest: Any) -> dict[str, Any]:
    """An engine of factory.yaml. model: its folder, or a URL."""
    args = ARGS | rest.pop("args", {})
    return {"type": "vllm", "model": name, "source": str(model), "args": args, **rest}


@contextmanager
def started(
    folder: Path, engines: Sequence[dict[str, Any]], *, address: str | None = None, **environment: str
) -> Iterator[ModelServer]:
    """Starts a model server on a unix socket of its own, or on `address`; ends it with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    sockets = Path(tempfile.mkdtemp(prefix="gf-"))
    factory = folder / "factory.yaml"
    factory.write_text(json.dumps({**_FACTORY, "engines": list(engines)}))
    metrics_port = ports.free_port()
    variables = {
        "OMP_NUM_THREADS": "1",
        "GENAIFACTORY_SERVER__ADDRESS": address or f"unix:{sockets}/s.sock",
        "GENAIFACTORY_SERVER__METRICS_PORT": str(metrics_port),
        "GENAIFACTORY_FACTORY_FILE": str(factory),
        "GENAIFACTORY_DATA_DIR": str(folder / "data"),
        "GENAIFACTORY_CONTEXT_PUBLIC_KEY": base64.b64encode(testing.SIGNER.public_key).decode(),
        **environment,
    }
    log = folder / "log.txt"
    with log.open("ab") as output:
        process = subprocess.Popen(
            (sys.executable, "-m", "genaifactory_modelserver"),
            env={**os.environ, **variables},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = ModelServer(folder, variables["GENAIFACTORY_SERVER__ADDRESS"], metrics_port, process, log, variables)
    try:
        yield server
    finally:
        if process.poll() is None:
            server.process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                server.kill()
        shutil.rmtree(sockets, ignore_errors=True)


def descendants(pid: int) -> dict[int, str]:
    """The processes below one, with their command lines."""
    listed = subprocess.run(("ps", "-ewwo", "pid=,ppid=,args="), capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    parents = {int(row[0]): int(row[1]) for row in rows}
    commands = {int(row[0]): row[2] for row in rows}
    below: dict[int, str] = {}
    for each in parents:
        above = each
        while above in parents and above != pid:
            above = parents[above]
        if above == pid and each != pid:
            below[each] = commands[each]
    return below


def engines(pid: int) -> list[int]:
    """vLLM's own processes below one."""
    return [each for each, command in descendants(pid).items() if any(part in command for part in ENGINE_COMMANDS)]


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Returns when it holds; fails after the time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.1)


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    listed = subprocess.run(("ps", "-ewwo", "pid=,ppid="), capture_output=True, text=True, check=True).stdout
    return [int(child) for child, parent in map(str.split, listed.splitlines()) if int(parent) == pid]


def wait_until_gone(pids: Sequence[int], *, seconds: float) -> None:
    """Returns when no process of these is left; fails when one outlives the time."""
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, f"processes outlive their server: {left}"
        time.sleep(0.1)


@asynccontextmanager
async def connected(server: ModelServer, caller: identity.Caller = OPERATOR) -> AsyncIterator[Client]:
    """A client of the server, as the orchestrator is one."""
    testing.act_as(caller)
    async with channels.connect(server.address) as channel:
        yield Client(modelserver_pb2_grpc.ModelServiceStub(channel))


@dataclass
class Answer:
    """A whole generation."""

    messages: list[modelserver_pb2.GenerateResponse]

    @property
    def text(self) -> str:
        """Of the first choice."""
        return self.texts()[0]

    def texts(self) -> list[str]:
        """Of each choice."""
        n = max(message.choice for message in self.messages) + 1
        return ["".join(m.delta for m in self.messages if m.choice == choice) for choice in range(n)]

    @property
    def usage(self) -> types_pb2.TokenUsage:
        """Of the last message."""
        return self.messages[-1].usage

    @property
    def finish_reason(self) -> int:
        """Of the first choice."""
        return next(m.finish_reason for m in self.messages if m.finish_reason and m.choice == 0)

    @property
    def logprobs(self) -> list[types_pb2.TokenLogprob]:
        """Of the first choice."""
        return [logprob for m in self.messages if m.choice == 0 for logprob in m.logprobs]

    def tool_calls(self) -> list[tuple[str, str, str]]:
        """Id, name and arguments of each call of the first choice, put together."""
        calls: dict[int, list[str]] = {}
        for message in self.messages:
            for call in message.tool_calls:
                parts = calls.setdefault(call.index, ["", "", ""])
                parts[0] += call.id
                parts[1] += call.name
                parts[2] += call.arguments_json
        return [(a, b, c) for a, b, c in calls.values()]


@dataclass
class Client:
    """What tests ask a model server."""

    stub: modelserver_pb2_grpc.ModelServiceAsyncStub

    async def ask(self, request: modelserver_pb2.GenerateRequest, *, seconds: float = 60) -> Answer:
        """The whole answer. Raises FactoryError."""
        return Answer([message async for message in self.stream(request, seconds=seconds)])

    def stream(
        self, request: modelserver_pb2.GenerateRequest, *, seconds: float = 60
    ) -> AsyncGenerator[modelserver_pb2.GenerateResponse, None]:
        """The answer as it comes."""
        return channels.stream(self.stub.Generate, request, timeout_seconds=seconds)

    async def embed(self, model: str, *texts: str) -> modelserver_pb2.EmbedResponse:
        """Vectors."""
        request = modelserver_pb2.EmbedRequest(model=model, texts=texts)
        return await channels.unary(self.stub.Embed, request, timeout_seconds=60)

    async def models(self) -> dict[str, modelserver_pb2.Model]:
        """By name."""
        listed = await channels.unary(self.stub.ListModels, modelserver_pb2.ListModelsRequest(), timeout_seconds=60)
        return {model.name: model for model in listed.models}

    async def load(
        self, name: str, source: Path | str, sha256: str = "", *, seconds: float = 60
    ) -> modelserver_pb2.LoadAdapterResponse:
        """LoadAdapter."""
        request = modelserver_pb2.LoadAdapterRequest(name=name, source_uri=str(source), sha256=sha256)
        return await channels.unary(self.stub.LoadAdapter, request, timeout_seconds=seconds)

    async def unload(self, name: str, *, seconds: float = 60) -> modelserver_pb2.UnloadAdapterResponse:
        """UnloadAdapter."""
        request = modelserver_pb2.UnloadAdapterRequest(name=name)
        return await channels.unary(self.stub.UnloadAdapter, request, timeout_seconds=seconds)


def prompt(text: str, model: str = "tiny", *, max_tokens: int = 24, **rest: Any) -> modelserver_pb2.GenerateRequest:
    """A raw prompt, decoded greedily unless `sampling` says otherwise."""
    return modelserver_pb2.GenerateRequest(model=model, prompt=text, sampling=_sampling(max_tokens, rest), **rest)


async def greedy(client: Client, model: str) -> str:
    """What a model answers to one prompt, always the same."""
    return (await client.ask(prompt("Annual leave", model, max_tokens=12), seconds=120)).text


def chat(*turns: str, model: str = "tiny", max_tokens: int = 24, **rest: Any) -> modelserver_pb2.GenerateRequest:
    """A conversation of user and assistant in turns."""
    messages = [
        types_pb2.Message(role=types_pb2.ROLE_ASSISTANT if i % 2 else types_pb2.ROLE_USER, content=turn)
        for i, turn in enumerate(turns)
    ]
    conversation = modelserver_pb2.Conversation(
        messages=messages, continue_final_message=rest.pop("continue_final_message", False)
    )
    return modelserver_pb2.GenerateRequest(
        model=model, conversation=conversation, sampling=_sampling(max_tokens, rest), **rest
    )


def _sampling(max_tokens: int, rest: dict[str, Any]) -> types_pb2.Sampling:
    return types_pb2.Sampling(**{"max_tokens": max_tokens, "temperature": 0.0, **rest.pop("sampling", {})})
