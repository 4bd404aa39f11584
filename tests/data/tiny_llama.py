"""Small real models, made here since no hub is asked: a Llama that writes grammatical nonsense, adapters, an embedder.

`cached` makes each once and keeps it in .cache/tiny_llama, under a hash of this file. Needs torch and transformers.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_VOCABULARY, _HIDDEN, _INNER, _LAYERS, _HEADS = 512, 256, 512, 4, 4
_CONTEXT = 2048
_STEPS, _BATCH, _LENGTH = 120, 16, 64
_RATE = 3e-3
_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_TEMPLATE = """{{- bos_token -}}
{%- if tools %}system: You may call: {% for tool in tools %}{{ tool.function | tojson }} {% endfor %}
{% endif -%}
{%- if tone %}tone: {{ tone }}
{% endif -%}
{%- if documents %}documents:
{% for document in documents %}[{{ loop.index }}] {{ document.title }}: {{ document.text }}
{% endfor %}{% endif -%}
{%- for message in messages -%}
{{ message.role }}: {{ message.content or '' }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor -%}
{{ '\n' if not (loop.last and continue_final_message) else '' }}
{%- endfor -%}
{%- if add_generation_prompt %}assistant:{% endif -%}
"""


def cached(kind: str) -> Path:
    """The folder of "llama", "llama-other" (the same shapes, other weights) or "embedder"; made on first use."""
    makers: dict[str, Callable[[Path], Path]] = {
        "llama": make,
        "llama-other": lambda folder: make(folder, seed=1),
        "embedder": make_embedder,
    }
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    target = _ROOT / ".cache" / "tiny_llama" / digest / kind
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=target.parent))
    made = makers[kind](work / "made")
    try:
        os.rename(made, target)
    except OSError:  # another process was faster
        if not target.is_dir():
            raise
    shutil.rmtree(work, ignore_errors=True)
    return target


def make(folder: Path, *, seed: int = 0) -> Path:
    """A Llama of 3 million parameters, trained for a minute on the project's own documents."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=_VOCABULARY,
            hidden_size=_HIDDEN,
            intermediate_size=_INNER,
            num_hidden_layers=_LAYERS,
            num_attention_heads=_HEADS,
            num_key_value_heads=_HEADS,
            max_position_embeddings=_CONTEXT,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
            tie_word_embeddings=False,
            initializer_range=0.05,
        )
    )
    # Without line ends, which would be the likeliest token of all.
    text = " ".join(" ".join(_texts()).replace("#", "").replace("|", "").split())
    tokens = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    random = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min(1.0, (step + 1) / 10) * (1 - step / _STEPS)
        starts = torch.randint(0, len(tokens) - _LENGTH - 1, (_BATCH,), generator=random)
        batch = torch.stack([tokens[start : start + _LENGTH] for start in starts.tolist()])
        loss: Any = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    # Peaked, so that the likeliest token wins by more than the noise of another batch size.
    with torch.no_grad():
        model.lm_head.weight *= 1.5
    return _saved(model, tokenizer, folder)


def without_chat_template(model: Path, folder: Path) -> Path:
    """A copy of a model as a base model comes: nothing in its files says how a conversation is written."""
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "SHA256SUMS").unlink()  # it lists the template
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "chat_template"}))
    return folder


def make_embedder(folder: Path) -> Path:
    """A small BERT with random weights: texts become vectors, alike ones alike."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    tokenizer = _tokenizer()
    model = BertModel(
        BertConfig(
            vocab_size=_VOCABULARY,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=256,
            pad_token_id=2,
        )
    )
    return _saved(model, tokenizer, folder)


def make_adapter(
    folder: Path, base: Path, *, name: str, seed: int, rank: int = 8, base_model: str = "tiny", scale: float = 0.15
) -> Path:
    """A LoRA adapter in PEFT's format with random weights, strong enough to be told from the base and from others."""
    import numpy as np
    from safetensors.numpy import save_file

    config = json.loads((base / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes = {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (hidden, hidden)),
        **dict.fromkeys(("gate_proj", "up_proj"), (inner, hidden)),
        "down_proj": (hidden, inner),
    }
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for module in _MODULES:
            block = "self_attn" if module in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
            path = f"base_model.model.model.layers.{layer}.{block}.{module}"
            out, into = shapes[module]
            a = random.standard_normal((rank, into)) / into**0.5
            b = random.standard_normal((out, rank)) * scale
            tensors[f"{path}.lora_A.weight"] = a.astype(np.float32)
            tensors[f"{path}.lora_B.weight"] = b.astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "adapter_model.safetensors"
    save_file(tensors, weights)
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": base_model,
                "r": rank,
                "lora_alpha": 2 * rank,
                "lora_dropout": 0.0,
                "bias": "none",
                "target_modules": list(_MODULES),
            }
        )
    )
    metadata = {
        "name": name,
        "base_model": base_model,
        "data_version": f"seed-{seed}",
        "prompt_version": "none",
        "metrics": {},
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


def _texts() -> list[str]:
    sample = sorted((_ROOT / "services/local/genaifactory_local/sample").glob("*.md"))
    return [path.read_text(encoding="utf-8") for path in [*sample, *sorted((_ROOT / "docs").glob("tour.md"))]]


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=_TEMPLATE,
        model_max_length=_CONTEXT,
    )


def _saved(model: Any, tokenizer: Any, folder: Path) -> Path:
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in sorted(folder.iterdir())]
    (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    return folder
