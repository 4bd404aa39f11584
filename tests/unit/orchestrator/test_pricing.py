"""Cost of tokens."""

from __future__ import annotations

from decimal import Decimal

import pytest

from genaifactory_common import specs
from genaifactory_orchestrator.models.backend import Usage
from genaifactory_orchestrator.models.pricing import Cost, cost, total

PRICE = specs.Price(
    input_per_million_tokens=0.15, output_per_million_tokens=0.6, cached_input_per_million_tokens=0.075, currency="EUR"
)


@pytest.mark.parametrize(
    ("usage", "micros"),
    [
        (Usage(), 0),
        (Usage(1_000_000, 0), 150_000),
        (Usage(0, 1_000_000), 600_000),
        (Usage(1000, 0, cached_prompt_tokens=1000), 75),
        (Usage(1000, 100, cached_prompt_tokens=400), 180),
        (Usage(10, 0), 2),  # 1.5 is rounded up
        (Usage(3, 0), 0),  # 0.45 is rounded down
        (Usage(100, 0, cached_prompt_tokens=500), 8),  # at most all of them can be cached
    ],
)
def test_each_kind_of_tokens_has_its_price_and_the_cost_is_rounded_half_up(usage: Usage, micros: int) -> None:
    amount = cost(PRICE, usage)
    assert amount.rounded_micros == micros
    assert amount.currency == "EUR"


def test_cached_tokens_cost_as_much_as_others_unless_a_price_is_set() -> None:
    price = specs.Price(input_per_million_tokens=3.0)
    assert cost(price, Usage(10, 0, cached_prompt_tokens=10)).micros == 30


def test_a_sum_is_exact_where_floats_are_not() -> None:
    price = specs.Price(input_per_million_tokens=0.1)
    assert total([cost(price, Usage(1, 0))] * 30).micros == Decimal(3)


def test_rounding_happens_once_after_the_sum() -> None:
    price = specs.Price(input_per_million_tokens=0.4)
    assert total([cost(price, Usage(1, 0))] * 5).rounded_micros == 2


def test_the_total_of_no_costs_is_zero() -> None:
    assert total([]) == Cost()
