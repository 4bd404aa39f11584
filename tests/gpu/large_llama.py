"""A Llama of a billion random parameters: work for a GPU. Needs torch and transformers."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tests.data import tiny_llama

PARAMETERS = 975_243_264
# Two engines at once, one beside the other.
HALF_A_GPU: dict[str, Any] = {"max_model_len": 2048, "gpu_memory_utilization": 0.4, "max_num_seqs": 64}
# Those of Llama 3.2 1B, but for its vocabulary.
_SHAPES: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}


def cached() -> Path:
    """Its folder; made on first use, 2 GB."""
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    target = Path(__file__).resolve().parents[2] / ".cache" / "large_llama" / digest
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".making-", dir=target.parent))
    made = make(work / "made", **_SHAPES)
    try:
        os.rename(made, target)
    except OSError:  # another process was faster
        if not target.is_dir():
            raise
    shutil.rmtree(work, ignore_errors=True)
    return target


def make(folder: Path, **shapes: Any) -> Path:
    """Writes the model. shapes: of its LlamaConfig."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama.cached("embedder"))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shapes,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    # The likeliest token is always one that shows at once and ends nothing: no answer is short, no step without text.
    with torch.no_grad():
        for token in range(len(tokenizer)):
            if not tokenizer.decode([token]).isascii() or token in tokenizer.all_special_ids:
                model.lm_head.weight[token] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
