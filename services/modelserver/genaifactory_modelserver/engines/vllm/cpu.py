"""vLLM's worker for CPUs, without a fault that any client could end it by.

A request with a seed draws its random numbers from a generator of its own. When a step computes a part of its prompt
only (a long prompt, or one that gave way to others), the token sampled in that step is dropped and the generator is set
back by its offset, which generators on a CPU do not have: the engine died (vLLM 0.32). Here their state is put back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker


class SeededCPUModelRunner(CPUModelRunner):
    """Sets generators back by their state instead of their offset."""

    def _sample(self, *args: Any, **kwargs: Any) -> Any:
        generators: dict[int, torch.Generator] = self.input_batch.generators
        states = {row: generators[row].get_state() for row in self._dropped() if row in generators}
        output = super()._sample(*args, **kwargs)
        for row, state in states.items():
            generators[row].set_state(state)
        return output

    def _bookkeeping_sync(self, *args: Any, **kwargs: Any) -> Any:
        generators: dict[int, torch.Generator] = self.input_batch.generators
        held = {row: generators.pop(row) for row in self._dropped() if row in generators}
        try:
            return super()._bookkeeping_sync(*args, **kwargs)
        finally:
            generators.update(held)

    def _dropped(self) -> list[int]:
        """Rows of the batch whose sampled token is not wanted."""
        rows: list[int] = np.nonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])[0].tolist()
        return rows


class Worker(CPUWorker):
    """Runs the mended model runner; vLLM's argument worker_cls names it."""

    def init_device(self) -> None:
        """As vLLM's, which makes its own runner."""
        super().init_device()
        self.model_runner.__class__ = SeededCPUModelRunner
