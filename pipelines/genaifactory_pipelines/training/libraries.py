"""The libraries of a training, which are imported when one starts: everything else of the package does without."""

from __future__ import annotations

import importlib.util
import os

from genaifactory_common.errors import InvalidArgument, Unimplemented

_NEEDED = ("torch", "transformers", "peft", "trl")


def prepare(quantisation: str) -> None:
    """Before the first of them is imported. Blocks: it imports torch.

    Raises Unimplemented when one is not installed, InvalidArgument for a quantisation that this machine cannot do.
    """
    needed, extra = (_NEEDED, "train") if quantisation == "none" else ((*_NEEDED, "bitsandbytes"), "qlora")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise Unimplemented(
            f"Training needs {', '.join(missing)}, which this environment lacks. Install "
            f"genaifactory-pipelines[{extra}], or run `make train-cpu` on a machine without a GPU."
        )
    # Read when huggingface-hub is imported: TRL would send the model's and the machine's kind home.
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if quantisation != "none":
        import torch

        if not torch.cuda.is_available():
            raise InvalidArgument(
                f"The quantisation '{quantisation}' needs a GPU with CUDA, and there is none here. Train with 'none'.",
                field="quantisation",
            )
