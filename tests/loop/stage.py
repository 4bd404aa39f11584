"""The whole platform with a small Llama, and the loop on it: for `make pipeline` and for the tests."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory.modelserver.v1 import modelserver_pb2, modelserver_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, files
from genaifactory_local import testing
from genaifactory_local.testing import Process
from genaifactory_pipelines.tracking import client
from tests.loop import held_out, live, month
from tests.vllm import processes

ROOT = Path(__file__).resolve().parents[2]
TRAIN_PYTHON = ROOT / ".venv-train/bin/python"
BASE = "tiny"
"""The engine's name."""
GATE = "release"
EASY_GATE = "answers"
"""Every candidate that answers passes it."""
STRICT_GATE = "perfect"
"""No candidate here passes it."""
SCHEDULE = {"epochs": 8, "batch_size": 8, "learning_rate": 5e-3, "evaluate_every": 50, "patience": 100}
TRAINING = {"lora": {"rank": 8, "alpha": 16, "dropout": 0}, "sft": SCHEDULE}
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
ROUTES = (live.ROUTE, month.ROUTE)
"""That are learnt from."""
_VLLM = {"max_model_len": 512, "enforce_eager": True, "kv_cache_memory_bytes": 64 << 20, "dtype": "float32"}
_START_SECONDS = 300
_COMMAND_SECONDS = 900
_ROUTE_SECONDS = 30


@dataclass(frozen=True)
class Stage:
    """A running platform and what the loop on it needs."""

    folder: Path
    process: Process
    llama: Path
    """The base."""
    golden: Path
    first: date
    """The month's first day."""
    until: datetime
    """After the last question that was asked before the loop."""

    def arguments(self, run: Path, training: Mapping[str, Any] = TRAINING, *, gate: str = GATE) -> list[str]:
        """Of `genaifactory retrain`, for a run of the month."""
        parameters = run.with_name(f"{run.name}-training.json")
        files.write(parameters, json.dumps(training).encode())
        options = {
            "output": run,
            "since": self.first,
            "until": self.until.isoformat(),
            "golden": self.golden,
            "route": month.ROUTE,
            "base": self.llama,
            "served-as": BASE,
            "gate": gate,
            "parameters": parameters,
        }
        learnt = [text for route in ROUTES for text in ("--learn-from", route)]
        return ["retrain", *learnt, *(text for name, value in options.items() for text in (f"--{name}", str(value)))]

    async def genaifactory(self, *arguments: object) -> tuple[int, str, str]:
        """A command's exit status, standard output and standard error."""
        return await testing.genaifactory(
            *map(str, arguments), environment=self.environment(), timeout_seconds=_COMMAND_SECONDS
        )

    def environment(self) -> dict[str, str]:
        """Of a command's process, beside this one's."""
        return {**self.process.environment, **ENVIRONMENT}

    async def ask(self, question: str) -> tuple[str, str]:
        """The route's answer, and the model that gave it."""
        message = types_pb2.Message(role=types_pb2.ROLE_USER, content=question)
        request = gateway_pb2.ChatRequest(model=month.ROUTE, messages=[message])
        request.sampling.temperature = 0
        text, model = "", ""
        async with self.process.platform.connected() as channel:
            stub = gateway_pb2_grpc.GatewayServiceStub(channel)
            async for part in channels.stream(stub.Chat, request, timeout_seconds=120):
                text += part.delta
                model = part.done.model or model
        return text.strip(), model

    async def adapters(self) -> list[str]:
        """Names of the adapters that the model server has."""
        platform = self.process.platform
        platform.sign_in()
        async with channels.connect(platform.endpoints.socket("modelserver")) as channel:
            stub = modelserver_pb2_grpc.ModelServiceStub(channel)
            listed = await channels.unary(stub.ListModels, modelserver_pb2.ListModelsRequest(), timeout_seconds=30)
        return [model.name for model in listed.models if model.base_model]

    def in_mlflow(self) -> tuple[list[str], list[str]]:
        """Names of the runs on record, and versions of the registered model. Blocks."""
        from mlflow import MlflowClient

        mlflow = MlflowClient(client.embedded(self.process.platform.state.tracking))
        experiments = [each.experiment_id for each in mlflow.search_experiments()]
        runs = [run.info.run_name for run in mlflow.search_runs(experiments)]
        versions = mlflow.search_model_versions(f"name = '{month.ROUTE}'")
        return runs, [str(each.version) for each in versions]

    async def release(self, adapter: str) -> None:
        """Lets the route answer with an adapter first, as an administrator does: by a change of factory.yaml."""
        await asyncio.to_thread(_configure, self.folder, self.llama, adapter)
        async with asyncio.timeout(_ROUTE_SECONDS):
            while (await self.ask("Where?"))[1] != adapter:  # noqa: ASYNC110  # nothing reports that it is in force
                await asyncio.sleep(0.2)


def document(llama: Path, adapter: str = "") -> dict[str, Any]:
    """The default factory.yaml, but that the Llama answers the route `chat`. adapter: a model that answers before it.
    Blocks."""
    names = [*([adapter] if adapter else []), "llama"]
    default = yaml.safe_load(testing.DEFAULT_FACTORY.read_text(encoding="utf-8"))
    return {
        **default,
        "tenants": [{"name": "dev", "limits": {"requests_per_minute": 60_000, "tokens_per_minute": 100_000_000}}],
        "models": [
            *default["models"],
            *(
                {"name": name, "backend": {"type": "modelserver", "model": BASE if name == "llama" else name}}
                for name in names
            ),
        ],
        "routes": [
            next(route for route in default["routes"] if route["name"] == live.ROUTE),
            {"name": month.ROUTE, "task": "chat", "models": names, "max_output_tokens": 16, "policy": "default"},
        ],
        "gates": [
            {
                "name": GATE,
                "rules": [{"metric": "exact_match", "better_by": 0.1}, {"metric": "failed", "at_most": 0}],
            },
            {"name": EASY_GATE, "rules": [{"metric": "failed", "at_most": 0}]},
            {"name": STRICT_GATE, "rules": [{"metric": "exact_match", "at_least": 0.99}]},
        ],
        "engines": [
            {"type": "vllm", "model": BASE, "source": str(llama), "args": _VLLM, "adapters": {"max_rank": 8}},
            {"type": "extractive"},
            {"type": "minilm"},
        ],
    }


def _configure(folder: Path, llama: Path, adapter: str = "") -> None:
    files.write(factory(folder), json.dumps(document(llama, adapter)).encode())


def factory(folder: Path) -> Path:
    """The platform's factory.yaml: JSON is YAML."""
    return folder / "factory.yaml"


def made(code: str) -> Path:
    """The folder that a line of tests.data.tiny_llama returns; this environment has no torch to run it. Blocks."""
    lines = f"from pathlib import Path; from tests.data import tiny_llama; print(tiny_llama.{code})"
    done = subprocess.run((TRAIN_PYTHON, "-c", lines), cwd=ROOT, capture_output=True, text=True, check=True)
    return Path(done.stdout.split()[-1])


@asynccontextmanager
async def running(folder: Path, first: date, documents: Sequence[Path] = ()) -> AsyncIterator[Stage]:
    """The platform with the sample documents and others, and with the month and what people asked since then on record,
    as long as the block runs."""
    llama = await asyncio.to_thread(made, "cached('llama')")
    await asyncio.to_thread(_configure, folder, llama)
    golden = await asyncio.to_thread(held_out.write, folder / "golden.jsonl")
    started = testing.started(
        folder / "state",
        *map(str, (testing.SAMPLE, *documents)),
        *("--config", str(factory(folder))),
        environment=ENVIRONMENT,
        timeout_seconds=_START_SECONDS,
    )
    async with started as process:
        servers = await asyncio.to_thread(processes.children, process.pid)
        await month.record(process.platform, first)
        until = await live.ask(process.platform)
        yield Stage(folder, process, llama, golden, first, until)
        await process.stop()
    await asyncio.to_thread(processes.wait_until_gone, servers, seconds=30)


def last_month(today: date) -> date:
    """The first day of the month that ended yesterday."""
    return today - timedelta(days=month.DAYS)
