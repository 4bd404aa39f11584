"""Whether a classifier can tell from a question's embedding of which window it is.

Lopez-Paz and Oquab, "Revisiting Classifier Two-Sample Tests", ICLR 2017.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from genaifactory_pipelines.drift import effects, permutations
from genaifactory_pipelines.drift.protocol import Evidence, Window, require_enough

_FOLDS = 5
_RIDGE = 10.0
_SEED = 20_260


class QuestionClassifier:
    """The AUC of a linear classifier on questions that it was not trained on.

    Ridge regression of the window on the embedding, which is Fisher's discriminant with shrinkage, and not logistic
    regression: its predictions are linear in the labels, so that all permutations are one product of matrices.
    """

    name = "question_classifier"
    group: Literal["inputs"] = "inputs"
    effect = effects.AUC

    def measure(self, reference: Window, current: Window) -> Evidence:
        """See Signal."""
        require_enough("questions", reference.asked, current.asked)
        vectors = np.concatenate([reference.vectors, current.vectors])
        order = np.random.default_rng(_SEED).permutation(len(vectors))
        predict = _predictions(vectors[order])
        labels = (block[order] for block in permutations.labels(len(reference.vectors), len(current.vectors)))
        found = np.concatenate([auc(predict @ (block - block.mean(axis=0)), block) for block in labels])
        return Evidence(
            float(found[0]),
            permutations.p_value(found),
            float(found[0]),
            f"A classifier separates the questions of the windows with AUC {found[0]:.2f}; 0.50 is chance.",
        )


def auc(scores: NDArray[np.float32], labels: NDArray[np.float32]) -> NDArray[np.float64]:
    """The area under the ROC curve of each column: Mann and Whitney's U by the number of pairs.

    Equal scores, of a question that was asked twice, rank in an order that must not depend on the labels.
    """
    scores, labels = np.ascontiguousarray(scores.T), np.ascontiguousarray(labels.T)  # rows are sorted five times faster
    ranked = np.take_along_axis(labels, np.argsort(scores, axis=1), axis=1)
    positive = labels.sum(axis=1, dtype=np.float64)
    pairs = positive * (labels.shape[1] - positive)
    over = ranked.astype(np.float64) @ np.arange(1, labels.shape[1] + 1) - positive * (positive + 1) / 2
    return np.asarray(over / pairs, np.float64)


def _predictions(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The matrix that turns labels into predictions, each by the classifier of the other folds (kernel ridge).

    vectors: in an order drawn by lot, since folds are every fifth of them.
    """
    centred = vectors - vectors.mean(axis=0)
    kernel = centred @ centred.T
    folds = np.arange(len(vectors)) % _FOLDS
    predict: NDArray[np.float32] = np.zeros_like(kernel)
    for fold in range(_FOLDS):
        held, train = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        solved = np.linalg.solve(
            kernel[np.ix_(train, train)] + _RIDGE * np.eye(len(train), dtype=np.float32), kernel[np.ix_(train, held)]
        )
        predict[np.ix_(held, train)] = solved.T
    return predict


make = QuestionClassifier
