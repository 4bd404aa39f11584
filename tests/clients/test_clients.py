"""The programs of docs/clients.md, word for word, each with its unmodified client, against the whole platform.

`make test-clients` installs each client into an environment of its own: their pins clash with each other's and ours.
"""

from __future__ import annotations

import asyncio
import lzma
import os
import re
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from genaifactory_common import specs
from genaifactory_gateway.openai import token_ids
from genaifactory_local import testing

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[2]
INSTALLED = ROOT / ".cache" / "clients"
PAGE = ROOT / "docs" / "clients.md"
PROGRAMS = dict(
    re.findall(r"^## ([^\n]+)\n+```(?:python|javascript)\n(.+?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
)
(BATCHES,) = re.findall(r"^```python\n(.+?)^```$", (ROOT / "docs" / "batches.md").read_text(), re.MULTILINE | re.DOTALL)
USER = "gf-user-0123456789abcdef"


@dataclass(frozen=True)
class Client:
    """One client, and where it is installed."""

    heading: str
    """Of its program in docs/clients.md."""
    environment: str
    """Folder below .cache/clients; "node" holds all those of Node."""

    @property
    def of_node(self) -> bool:
        """Whether Node runs it."""
        return self.environment == "node"


CLIENTS = [
    Client("openai (Python)", "openai"),
    Client("openai (Node)", "node"),
    Client("LangChain", "langchain"),
    Client("LlamaIndex", "llamaindex"),
    Client("litellm", "litellm"),
    Client("Vercel AI SDK", "node"),
]
NODE = shutil.which("node")
MISSING = [client.environment for client in CLIENTS if not (INSTALLED / client.environment / ".installed").exists()]


@dataclass(frozen=True)
class Place:
    """A running platform, and the working folder of the programs."""

    folder: Path
    url: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    """`genaifactory run` with the sample handbook, its key at .genaifactory/key, and another key of the role user."""
    folder = tmp_path_factory.mktemp("clients")
    factory = testing.DEFAULT_FACTORY.read_text()
    key = f"    keys: [{{id: someone, sha256: {specs.hash_key(USER)}, role: user}}]\n"
    (folder / "factory.yaml").write_text(re.sub(r"^    keys: \[\]\n", key, factory, count=1, flags=re.MULTILINE))
    vocabulary = folder / "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"  # as tiktoken calls cl100k_base in its cache
    vocabulary.write_bytes(lzma.decompress(token_ids.VOCABULARY.read_bytes()))
    if (INSTALLED / "node").exists():
        (folder / "node_modules").symlink_to(INSTALLED / "node" / "node_modules")
    state = folder / ".genaifactory"
    async with testing.started(state, str(testing.SAMPLE), working_folder=folder) as process:
        yield Place(folder, process.platform.openai_url)


async def run(client: Client, program: str, place: Place) -> str:
    """The program's output. Fails when it ends with an error."""
    if client.of_node and NODE is None:
        pytest.skip("Node is not installed")
    assert client.environment not in MISSING, "run it with: make test-clients"
    path = place.folder / ("program-" + client.heading.replace(" ", "-") + (".mjs" if client.of_node else ".py"))
    await asyncio.to_thread(path.write_text, program.replace("http://127.0.0.1:8080/v1", place.url))
    command = NODE if client.of_node else str(INSTALLED / client.environment / "bin" / "python")
    process = await asyncio.create_subprocess_exec(
        command or "node",
        path.name,
        cwd=place.folder,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(place.folder),
            # Caches, so that these two download nothing.
            "TIKTOKEN_CACHE_DIR": str(place.folder),
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        },
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(120):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, (output + errors).decode(errors="replace")
    return output.decode()


async def test_the_page_has_a_program_for_every_client() -> None:
    assert set(PROGRAMS) == {client.heading for client in CLIENTS}


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.heading)
async def test_an_unmodified_client_chats_streams_embeds_and_reports_what_is_not_supported(
    client: Client, place: Place
) -> None:
    output = await run(client, PROGRAMS[client.heading], place)
    answer, streamed, size, *_, error = output.strip().splitlines()
    assert "annual leave" in answer
    assert answer.endswith("[1]")
    assert streamed == answer
    assert size == "384"
    assert "The extractive engine only quotes documents" in error


async def test_the_program_of_the_page_on_batches_prints_each_answer(place: Place) -> None:
    completed, first, second = (await run(Client("batches", "openai"), BATCHES, place)).strip().splitlines()
    assert completed == "completed 2"
    assert first.startswith("question-0 ")
    assert "annual leave" in first
    assert second.startswith("question-1 ")


async def test_the_vectors_of_langchains_token_ids_are_those_of_the_texts(place: Place) -> None:
    client = Client("LangChain vectors", "langchain")
    program = """
from langchain_openai import OpenAIEmbeddings

factory = {"base_url": "http://127.0.0.1:8080/v1", "api_key": open(".genaifactory/key").read().strip()}
texts = ["Mỗi nhân viên có 16 ngày nghỉ phép.", "A robot's battery lasts a year. " * 20]
by_ids = OpenAIEmbeddings(model="minilm", **factory).embed_documents(texts)
by_text = OpenAIEmbeddings(model="minilm", check_embedding_ctx_length=False, **factory).embed_documents(texts)
print(max(abs(a - b) for one, other in zip(by_ids, by_text) for a, b in zip(one, other)))
"""
    assert float(await run(client, program, place)) < 1e-5


async def test_a_key_of_the_role_user_sees_its_own_usage_alone(place: Place) -> None:
    async with httpx.AsyncClient(base_url=place.url, headers={"authorization": f"Bearer {USER}"}, timeout=30) as http:
        body = {"model": "rag", "messages": [{"role": "user", "content": "How many days of annual leave do I have?"}]}
        assert (await http.post("/chat/completions", json=body)).status_code == 200
        rows: list[dict[str, Any]] = []
        async with asyncio.timeout(30):
            while not rows:  # the record follows the answer
                rows = (await http.get("/usage")).json()["data"]
                await asyncio.sleep(0.1)
    assert {row["key_id"] for row in rows} == {"someone"}  # though the development key asked, too
    assert sum(row["requests"] for row in rows) == 1
