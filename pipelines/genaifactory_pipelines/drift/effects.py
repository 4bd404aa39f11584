"""How large a difference must be to matter: in huge windows, differences of no importance are significant too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effect:
    """A measure of difference, and the least of it that is drift."""

    name: str
    least: float
    none: float = 0.0
    """Of windows that do not differ."""

    def multiples(self, value: float) -> float:
        """How large a difference is, in multiples of the least that is drift; 0 or more."""
        return max(0.0, value - self.none) / (self.least - self.none)


PSI = Effect("PSI", 0.1)
"""Population stability index: below 0.1 little has changed, above 0.25 much (Siddiqi, "Credit Risk Scorecards", 2006,
ch. 8)."""

COHENS_H = Effect("Cohen's h", 0.2)
"""Difference of two shares, 2 asin(sqrt(p)) - 2 asin(sqrt(q)): 0.2 is a small effect (Cohen, "Statistical Power
Analysis for the Behavioral Sciences", 1988, ch. 6). A rise from 10 % to 17 % is one, and from 1 % to 4 %."""

AUC = Effect("AUC", 0.55, none=0.5)
"""Of a classifier that separates the windows; 0.5 is chance. 0.55 is the threshold of Evidently's text drift."""

MMD = Effect("MMD", 0.03)
"""Distance of the windows' means in the kernel's space, in multiples of the spread of one window there. Our own: with
a tenth of the questions in another language it is 0.07 (tests/bench/drift.py)."""
