"""The model server compared with bare vLLM: tokens/s, time to the first token, and CPU, in alternating rounds.

Bare is vLLM's AsyncLLM in this process. Served is the same model with the same arguments in a model server, a process
of its own behind a unix socket, called through the platform's own client. Only one of them works at a time; the other
is idle, which is checked, as is the load of other processes. Run: make bench-vllm
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import uvloop

from genaifactory.modelserver.v1 import modelserver_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels
from tests.data import tiny_llama
from tests.vllm import processes
from tests.vllm.processes import Client

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

QUESTIONS = (
    "How many days of annual leave do I have?",
    "Mỗi năm tôi có bao nhiêu ngày nghỉ phép?",
    "What is the daily allowance for a trip abroad?",
    "Pin của cảm biến Lúa 3 dùng được bao lâu?",
)
# Of each client in a round: enough that its end, when fewer clients run, matters little.
_REQUESTS_PER_CLIENT = 4
_LONELY_REQUESTS = 40
_LONELY_TOKENS = 8
_IDLE_SECONDS = 3.0
# vLLM's processes look for work in a busy loop for a second after the last.
_SPINNING_SECONDS = 1.5
_MAX_IDLE_CORES = 0.03
_MAX_FOREIGN_CORES = 0.15
_TIMEOUT_SECONDS = 300.0
# With mp, vLLM's default on a CPU, it computes in a process below its engine's, and each waits for the other in a
# busy loop: of two cores, none is left for the client.
_EXECUTORS: Mapping[str, Mapping[str, str]] = {
    "uni": {"distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor"},
    "mp": {"distributed_executor_backend": "mp"},
}


@dataclass(frozen=True)
class Setup:
    """What is compared, and under which load."""

    model: Path
    args: Mapping[str, object]
    """Of vLLM's engine, for both sides."""
    clients: int = 16
    rounds: int = 5
    tokens: int = 128
    lonely_requests: int = _LONELY_REQUESTS
    """One after the other, in each round."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request's figures."""

    first_seconds: float
    tokens: int


class Side(Protocol):
    """One of the two sides of the comparison."""

    async def ask(self, prompt: str, tokens: int) -> Asked:
        """One streamed answer, decoded greedily."""

    def processes(self) -> dict[str, Sequence[int]]:
        """Its processes by what they do."""


class Bare:
    """vLLM alone."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._names = (f"bare-{n}" for n in itertools.count())

    async def ask(self, prompt: str, tokens: int) -> Asked:
        """As Side."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        began = time.perf_counter()
        first, written = 0.0, 0
        sampling = SamplingParams(temperature=0.0, max_tokens=tokens, output_kind=RequestOutputKind.DELTA)
        (rendered,) = await self._llm.renderer.render_cmpl_async([{"prompt": prompt}])
        async for output in self._llm.generate(rendered, sampling, next(self._names)):
            (choice,) = output.outputs
            if not first and choice.text:
                first = time.perf_counter() - began
            written += len(choice.token_ids)
        return Asked(first or time.perf_counter() - began, written)

    def processes(self) -> dict[str, Sequence[int]]:
        """As Side. The client is in vLLM's own process."""
        return {"client and vLLM's front": (os.getpid(),), "vLLM's engine": _engine(os.getpid())}


class Served:
    """The model server."""

    def __init__(self, client: Client, server_pid: int) -> None:
        self._generate = client.stub.Generate
        self._pid = server_pid

    async def ask(self, prompt: str, tokens: int) -> Asked:
        """As Side."""
        began = time.perf_counter()
        first, written = 0.0, 0
        sampling = types_pb2.Sampling(temperature=0.0, max_tokens=tokens)
        request = modelserver_pb2.GenerateRequest(model="tiny", prompt=prompt, sampling=sampling)
        async for message in channels.stream(self._generate, request, timeout_seconds=_TIMEOUT_SECONDS):
            if not first and message.delta:
                first = time.perf_counter() - began
            if message.HasField("usage"):
                written = message.usage.completion_tokens
        return Asked(first or time.perf_counter() - began, written)

    def processes(self) -> dict[str, Sequence[int]]:
        """As Side."""
        return {"client": (os.getpid(),), "server": (self._pid,), "vLLM's engine": _engine(self._pid)}


@dataclass(slots=True)
class Figures:
    """Measurements of one side, over all rounds."""

    tokens_per_second: list[float] = field(default_factory=list)
    """Of each round."""
    lonely_firsts: list[float] = field(default_factory=list)
    """Seconds to the first token, of requests that were alone."""
    crowded_firsts: list[float] = field(default_factory=list)
    """Of requests that came while others ran."""
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    """By process, under the load of all clients."""
    foreign_cores: list[float] = field(default_factory=list)
    """Used by other processes of this machine, in each round."""
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcome."""

    bare: Figures
    served: Figures
    idle_cores: dict[str, float]
    """Cores that each process used while idle."""

    def ratios(self) -> list[float]:
        """Served to bare tokens/s, of each round."""
        pairs = zip(self.served.tokens_per_second, self.bare.tokens_per_second, strict=True)
        return [served / bare for served, bare in pairs]

    def added_first_seconds(self, share: float) -> float:
        """What the server adds to the time to the first token of a request that is alone. share: 0.5 is the median."""
        return quantile(self.served.lonely_firsts, share) - quantile(self.bare.lonely_firsts, share)


async def compare(setup: Setup, folder: Path) -> Comparison:
    """Starts both and measures them in turns. folder: for the server's data and log."""
    async with _both(setup, folder) as sides:
        for side in sides:
            await _crowd(side, setup, Figures(), round_=-1)
            await _lonely(side, setup, Figures(), round_=-1)
        await asyncio.sleep(_SPINNING_SECONDS)
        idle = await _idle(sides)
        bare, served = Figures(), Figures()
        for round_ in range(setup.rounds):
            pairs = list(zip(sides, (bare, served), strict=True))
            # The order alternates, so that a machine that slows down favours neither side.
            for side, figures in pairs[:: 1 if round_ % 2 == 0 else -1]:
                await asyncio.sleep(_SPINNING_SECONDS)
                await _crowd(side, setup, figures, round_=round_)
                await _lonely(side, setup, figures, round_=round_)
        return Comparison(bare, served, idle)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of them lies."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def report(comparison: Comparison) -> None:
    """Prints the outcome."""
    bare, served = comparison.bare, comparison.served
    print("round   bare tok/s   served tok/s   served/bare   cores of others")
    rounds = zip(
        bare.tokens_per_second, served.tokens_per_second, bare.foreign_cores, served.foreign_cores, strict=True
    )
    for n, (one, other, foreign, later) in enumerate(rounds, 1):
        print(f"{n:5} {one:12,.0f} {other:14,.0f} {other / one:13.3f} {foreign:12.2f}, {later:.2f}")
    print(f"median served/bare: {statistics.median(comparison.ratios()):.3f}")
    for title, firsts in (("alone", "lonely_firsts"), ("all clients", "crowded_firsts")):
        one, other = getattr(bare, firsts), getattr(served, firsts)
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            first, second = 1e3 * quantile(one, share), 1e3 * quantile(other, share)
            print(f"first token, {title}, {name}: {first:.2f} ms, {second:.2f} ms, added {second - first:+.2f} ms")
    for title, figures in (("bare", bare), ("served", served)):
        spent = {name: 1e6 * seconds / figures.tokens for name, seconds in figures.cpu_seconds.items()}
        parts = ", ".join(f"{name} {ms:.0f}" for name, ms in spent.items())
        print(f"CPU ms per 1,000 tokens, {title}: {parts}; together {sum(spent.values()):.0f}")
    name, cores = max(comparison.idle_cores.items(), key=lambda item: item[1])
    print(f"cores in use while idle: {cores:.3f} at most ({name})")
    if cores > _MAX_IDLE_CORES or max(bare.foreign_cores + served.foreign_cores) > _MAX_FOREIGN_CORES:
        print("The machine was shared while this ran: only the CPU figures can be relied on.")


@asynccontextmanager
async def _both(setup: Setup, folder: Path) -> AsyncIterator[tuple[Side, Side]]:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork of a process with gRPC's threads hangs
    }
    entry = processes.entry(setup.model) | {"args": dict(setup.args)}
    with processes.started(folder, [entry]) as server:
        await asyncio.to_thread(server.wait_until_ready, 600)
        llm = AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(setup.model), **setup.args))
        # As vLLM's own server does: the collector ignores everything imported so far.
        gc.collect()
        gc.freeze()
        try:
            async with processes.connected(server) as client:
                yield Bare(llm), Served(client, server.process.pid)
        finally:
            llm.shutdown()


async def _crowd(side: Side, setup: Setup, figures: Figures, *, round_: int) -> None:
    prompts = _prompts(f"{round_}", setup.clients * _REQUESTS_PER_CLIENT)
    answers: list[Asked] = []

    async def client() -> None:
        answers.extend([await side.ask(prompt, setup.tokens) for prompt in prompts])

    pids = side.processes()
    before, busy = {name: _cpu_seconds(pids[name]) for name in pids}, _busy_seconds()
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(setup.clients):
            group.create_task(client())
    seconds = time.perf_counter() - began
    busy = _busy_seconds() - busy
    spent = {name: _cpu_seconds(pids[name]) - before[name] for name in pids}
    figures.foreign_cores.append(max(busy - sum(spent.values()), 0.0) / seconds)
    for name, used in spent.items():
        figures.cpu_seconds[name] = figures.cpu_seconds.get(name, 0.0) + used
    tokens = sum(answer.tokens for answer in answers)
    figures.tokens += tokens
    figures.tokens_per_second.append(tokens / seconds)
    figures.crowded_firsts += (answer.first_seconds for answer in answers)


async def _lonely(side: Side, setup: Setup, figures: Figures, *, round_: int) -> None:
    for prompt in _prompts(f"alone {round_}", setup.lonely_requests):
        figures.lonely_firsts.append((await side.ask(prompt, _LONELY_TOKENS)).first_seconds)


def _prompts(mark: str, count: int) -> Iterator[str]:
    """The same for both sides, and new ones in each round, so that none is in the prefix cache."""
    return (f"({mark}, {n}) {QUESTIONS[n % len(QUESTIONS)]}" for n in range(count))


async def _idle(sides: Sequence[Side]) -> dict[str, float]:
    pids = {
        f"{type(side).__name__.lower()}: {name}": those for side in sides for name, those in side.processes().items()
    }
    before = {name: _cpu_seconds(pids[name]) for name in pids}
    await asyncio.sleep(_IDLE_SECONDS)
    return {name: (_cpu_seconds(pids[name]) - before[name]) / _IDLE_SECONDS for name in pids}


def _engine(parent: int) -> list[int]:
    """The process of vLLM's engine that this one has started, and those below that."""
    found = processes.engines(parent)
    assert len(found) == 1, f"one engine of process {parent} was looked for, {len(found)} were found"
    return [*found, *processes.descendants(found[0])]


def _cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of processes."""
    stats = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids)
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / os.sysconf("SC_CLK_TCK")


def _busy_seconds() -> float:
    """Busy time of all cores together, including what a hypervisor took."""
    user, nice, system, _, _, interrupts, soft, stolen = Path("/proc/stat").read_text().split()[1:9]
    return sum(map(int, (user, nice, system, interrupts, soft, stolen))) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--concurrency", type=int, default=16, help="streams at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--gpu", action="store_true", help="a model of a billion parameters on the GPU")
    parser.add_argument("--executor", choices=_EXECUTORS, default="uni", help="of vLLM on a CPU, whose default is mp")
    arguments = parser.parse_args()
    if arguments.gpu:
        from tests.gpu import large_llama

        model, args = large_llama.cached(), large_llama.HALF_A_GPU
    else:
        model, args = tiny_llama.cached("llama"), {**processes.ARGS, **_EXECUTORS[arguments.executor]}
    setup = Setup(model, args, arguments.concurrency, arguments.rounds, arguments.tokens)
    with tempfile.TemporaryDirectory(prefix="gf-bench-") as folder:
        report(uvloop.run(compare(setup, Path(folder))))


if __name__ == "__main__":
    main()
