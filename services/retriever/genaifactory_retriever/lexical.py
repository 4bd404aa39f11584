"""BM25 as sparse vectors: a passage's weights, a query's weights by the tenant's own statistics, and term coverage.

score(q, p) = sum over shared terms t of weight(q, t) * idf(t) * tf * (k1 + 1) / (tf + k1 * (1 - b + b * length / avg))
(Robertson and Zaragoza 2009). The passage's half is stored, the query's half contains idf, so that a store needs no
statistics of its own and a tenant's scores do not depend on another tenant's documents.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise

from genaifactory_retriever import analysis
from genaifactory_retriever.analysis import Word
from genaifactory_retriever.vectors.protocol import Sparse

K1 = 1.2
B = 0.75
AVERAGE_WORDS = 120
"""Of a passage. A constant: passages are cut to one size, so the true average hardly changes."""

# Tuned on one half of tests/bench/retrieval.py's queries.
_EXACT_WEIGHT = 1.0
_FOLDED_WEIGHT = 0.3
"""Weight of the form without diacritics of a query's word with diacritics."""
_PAIR_WEIGHT = 0.2
_STOP_WEIGHT = 0.3
_MAX_QUERY_TERMS = 512

# Coverage of a word with diacritics by its form without.
_FOLDED_COVERAGE = 0.5
_PAIR_COVERAGE = 0.5

# Texts of passages whose terms are cached, since often the same ones are found. About 20 KB each.
_CACHED_TEXTS = 512


def passage(context: Sequence[str], text: str) -> tuple[Counter[int], Sparse]:
    """Term ids with their counts of a passage and the titles above it, and the stored half of BM25."""
    counts: Counter[int] = Counter()
    length = 0
    for part in (*context, text):
        words = analysis.words(part)
        counts.update(analysis.terms(words))
        length += len(words)
    norm = K1 * (1 - B + B * length / AVERAGE_WORDS)
    indices = sorted(counts)
    return counts, Sparse(indices, [counts[i] * (K1 + 1) / (counts[i] + norm) for i in indices])


def query_weights(words: Sequence[Word]) -> dict[int, float]:
    """Term ids of a query with their weights before idf."""
    weights: defaultdict[int, float] = defaultdict(float)
    factors = [_STOP_WEIGHT if analysis.is_stop(word) else 1.0 for word in words]
    for word, factor in zip(words, factors, strict=True):
        if word.marked:
            weights[analysis.exact_id(word)] += _EXACT_WEIGHT * factor
            weights[analysis.folded_id(word)] += _FOLDED_WEIGHT * factor
        else:
            for term in (analysis.folded_id(word), *analysis.other_form_ids(word)):
                weights[term] += factor
    for pair, factor in zip(analysis.pair_ids(list(words)), map(min, factors, factors[1:]), strict=True):
        weights[pair] += _PAIR_WEIGHT * factor
    heaviest = sorted(weights.items(), key=lambda item: (-item[1], item[0]))
    return dict(heaviest[:_MAX_QUERY_TERMS])


def query_vector(weights: Mapping[int, float], frequencies: Mapping[int, int], passages: int) -> Sparse:
    """The query's half of BM25; terms of no passage are left out.

    frequencies: term id -> passages that contain it; passages: of the tenant in this index.
    """
    indices = sorted(term for term in weights if frequencies.get(term))
    return Sparse(indices, [weights[term] * idf(frequencies[term], passages) for term in indices])


def idf(frequency: int, passages: int) -> float:
    """Inverse document frequency of a term, always above 0."""
    passages = max(passages, frequency)
    return math.log(1 + (passages - frequency + 0.5) / (frequency + 0.5))


def coverage(query: Sequence[Word], texts: Sequence[str], frequencies: Mapping[int, int], passages: int) -> float:
    """The largest share of the query's informative terms that one of the texts contains, weighted by idf; 0 to 1.

    Neighbouring pairs count in a Vietnamese query: its single syllables are in almost any text. A query without an
    informative term has a coverage of 1 if there is any text.
    """
    informative = [word for word in query if not analysis.is_stop(word)]
    if not texts:
        return 0.0
    if not informative:
        return 1.0
    wanted: dict[int, tuple[float, Callable[[frozenset[int]], float]]] = {}
    for word in informative:
        folded, exact = analysis.folded_id(word), analysis.exact_id(word)
        forms = (folded, *analysis.other_form_ids(word))
        wanted[exact if word.marked else folded] = (
            idf(sum(frequencies.get(form, 0) for form in forms), passages),
            _share_of(exact, weaker=folded) if word.marked else _share_of(*forms),
        )
    if any(word.marked for word in informative):
        for pair in _informative_pairs(query):
            wanted[pair] = (_PAIR_COVERAGE * idf(frequencies.get(pair, 0), passages), _share_of(pair))
    total = sum(weight for weight, _ in wanted.values())
    return max(sum(weight * share(terms) for weight, share in wanted.values()) for terms in map(_terms, texts)) / total


@lru_cache(maxsize=_CACHED_TEXTS)
def _terms(text: str) -> frozenset[int]:
    return frozenset(analysis.terms(analysis.words(text)))


def _share_of(*same: int, weaker: int | None = None) -> Callable[[frozenset[int]], float]:
    """A function of a text's terms: 1 when they contain one of `same`, less for `weaker` alone, else 0."""

    def share(terms: frozenset[int]) -> float:
        if not terms.isdisjoint(same):
            return 1.0
        return _FOLDED_COVERAGE if weaker in terms else 0.0

    return share


def _informative_pairs(query: Sequence[Word]) -> list[int]:
    neighbours = pairwise(query)
    return [
        pair
        for pair, (a, b) in zip(analysis.pair_ids(list(query)), neighbours, strict=True)
        if not analysis.is_stop(a) and not analysis.is_stop(b)
    ]
