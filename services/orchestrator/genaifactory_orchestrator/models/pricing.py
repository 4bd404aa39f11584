"""Cost of tokens: exact decimal arithmetic, in millionths of a currency."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from genaifactory_common import specs
from genaifactory_orchestrator.models.backend import Usage


@dataclass(frozen=True)
class Cost:
    """An amount of money. `micros` is exact; round it once, at the end."""

    micros: Decimal = Decimal(0)
    currency: str = "USD"

    @property
    def rounded_micros(self) -> int:
        """Rounded half up."""
        return int(self.micros.to_integral_value(ROUND_HALF_UP))


def cost(price: specs.Price, usage: Usage) -> Cost:
    """The cost of some tokens. Cached prompt tokens have their own price if there is one."""
    cached = min(usage.cached_prompt_tokens, usage.prompt_tokens)
    cached_price = price.cached_input_per_million_tokens
    if cached_price is None:
        cached_price = price.input_per_million_tokens
    # A price per million tokens is the price of one token in millionths.
    micros = (
        (usage.prompt_tokens - cached) * _exact(price.input_per_million_tokens)
        + cached * _exact(cached_price)
        + usage.completion_tokens * _exact(price.output_per_million_tokens)
    )
    return Cost(micros, price.currency)


def total(costs: Iterable[Cost]) -> Cost:
    """The sum. All are in one currency: factory.yaml allows only one for each route."""
    costs = list(costs)
    return Cost(sum((c.micros for c in costs), Decimal(0)), costs[0].currency) if costs else Cost()


def _exact(price: float) -> Decimal:
    # repr returns the shortest text of the same float: the number as it was written.
    return Decimal(repr(price))
