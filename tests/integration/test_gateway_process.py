"""The gateway as a process of its own: it starts without other services, follows factory.yaml and ends on SIGTERM."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
from pathlib import Path

import httpx

from genaifactory_common import specs

FACTORY = """
tenants: [{{name: dev, keys: [{{id: dev, sha256: {sha256}, role: user}}]}}]
roles: [{{name: user, permissions: [chat, models]}}]
models: [{{name: extractive, backend: {{type: modelserver, model: extractive}}}}]
routes: [{{name: {route}, task: chat, models: [extractive]}}]
policies: [{{name: default}}]
"""


def _write(file: Path, route: str) -> None:
    file.write_text(FACTORY.format(sha256=specs.hash_key("sk-dev"), route=route), encoding="utf-8")


async def test_the_process_starts_alone_follows_its_document_and_stops_on_sigterm(tmp_path: Path) -> None:
    factory = tmp_path / "factory.yaml"
    await asyncio.to_thread(_write, factory, "chat")
    environment = {
        **os.environ,
        "GENAIFACTORY_FACTORY_FILE": str(factory),
        "GENAIFACTORY_CONTEXT_PRIVATE_KEY": base64.b64encode(bytes(range(32))).decode(),
        "GENAIFACTORY_HTTP__ADDRESS": "127.0.0.1:0",
        "GENAIFACTORY_SERVER__ADDRESS": "127.0.0.1:0",
        "GENAIFACTORY_UPSTREAMS__ORCHESTRATOR": f"unix:{tmp_path}/o",
        "GENAIFACTORY_UPSTREAMS__MONITOR": f"unix:{tmp_path}/m",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "genaifactory_gateway", env=environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(60):
            assert process.stderr is not None
            address = ""
            while not address:
                line = json.loads(await process.stderr.readline())
                address = line["message"].partition("answers HTTP on ")[2]
            client = httpx.AsyncClient(base_url=f"http://{address}", verify=False, timeout=10)
            headers = {"authorization": "Bearer sk-dev"}
            async with client:
                assert (await client.get("/healthz")).status_code == 200
                assert (await client.get("/readyz")).status_code == 503
                assert (await client.get("/v1/models", headers=headers)).json()["data"][0]["id"] == "chat"
                await asyncio.to_thread(_write, factory, "talk")
                while (await client.get("/v1/models", headers=headers)).json()["data"][0]["id"] != "talk":
                    await asyncio.sleep(0.1)  # the document is looked at every two seconds
            process.send_signal(signal.SIGTERM)
            await process.stderr.read()
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
