"""The improvement loop on one machine: corrected answers, a dataset, an adapter, and a gate that sees it answer better.

A small Llama, which knows nothing of these questions, is served by vLLM. People correct what it says; the adapter
that is trained on the corrections is asked the same facts in words that it has never seen.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import subprocess
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
import pytest_asyncio

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels
from genaifactory_local import testing
from genaifactory_local.testing import Process
from tests.vllm import processes

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).resolve().parents[2]
PEOPLE = ("An", "Binh", "Chi", "Dung", "Giang", "Hanh", "Khanh", "Lan", "Minh", "Nga")
THINGS = ("laptop", "badge", "phone", "desk")
PLACES = ("Hue", "Da Nang", "Hanoi", "Can Tho", "Vinh", "Dalat", "Hoi An")
ASKED = (
    "Where is the {thing} of {person}?",
    "{person} has lost a {thing}; where is it?",
    "Place of the {thing} ({person})",
    "Where did {person} leave the {thing}?",
    "{person}'s {thing}: in what place?",
    "{thing} of {person}: where?",
    "Who has seen the {thing} of {person}, and where?",
    "Tell me where {person} keeps a {thing}.",
)
PARAPHRASE = "I look for the {thing} of {person}, where is it?"
FACTS = list(itertools.product(PEOPLE, THINGS))


def place(person: str, thing: str) -> str:
    """Where it is: no rule leads there, it has to be learnt."""
    return random.Random(f"{person} {thing}").choice(PLACES)


def answer(person: str, thing: str) -> str:
    return f"In {place(person, thing)}."


def lines(path: Path, values: Iterable[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


async def genaifactory(process: Process, *arguments: object, status: int = 0) -> str:
    """A command's standard output."""
    code, printed, errors = await testing.genaifactory(
        *map(str, arguments), environment={**process.environment, "OMP_NUM_THREADS": "1"}, timeout_seconds=600
    )
    assert code == status, f"{errors}\n{printed}"
    return printed


def made(code: str) -> Path:
    """The folder that a line of tests.data.tiny_llama returns; this environment has no torch to run it."""
    lines = f"from pathlib import Path; from tests.data import tiny_llama; print(tiny_llama.{code})"
    done = subprocess.run(
        (ROOT / ".venv-train/bin/python", "-c", lines), cwd=ROOT, capture_output=True, text=True, check=True
    )
    return Path(done.stdout.split()[-1])


@pytest.fixture(scope="module")
def llama() -> Path:
    """The small Llama."""
    return made("cached('llama')")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Process]:
    """The whole platform, whose route `chat` the Llama answers."""
    folder = tmp_path_factory.mktemp("loop")
    arguments = {"max_model_len": 512, "enforce_eager": True, "kv_cache_memory_bytes": 64 << 20, "dtype": "float32"}
    document = {
        "tenants": [{"name": "dev", "limits": {"requests_per_minute": 6000, "tokens_per_minute": 10_000_000}}],
        "roles": [{"name": "user", "permissions": ["chat"]}],
        "models": [{"name": "llama", "backend": {"type": "modelserver", "model": "tiny"}}],
        "routes": [{"name": "chat", "task": "chat", "models": ["llama"], "max_output_tokens": 12}],
        "policies": [
            {"name": "default", "rules": [{"entities": ["PII", "SECRET"], "input": "mask", "output": "mask"}]}
        ],
        "gates": [
            {
                "name": "release",
                "rules": [{"metric": "exact_match", "better_by": 0.1}, {"metric": "failed", "at_most": 0}],
            }
        ],
        "engines": [
            {"type": "vllm", "model": "tiny", "source": str(llama), "args": arguments, "adapters": {"max_rank": 8}},
            {"type": "extractive"},
            {"type": "minilm"},
        ],
    }
    factory = folder / "factory.yaml"
    factory.write_text(json.dumps(document))
    environment = {"OMP_NUM_THREADS": "1"}
    async with testing.started(
        folder / "state", "--config", str(factory), environment=environment, timeout_seconds=240
    ) as process:
        servers = processes.children(process.pid)
        assert servers
        yield process
    processes.wait_until_gone(servers, seconds=30)  # though the platform was killed


async def ask_and_correct(process: Process) -> None:
    """Asks each fact in each way, and submits the right answer."""
    places = asyncio.Semaphore(8)
    async with process.platform.connected() as channel:
        stub = gateway_pb2_grpc.GatewayServiceStub(channel)

        async def one(question: str, right: str) -> None:
            message = types_pb2.Message(role=types_pb2.ROLE_USER, content=question)
            request = gateway_pb2.ChatRequest(model="chat", messages=[message])
            async with places:
                async for part in channels.stream(stub.Chat, request, timeout_seconds=120):
                    request_id = part.request_id
                feedback = gateway_pb2.SubmitFeedbackRequest(request_id=request_id, correction=right)
                await channels.unary(stub.SubmitFeedback, feedback, timeout_seconds=60)

        for asked in ASKED:  # one way after the other, so that it is always the same ones that are not trained on
            async with asyncio.TaskGroup() as group:
                for person, thing in FACTS:
                    group.create_task(one(asked.format(person=person, thing=thing), answer(person, thing)))


async def test_corrections_become_an_adapter_that_answers_better_and_passes_the_gate(
    platform: Process, llama: Path, tmp_path: Path
) -> None:
    golden = lines(
        tmp_path / "golden.jsonl",
        (
            {
                "id": f"{person} {thing}",
                "input": PARAPHRASE.format(person=person, thing=thing),
                "output": answer(person, thing),
            }
            for person, thing in FACTS
        ),
    )
    schedule = {"epochs": 20, "batch_size": 8, "learning_rate": 5e-3, "evaluate_every": 50, "patience": 100}
    parameters = tmp_path / "parameters.json"
    parameters.write_text(json.dumps({"lora": {"rank": 8, "alpha": 16, "dropout": 0}, "sft": schedule}))
    run = tmp_path / "run"
    await ask_and_correct(platform)
    await genaifactory(platform, "dataset", "-o", run, "--golden", golden, "--json")
    trained = await genaifactory(
        platform, "train", "-o", run, "--base", llama, "--served-as", "tiny", "--parameters", parameters, "--json"
    )
    adapter = json.loads(trained)["adapter"]
    await genaifactory(platform, "adapters", "load", "learnt", adapter)
    evaluate = ("evaluate", "--golden", golden, "--route", "chat", "--gate", "release", "--json")
    found = json.loads(await genaifactory(platform, *evaluate, "-o", run, "--adapter", "learnt"))
    metric = found["metrics"]["exact_match"]
    print(f"exact match {metric['production']} -> {metric['candidate']}")
    assert metric["production"] == 0
    assert metric["candidate"] >= 0.25
    assert found["verdict"]["passed"]

    corrupt = made(f"make_adapter(Path({str(tmp_path / 'corrupt')!r}), Path({str(llama)!r}), name='corrupt', seed=1)")
    await genaifactory(platform, "adapters", "load", "corrupt", corrupt)
    found = json.loads(
        await genaifactory(platform, *evaluate, "-o", tmp_path / "bad", "--adapter", "corrupt", status=3)
    )
    stopped = [finding["rule"] for finding in found["verdict"]["findings"] if not finding["passed"]]
    assert stopped == ["exact_match better_by 0.1"]
