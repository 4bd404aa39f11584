"""A wrong factory.yaml changes nothing; command line, chart and every service refuse it with the same message."""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import itertools
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from genaifactory_common import files
from genaifactory_local import testing
from tests.bench import path
from tests.bench.path import Cluster
from tests.full import FULL

FOLLOWERS = ("gateway", "safety", "orchestrator", "retriever", "modelserver")
"""Services that follow factory.yaml; monitor has its settings alone."""
DOCUMENTS = 100 if FULL else 10
VLLM = "engines:\n  - {type: vllm, model: llama, source: /models/llama, args: {max_model_length: 100}}\n"

# A text of the default factory.yaml, its replacement, and the error.
WRONG = {
    "an entity": (
        "entities: [PII]", "entities: [PII, SHOE_SIZE]",
        r"policies\[0\]\.rules\[1\]\.entities\[1\]: unknown entity or group 'SHOE_SIZE'; known: BANNED, .*VN_TAX_CODE",
    ),
    "a template": (
        "{{ passage.title }}", "{{ company }}",
        r"prompts\[0\]\.system: unknown variable 'company'; known: passages, question, refusal, tenant, today",
    ),
    "an engine's argument": (
        "\nroutes:\n", f"\n{VLLM}routes:\n",
        r"engines\[0\]\.args\.max_model_length: vLLM has no engine argument .*; did you mean 'max_model_len'\?",
    ),
    "a route": (
        "models: [extractive]", "models: [gpt]",
        r"routes\[0\]\.models\[0\]: unknown chat model 'gpt'; known: extractive",
    ),
    "a banned term": (
        "policies:\n  - name: default\n", 'policies:\n  - name: default\n    banned_terms: ["\\u200b"]\n',
        r"policies\[0\]\.banned_terms\[0\]: must hold a visible character",
    ),
}  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.allow_blocking]


def spoilt(text: str, fault: str) -> str:
    """The document with one fault."""
    before, after, _ = WRONG[fault]
    assert before in text
    return text.replace(before, after, 1)


async def ended(*command: str, **environment: str) -> tuple[int, str]:
    """A Python module's exit code and stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *command, env={**os.environ, **environment}, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(120):
        _, err = await process.communicate()
    return process.returncode or 0, err.decode()


@pytest.mark.parametrize("fault", WRONG)
async def test_the_check_of_the_chart_reports_what_the_command_line_does(fault: str, tmp_path: Path) -> None:
    file = tmp_path / "factory.yaml"
    file.write_text(spoilt(testing.DEFAULT_FACTORY.read_text(encoding="utf-8"), fault), encoding="utf-8")
    (code, words), chart = await asyncio.gather(
        ended("genaifactory_local", "config", "check", str(file)), ended("genaifactory_common.specs", str(file))
    )
    assert re.fullmatch(f"{re.escape(str(file))}: {WRONG[fault][2]}\n", words)
    assert (code, words) == chart == (1, words)


async def test_no_service_starts_with_it_and_each_reports_the_same(tmp_path: Path) -> None:
    file, state = tmp_path / "factory.yaml", tmp_path / "state"
    text = testing.DEFAULT_FACTORY.read_text(encoding="utf-8")
    faults = [fault for fault in WRONG if fault != "a route"]  # references are checked when all parts are valid
    file.write_text(functools.reduce(spoilt, faults, text), encoding="utf-8")
    environment = {
        "GENAIFACTORY_FACTORY_FILE": str(file),
        "GENAIFACTORY_DATA_DIR": str(tmp_path / "data"),
        "GENAIFACTORY_CONTEXT_PRIVATE_KEY": base64.b64encode(bytes(range(32))).decode(),
    }
    checked, run, *services = await asyncio.gather(
        ended("genaifactory_local", "config", "check", str(file)),
        ended("genaifactory_local", "run", "--config", str(file), "--state", str(state)),
        *(ended(f"genaifactory_{name}", **environment, **upstreams(name, tmp_path)) for name in FOLLOWERS),
    )
    problems = [line.removeprefix(f"{file}: ") for line in checked[1].splitlines()]
    assert len(problems) == len(faults)
    words = f"{file}: {'; '.join(problems)}\n"
    assert services == [(1, f"{name}: {words}") for name in FOLLOWERS]
    assert run[0] == 1
    assert run[1].endswith(words)
    assert not (state / "data").exists()


def upstreams(name: str, folder: Path) -> dict[str, str]:
    """A service's settings of where others are."""
    return {f"GENAIFACTORY_UPSTREAMS__{each.upper()}": f"unix:{folder}/{each}" for each in path.UPSTREAMS.get(name, ())}


@pytest.mark.soak
@pytest.mark.timeout(1500 if FULL else 300)
async def test_nothing_fails_and_a_bad_document_changes_nothing_while_good_and_bad_ones_alternate(
    tmp_path: Path,
) -> None:
    async with path.cluster(tmp_path) as cluster, asking(cluster) as asked:
        good = cluster.factory.read_text(encoding="utf-8")
        log = {name: tmp_path / f"{name}.log" for name in FOLLOWERS}
        faults = itertools.cycle(WRONG)
        for number in range(DOCUMENTS // 2):
            # Each good one changes what every service derives: policies, plans, limits.
            text = good.replace("passages: 5", f"passages: {3 + number % 4}").replace(
                "input: mask, output: mask", ("input: mask, output: mask", "input: allow, output: mask")[number % 2]
            )
            text = f"{text}# {number}\n"
            await put(cluster, text)
            digest = hashlib.sha256(text.encode()).hexdigest()
            await until(functools.partial(all_report, cluster, digest, refused=False), f"good document {number}")

            read = {name: file.stat().st_size for name, file in log.items()}
            fault = next(faults)
            await put(cluster, spoilt(text, fault))
            await until(functools.partial(all_report, cluster, digest, refused=True), f"{fault} of {number}")
            logged = {name: new_lines(file, read[name]) for name, file in log.items()}
            for name, lines in logged.items():
                assert len(lines) == 1, (name, lines)
            assert len({message for (message,) in logged.values()}) == 1, logged
            (message,) = logged["safety"]
            assert re.fullmatch(
                f"factory.yaml is refused, the last good .*: {cluster.factory}: {WRONG[fault][2]}", message
            )
    print(f"\n{asked.answered} answered while {DOCUMENTS} documents alternated")
    assert asked.failures == []
    assert asked.answered > DOCUMENTS


class Asked:
    """Requests of the clients, by outcome."""

    def __init__(self) -> None:
        self.answered = 0
        self.failures: list[str] = []


@asynccontextmanager
async def asking(cluster: Cluster) -> AsyncIterator[Asked]:
    """Clients that send questions without pause inside the block; running requests end when it is left."""
    asked, stop, numbers = Asked(), asyncio.Event(), itertools.count()

    async def ask(client: httpx.AsyncClient, route: str, *, stream: bool) -> None:
        while not stop.is_set():
            question = {"role": "user", "content": f"How many days of annual leave do I have? ({next(numbers)})"}
            try:
                response = await client.post(
                    "/v1/chat/completions", json={"model": route, "stream": stream, "messages": [question]}
                )
            except httpx.HTTPError as error:
                asked.failures.append(f"{route}: {type(error).__name__}: {error}")
                continue
            whole = response.text.rstrip().endswith("data: [DONE]") if stream else bool(response.text)
            if response.status_code == 200 and whole and '"error"' not in response.text:
                asked.answered += 1
            else:
                asked.failures.append(f"{route}: {response.status_code} {response.text[-500:]}")
            await asyncio.sleep(0.02)

    headers = {"authorization": f"Bearer {path.KEY}"}
    url = f"http://127.0.0.1:{cluster.http_port}"
    async with (
        httpx.AsyncClient(base_url=url, headers=headers, timeout=60, trust_env=False) as client,
        asyncio.TaskGroup() as group,
    ):
        for route, stream in itertools.product(("rag", "chat"), (False, True)):
            group.create_task(ask(client, route, stream=stream))
        try:
            yield asked
        finally:
            stop.set()


async def put(cluster: Cluster, text: str) -> None:
    """Replaces the document atomically, as a ConfigMap's volume does."""
    await asyncio.to_thread(files.write, cluster.factory, text.encode())


async def all_report(cluster: Cluster, digest: str, *, refused: bool) -> bool:
    """Whether every service has the document of this digest in force, and refuses the file's or not."""
    async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
        for name in FOLLOWERS:
            metrics = (await client.get(f"http://127.0.0.1:{cluster.metrics_ports[name]}/metrics")).text
            in_force = re.findall(r'^genaifactory_configuration_info\{digest="(\w+)"\} 1\.0$', metrics, re.MULTILINE)
            state = re.findall(r"^genaifactory_configuration_refused (.*)$", metrics, re.MULTILINE)
            if refused and in_force != [digest]:
                raise AssertionError(f"{name} has {in_force} in force, not {digest}")
            if (in_force, state) != ([digest], ["1.0" if refused else "0.0"]):
                return False
    return True


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Waits for a condition. Raises AssertionError after a minute."""
    try:
        async with asyncio.timeout(60):
            while not await condition():
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise AssertionError(f"not reported by every service in 60 s: {what}") from None


def new_lines(log: Path, start: int) -> list[str]:
    """Messages about factory.yaml that a service has logged since its log had this size."""
    lines = map(json.loads, log.read_bytes()[start:].decode().splitlines())
    return [line["message"] for line in lines if line["message"].startswith("factory.yaml is refused")]
