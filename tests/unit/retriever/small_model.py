"""A small sentence-transformers model with an ONNX graph, made in a test: a random vector for each letter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from genaifactory_common import onnx_file

_LETTERS = 512


def table(seed: int, dimensions: int) -> NDArray[np.float32]:
    """The vectors of the vocabulary."""
    return np.random.default_rng(seed).standard_normal((_LETTERS, dimensions)).astype(np.float32)


def write(
    folder: Path,
    *,
    seed: int = 0,
    dimensions: int = 384,
    pooling: str = "pooling_mode_mean_tokens",
    max_tokens: int = 128,
    prompts: dict[str, str] | None = None,
) -> Path:
    """The folder, as SentenceTransformer.save writes one, without what only training needs."""
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "onnx").mkdir()
    graph = onnx_file.model(
        "small",
        nodes=[onnx_file.node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        constants=[onnx_file.tensor("table", table(seed, dimensions))],
        inputs=[onnx_file.variable(name, onnx_file.INT64, [1, "tokens"]) for name in ("input_ids", "attention_mask")],
        outputs=[onnx_file.variable("last_hidden_state", onnx_file.FLOAT, [1, "tokens", dimensions])],
        opsets={"": 20},
        ir_version=10,
    )
    (folder / "onnx" / "model.onnx").write_bytes(graph)
    tokenizer().save(str(folder / "tokenizer.json"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate((("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")))
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": dimensions, pooling: True})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False})
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts or {}, "default_prompt_name": None})
    return folder


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def tokenizer() -> Tokenizer:
    """A token for each letter; "[" and "]" stand around a text."""
    letters = {chr(code): code % _LETTERS for code in range(32, 32 + _LETTERS)}
    made = Tokenizer(models.WordLevel(letters, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.post_processor = processors.TemplateProcessing(
        single="[ $A ]", special_tokens=[(each, ord(each)) for each in "[]"]
    )
    return made
