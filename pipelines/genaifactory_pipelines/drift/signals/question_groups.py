"""Whether a group of similar questions has grown or shrunk: a new topic, or one that nobody asks about any more.

A scan statistic over the clusters of both windows' questions (Kulldorff, "A spatial scan statistic", 1997, with the
tree of a clustering for the zones). A tenth of the questions on one new topic moves the mean of all little, which the
other signals compare, and fills one group.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from genaifactory_pipelines.drift import comparisons, effects, permutations
from genaifactory_pipelines.drift.protocol import Evidence, Window, require_enough

_LEAST_SHARE = 0.02
_LEAST_MEMBERS = 10
_SHOWN = 5


class QuestionGroups:
    """The largest standardised difference, over all groups, between a group's size in the two windows."""

    name = "question_groups"
    group: Literal["inputs"] = "inputs"
    effect = effects.COHENS_H

    def measure(self, reference: Window, current: Window) -> Evidence:
        """See Signal."""
        require_enough("questions", reference.asked, current.asked)
        vectors = np.concatenate([reference.vectors, current.vectors])
        sizes = len(reference.vectors), len(current.vectors)
        groups = _groups(vectors)
        if not len(groups):
            return Evidence(0.0, 1.0, 0.0, "The questions form no groups.")
        blocks = [np.abs(_scores(groups, block)) for block in permutations.labels(*sizes)]
        found = np.concatenate([block.max(axis=0) for block in blocks])
        changed = groups[int(np.argmax(blocks[0][:, 0]))]
        before, now = (float(part.mean()) for part in np.split(changed, [sizes[0]]))
        nearest = np.argsort(-(current.vectors @ (changed @ vectors)))
        members = [position for position in nearest if changed[sizes[0] + position]]
        return Evidence(
            float(found[0]),
            permutations.p_value(found),
            comparisons.cohens_h(before, now),
            f"A group of similar questions was {before:.1%} and is {now:.1%} of all; no other has changed more.",
            typical=[current.asked[position].request_id for position in members[:_SHOWN]],
        )


def _groups(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The clusters with 2 % to half of the questions; a row for each, with 1 for its members. Average linkage.

    A question that was asked often is one leaf of the tree: of equal ones, the tree would make groups by their order,
    which is that of the windows.
    """
    from scipy.cluster import hierarchy
    from scipy.spatial import distance

    leaves, leaf_of = np.unique(vectors, axis=0, return_inverse=True)
    members = [np.flatnonzero(leaf_of == leaf) for leaf in range(len(leaves))]
    if len(leaves) > 1:
        distances = np.sqrt(np.maximum(2 - 2 * leaves @ leaves.T, 0))
        np.fill_diagonal(distances, 0)
        tree = hierarchy.linkage(distance.squareform(distances, checks=False), "average")
        for left, right, _, _ in tree:
            members.append(np.concatenate([members[int(left)], members[int(right)]]))
    count = len(vectors)
    least = max(_LEAST_MEMBERS, _LEAST_SHARE * count)
    groups = [np.bincount(each, minlength=count) for each in members if least <= len(each) <= count / 2]
    return np.array(groups, np.float32).reshape(-1, count)


def _scores(groups: NDArray[np.float32], labels: NDArray[np.float32]) -> NDArray[np.float64]:
    """By how many standard deviations of the hypergeometric distribution each group's current members are too many."""
    count, share = len(labels), float(labels[:, 0].mean())
    sizes = groups.sum(axis=1, keepdims=True, dtype=np.float64)
    deviation = np.sqrt(sizes * share * (1 - share) * (count - sizes) / (count - 1))
    return np.asarray((groups @ labels - sizes * share) / deviation, np.float64)


make = QuestionGroups
