"""The distance of the questions' embeddings as distributions, by the maximum mean discrepancy.

Gretton et al., "A Kernel Two-Sample Test", JMLR 2012: Gaussian kernel, with the median distance as its width.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from genaifactory_pipelines.drift import effects, permutations
from genaifactory_pipelines.drift.protocol import Evidence, Window, require_enough


class QuestionMmd:
    """The unbiased squared discrepancy; it notices a shift of all questions better than a new group of them."""

    name = "question_mmd"
    group: Literal["inputs"] = "inputs"
    effect = effects.MMD

    def measure(self, reference: Window, current: Window) -> Evidence:
        """See Signal."""
        require_enough("questions", reference.asked, current.asked)
        kernel = _kernel(np.concatenate([reference.vectors, current.vectors]))
        sizes = len(reference.vectors), len(current.vectors)
        found = np.concatenate([_discrepancies(kernel, block, *sizes) for block in permutations.labels(*sizes)])
        pairs = sizes[0] * (sizes[0] - 1)
        spread = 1 - float(kernel[: sizes[0], : sizes[0]].sum()) / pairs
        effect = math.sqrt(max(float(found[0]), 0.0) / spread) if spread > 1e-6 else float(found[0] > 0)
        return Evidence(
            float(found[0]),
            permutations.p_value(found),
            effect,
            f"The means of the questions' embeddings are {effect:.3f} apart, in multiples of the spread of one window.",
        )


def _kernel(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of vectors of unit length; zero for a question with itself."""
    squares = np.maximum(2 - 2 * vectors @ vectors.T, 0)
    width = float(np.median(squares[np.triu_indices(len(vectors), 1)]))
    kernel = np.exp(-squares / (width if width > 1e-6 else 1))  # questions that are all the same have no median
    np.fill_diagonal(kernel, 0)
    return np.asarray(kernel, np.float32)


def _discrepancies(
    kernel: NDArray[np.float32], labels: NDArray[np.float32], reference: int, current: int
) -> NDArray[np.float64]:
    """Of each column of labels, by sums over the pairs of a window and across."""
    rows = (kernel @ labels).astype(np.float64)
    within_current = np.einsum("ij,ij->j", labels, rows)
    of_current = kernel.sum(axis=0, dtype=np.float64) @ labels
    across = of_current - within_current
    within_reference = kernel.sum(dtype=np.float64) - 2 * of_current + within_current
    return np.asarray(
        within_reference / (reference * (reference - 1))
        + within_current / (current * (current - 1))
        - 2 * across / (reference * current),
        np.float64,
    )


make = QuestionMmd
