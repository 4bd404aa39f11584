"""Whether a model's files say how a conversation is written, as vLLM itself looks for it, and what is done without."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer
from vllm.renderers import renderer_from_config

from genaifactory_common.engine_specs import Vllm
from genaifactory_common.errors import InvalidArgument
from genaifactory_modelserver.engines.protocol import Generation, Message, Role, Sampling
from genaifactory_modelserver.engines.vllm import arguments, plain_chat
from genaifactory_modelserver.engines.vllm.requests import Preparing
from tests.data import tiny_llama
from tests.vllm import processes

OTHER = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
QUESTION = Generation("base", messages=(Message(Role.USER, "How many days?"),), sampling=Sampling(stop=("END",)))


def preparing(folder: Path, chat_template: str | None = None) -> Preparing:
    spec = Vllm(type="vllm", model="base", source=str(folder), args=processes.ARGS, chat_template=chat_template)
    config = arguments.config(spec, folder, path="engines[0]")
    return Preparing(spec, config, renderer_from_config(config), path="engines[0]")


def in_a_file(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(OTHER)


def in_the_tokenizers_configuration(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": OTHER}))


def among_several(folder: Path) -> None:
    several = [{"name": "default", "template": OTHER}, {"name": "tool_use", "template": OTHER}]
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": several}))


@pytest.fixture(scope="module")
def base(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.without_chat_template(llama, tmp_path_factory.mktemp("models") / "base")


async def text_of(requests: Preparing, request: Generation, folder: Path) -> str:
    tokens = (await requests.prepare(request)).prompt["prompt_token_ids"]
    return str(AutoTokenizer.from_pretrained(folder).decode(tokens))


@pytest.mark.parametrize("add", [in_a_file, in_the_tokenizers_configuration, among_several])
async def test_a_template_that_came_with_the_model_is_used(
    add: Callable[[Path], None], base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    add(folder)
    requests = preparing(folder)
    assert not requests.plain
    assert (await text_of(requests, QUESTION, base)).endswith("<user>How many days?")
    assert (await requests.prepare(QUESTION)).sampling.stop == ["END"]


async def test_without_one_the_conversation_is_plain_and_ends_before_the_next_question(base: Path) -> None:
    requests = preparing(base)
    assert requests.plain
    await requests.check_chat(path="engines[0]")
    assert await text_of(requests, QUESTION, base) == "<s>User: How many days?\n\nAssistant:"
    assert (await requests.prepare(QUESTION)).sampling.stop == ["END", *plain_chat.STOP]
    begun = Message(Role.ASSISTANT, " Twelve, of")
    continued = Generation("base", messages=(*QUESTION.messages, begun), continue_final_message=True)
    assert await text_of(requests, continued, base) == "<s>User: How many days?\n\nAssistant:  Twelve, of"
    completed = Generation("base", prompt="How many days?", sampling=QUESTION.sampling)
    assert (await requests.prepare(completed)).sampling.stop == ["END"]


async def test_the_entrys_own_template_goes_before(base: Path) -> None:
    requests = preparing(base, OTHER)
    assert not requests.plain
    assert (await text_of(requests, QUESTION, base)).endswith("<user>How many days?")


@pytest.mark.parametrize("template", ["{% for message in messages %}", "{{ raise_exception('no users') }}"])
async def test_a_template_that_takes_no_question_is_found_at_the_start(template: str, base: Path) -> None:
    requests = preparing(base, template)
    with pytest.raises(InvalidArgument, match=r"Set engines\[0\]\.chat_template to a Jinja template"):
        await requests.check_chat(path="engines[0]")
