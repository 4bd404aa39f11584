"""Near-duplicates: texts that share most of their shingles.

Candidates come from MinHash with locality-sensitive hashing (Broder, "On the resemblance and containment of documents",
1997; Leskovec et al., "Mining of Massive Datasets", ch. 3); each pair is confirmed by the exact Jaccard similarity, so
that hashing can miss a pair but never makes one up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rensa import RMinHash, RMinHashLSH

from genaifactory_common import normalise

_SHINGLE_CHARACTERS = 5
# 32 bands of 4 rows: a pair of similarity 0.5 is a candidate with probability 0.87, one of 0.6 with 0.99.
_PERMUTATIONS, _BANDS = 128, 32
_SEED = 42
_BETWEEN_WORDS = re.compile(r"[\W_]+")


def shingles(text: str) -> frozenset[str]:
    """The runs of five characters of a text, whose case, punctuation and blanks count for nothing."""
    words = _BETWEEN_WORDS.sub(" ", normalise.normalise(text).text.casefold()).strip()
    if len(words) <= _SHINGLE_CHARACTERS:
        return frozenset([words])
    return frozenset(words[i : i + _SHINGLE_CHARACTERS] for i in range(len(words) - _SHINGLE_CHARACTERS + 1))


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """The Jaccard similarity, 0 to 1."""
    return len(one & other) / len(one | other)


def pairs(texts: Sequence[str], threshold: float) -> Iterator[tuple[int, int, float]]:
    """Pairs of positions (the later one first) whose texts are at least so similar, with their similarity.

    In the order of the texts. threshold: 0.5 to 1.
    """
    sets = [shingles(text) for text in texts]
    sketches = RMinHash.from_token_sets([sorted(each) for each in sets], num_perm=_PERMUTATIONS, seed=_SEED)
    index = RMinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS, num_bands=_BANDS)
    for later, sketch in enumerate(sketches):
        for earlier in sorted(index.query(sketch)):
            found = similarity(sets[later], sets[earlier])
            if found >= threshold:
                yield later, earlier, found
        index.insert(later, sketch)


class Groups:
    """Groups of positions that belong together, directly or through others (disjoint sets)."""

    def __init__(self, count: int) -> None:
        self._parents = list(range(count))

    def join(self, one: int, other: int) -> None:
        """Makes one group of two; its name is the earliest position in it."""
        first, second = sorted((self.of(one), self.of(other)))
        self._parents[second] = first

    def of(self, position: int) -> int:
        """The earliest position of the group."""
        while (parent := self._parents[position]) != position:
            self._parents[position] = position = self._parents[parent]
        return position
