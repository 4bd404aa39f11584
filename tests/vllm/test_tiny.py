"""What the tests of this folder rely on: the small Llama's greedy text is decided, and adapters change it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from tests.data import tiny_llama
from tests.vllm.processes import Rendered

PROMPTS = ("Annual leave", "Employees who", "Mỗi năm", "The office in Huế", "Working hours are")
TOKENS = 40
# Float32 sums of another order differ by some 1e-5 in a logit.
NOISE = 1e-4


def greedy(model: LlamaForCausalLM, folder: Path, text: str) -> tuple[list[int], float]:
    """The tokens, and the smallest distance of the likeliest from the next one."""
    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    written = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        min_new_tokens=TOKENS,
        max_new_tokens=TOKENS,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    best = torch.cat(written.scores).topk(2).values
    return written.sequences[0, tokens.shape[1] :].tolist(), float((best[:, 0] - best[:, 1]).min())


def with_adapter(base: Path, adapter: Path) -> LlamaForCausalLM:
    """The base model, the adapter added to its weights as its format says."""
    model = AutoModelForCausalLM.from_pretrained(base)
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name, down in tensors.items():
        if ".lora_A." in name:
            up = tensors[name.replace(".lora_A.", ".lora_B.")]
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            weight = model.get_submodule(module).weight
            with torch.no_grad():
                weight += config["lora_alpha"] / config["r"] * up @ down
    return model


def sums_hold(folder: Path) -> None:
    lines = (line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines())
    listed = {name: sha256 for sha256, name in lines}
    assert list(listed) == sorted(path.name for path in folder.iterdir() if path.name != "SHA256SUMS")
    for name, sha256 in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256


@pytest.mark.parametrize("kind", ["llama", "embedder"])
def test_a_model_is_made_once_and_its_files_are_those_of_its_list(kind: str) -> None:
    folder = tiny_llama.cached(kind)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert tiny_llama.cached(kind) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    sums_hold(folder)


def test_greedy_decoding_is_decided_by_more_than_noise(llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    written = {}
    for text in PROMPTS:
        written[text], closest = greedy(model, llama, text)
        assert closest > NOISE, text
        assert len(set(written[text])) > TOKENS // 4, text  # it does not say one thing again and again
    assert len({tuple(tokens) for tokens in written.values()}) == len(PROMPTS)


def test_adapters_write_otherwise_than_the_base_and_than_each_other(llama: Path, adapters: dict[str, Path]) -> None:
    models = {"base": AutoModelForCausalLM.from_pretrained(llama)}
    models |= {name: with_adapter(llama, folder) for name, folder in adapters.items()}
    for text in PROMPTS:
        written = {}
        for name, model in models.items():
            tokens, closest = greedy(model, llama, text)
            assert closest > NOISE, (name, text)
            written[name] = tuple(tokens)
        assert len(set(written.values())) == len(models), text


def test_an_adapter_says_what_it_is(llama: Path, tmp_path: Path) -> None:
    folder = tiny_llama.make_adapter(tmp_path / "x", llama, name="x", seed=7, rank=4, base_model="tiny")
    metadata = json.loads((folder / "metadata.json").read_text())
    weights = (folder / "adapter_model.safetensors").read_bytes()
    assert metadata["base_model"] == "tiny"
    assert metadata["sha256"] == hashlib.sha256(weights).hexdigest()
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 4
    again = tiny_llama.make_adapter(tmp_path / "y", llama, name="x", seed=7, rank=4, base_model="tiny")
    assert (again / "adapter_model.safetensors").read_bytes() == weights


def test_the_template_writes_documents_tools_calls_and_results(rendered: Rendered) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Huế"}}}
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    text = rendered(
        [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "It rains."},
        ],
        documents=[{"title": "Leave", "text": "12 days."}],
        tools=[tool],
    )
    parts = [
        '"name": "weather"',
        "[1] Leave: 12 days.",
        "system: Be short.",
        "user: Weather?",
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Huế"}}\n</tool_call>',
        "tool: It rains.",
    ]
    found = [text.find(part) for part in parts]
    assert found == sorted(found), text
    assert found[0] >= 0, text
    assert text.endswith("assistant:")


def test_the_template_lets_an_answer_be_continued(llama: Path) -> None:
    text = AutoTokenizer.from_pretrained(llama).apply_chat_template(
        [{"role": "user", "content": "Leave?"}, {"role": "assistant", "content": "You have 12"}],
        tokenize=False,
        continue_final_message=True,
    )
    assert text.endswith("assistant: You have 12")
