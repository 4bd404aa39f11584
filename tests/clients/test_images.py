"""Images from unmodified clients: the program of docs/clients.md, and the same with other clients."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from genaifactory_common.testing import openai_upstream
from genaifactory_common.testing.images import part, png
from genaifactory_common.testing.openai_upstream import Upstream
from genaifactory_local import testing
from tests.clients.test_clients import PAGE, Client, Place, run

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECTION = PAGE.read_text().partition("\n## Images\n")[2].partition("\n## ")[0]
(PROGRAM,) = re.findall(r"^```python\n(.+?)^```$", SECTION, re.MULTILINE | re.DOTALL)
(FACTORY,) = re.findall(r"^```yaml\n(.+?)^```$", SECTION, re.MULTILINE | re.DOTALL)
SETUP = """
factory = {"%s": "http://127.0.0.1:8080/v1", "api_key": open(".genaifactory/key").read().strip()}
content = [{"type": "text", "text": "Say what this form asks for."}, IMAGE]
messages = [{"role": "user", "content": content}]
""".replace("IMAGE", repr(part(detail="high")))
PROGRAMS = {
    "openai": PROGRAM,
    "langchain": "from langchain_openai import ChatOpenAI"
    + SETUP % "base_url"
    + "print(ChatOpenAI(model='see', **factory).invoke(messages).content)",
    "litellm": "import litellm"
    + SETUP % "api_base"
    + "print(litellm.completion(model='openai/see', messages=messages, **factory).choices[0].message.content)",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    async with openai_upstream.serve([openai_upstream.answer("A name.")]) as serving:
        yield serving


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> AsyncIterator[Place]:
    """`genaifactory run` with the page's factory.yaml, in front of a stand-in for the API that it names."""
    folder = tmp_path_factory.mktemp("images")
    own = FACTORY.replace("https://llm.example.com/v1", upstream.base_url).replace(", api_key_env: LLM_API_KEY", "")
    rest = "tenants: [{name: dev}]\nroles: [{name: admin, permissions: [chat]}]\n"
    await asyncio.to_thread((folder / "factory.yaml").write_text, rest + own)
    await asyncio.to_thread((folder / "form.png").write_bytes, png())
    async with testing.started(folder / ".genaifactory", working_folder=folder) as process:
        yield Place(folder, process.platform.openai_url)


@pytest.mark.parametrize("client", PROGRAMS)
async def test_an_unmodified_client_sends_an_image_to_a_model_with_vision(
    client: str, place: Place, upstream: Upstream
) -> None:
    upstream.requests.clear()
    asked = f"Say what this form asks for, {client}."  # otherwise the answer could come from the cache
    program = PROGRAMS[client].replace("Say what this form asks for.", asked)
    output = await run(Client(f"images {client}", client), program, place)
    assert output.strip() == "A name."
    (request,) = upstream.requests
    (message,) = request.body["messages"]
    assert message["content"] == [{"type": "text", "text": asked}, part(detail="high")]
