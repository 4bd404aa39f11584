"""Comparisons of two windows by one value of each interaction: a number, a name, or yes and no."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from genaifactory_pipelines.drift.protocol import Evidence, require_enough

_BINS = 10
# The chi-squared distribution is no approximation below it (Cochran, "Some methods for strengthening the common
# chi-squared tests", 1954).
_LEAST_EXPECTED = 5
_OTHERS = "others"


def numbers(what: str, reference: Sequence[float], current: Sequence[float]) -> Evidence:
    """Kolmogorov and Smirnov's test of two samples; the effect is the PSI over the deciles of the reference.

    what: the numbers, in the plural. Raises TooFew.
    """
    from scipy import stats

    require_enough(what, reference, current)
    found = stats.ks_2samp(reference, current, method="asymp")
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, _BINS + 1)[1:-1]))
    binned = [np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1) for values in (reference, current)]
    middle, now = np.median(reference), np.median(current)
    return Evidence(
        float(found.statistic),
        float(found.pvalue),
        psi(*binned),
        f"The median of the {what} was {middle:,.4g} and is {now:,.4g}; their distributions are "
        f"{found.statistic:.0%} apart (Kolmogorov-Smirnov).",
    )


def names(what: str, reference: Sequence[str], current: Sequence[str]) -> Evidence:
    """The chi-squared test of a table of counts; the effect is its PSI. Rare names are counted together.

    what: the names, in the plural. Raises TooFew.
    """
    from scipy import stats

    require_enough(what, reference, current)
    table, kept = _table(Counter(reference), Counter(current))
    found = stats.chi2_contingency(table)
    before, now = table / table.sum(axis=1, keepdims=True)
    most = int(np.argmax(np.abs(now - before)))
    return Evidence(
        float(found.statistic),
        float(found.pvalue),
        psi(*table),
        f"Of the {what}, '{kept[most]}' was {before[most]:.1%} and is {now[most]:.1%}; no share has changed more.",
    )


def shares(what: str, which: str, reference: Sequence[bool], current: Sequence[bool]) -> Evidence:
    """Fisher's exact test of two proportions, which holds for rare events too; the effect is Cohen's h.

    what, which: "answers", "that are refusals". Raises TooFew.
    """
    from scipy import stats

    require_enough(what, reference, current)
    counts = [[sum(values), len(values) - sum(values)] for values in (reference, current)]
    before, now = (sum(values) / len(values) for values in (reference, current))
    return Evidence(
        now - before,
        float(stats.fisher_exact(counts).pvalue),
        cohens_h(before, now),
        f"The share of {what} {which} was {before:.1%} and is {now:.1%}.",
    )


def psi(reference: NDArray[np.integer], current: NDArray[np.integer]) -> float:
    """The population stability index of two rows of counts; half a count is added to each, so that none is zero."""
    first, second = ((counts + 0.5) / (counts + 0.5).sum() for counts in (reference, current))
    return float(np.sum((second - first) * np.log(second / first)))


def cohens_h(before: float, now: float) -> float:
    """The size of the difference of two shares, 0 to pi."""
    return abs(2 * math.asin(math.sqrt(now)) - 2 * math.asin(math.sqrt(before)))


def _table(reference: Counter[str], current: Counter[str]) -> tuple[NDArray[np.int64], list[str]]:
    """A row of counts for each window, a column for each name that is not rare, and the columns' names."""
    both = reference + current
    needed = _LEAST_EXPECTED * both.total() / min(reference.total(), current.total())
    kept = [name for name, count in both.most_common() if count >= needed]
    rare = both.total() - sum(both[name] for name in kept)
    columns = [[counts[name] for name in kept] for counts in (reference, current)]
    if rare >= needed or not kept:
        kept.append(_OTHERS)
        columns = [[*row, counts.total() - sum(row)] for row, counts in zip(columns, (reference, current), strict=True)]
    elif rare:  # too few for a column of their own, and the least name is nearest to them
        for row, counts in zip(columns, (reference, current), strict=True):
            row[-1] += counts.total() - sum(row)
    return np.array(columns, np.int64), kept
