"""The number of items that a request asks for: bounded, with a default for 0."""

from __future__ import annotations

import pytest

from genaifactory_common import bounds
from genaifactory_common.errors import InvalidArgument


def test_zero_is_the_default_and_the_bound_is_allowed() -> None:
    assert [bounds.wanted(value, "page_size", default=50, most=500) for value in (0, 1, 500)] == [50, 1, 500]


def test_more_than_the_bound_is_an_error_with_the_field() -> None:
    with pytest.raises(InvalidArgument, match="page_size must be 1 to 500, or 0 for 50") as refused:
        bounds.wanted(501, "page_size", default=50, most=500)
    assert refused.value.field == "page_size"
