"""The bounds of sampling for every service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from genaifactory.types.v1 import types_pb2
from genaifactory_common import sampling
from genaifactory_common.errors import InvalidArgument
from genaifactory_common.testing import struct

NAN, INFINITY = float("nan"), float("inf")


def made(fields: Mapping[str, Any]) -> types_pb2.Sampling:
    """Sampling with these fields, which may have any type."""
    return types_pb2.Sampling(**fields)


def test_every_number_of_the_contract_has_its_range() -> None:
    optional = {field.name for field in types_pb2.Sampling.DESCRIPTOR.fields if field.containing_oneof is not None}
    assert optional == sampling.RANGES.keys() | {"seed"}  # any seed is valid


@pytest.mark.parametrize("name", sampling.RANGES)
def test_a_range_includes_its_ends_and_nothing_beyond(name: str) -> None:
    allowed = sampling.RANGES[name]
    whole = types_pb2.Sampling.DESCRIPTOR.fields_by_name[name].type in (13, 4)
    step = 1 if whole else 0.001
    for value in (allowed.least + step if allowed.above else allowed.least, allowed.most):
        sampling.check(made({name: int(value) if whole else value}))
    wrong = [allowed.least if allowed.above else allowed.least - step, allowed.most + step]
    for value in wrong if whole else [*wrong, NAN, INFINITY, -INFINITY]:
        with pytest.raises(InvalidArgument) as caught:
            sampling.check(made({name: int(value) if whole else value}))
        assert caught.value.field == f"sampling.{name}"
        assert str(allowed) in caught.value.message


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": ["a" * 1001]}, "stop[0]"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"chat_template_kwargs": {f"a{i}": 1 for i in range(17)}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a-b": 1}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"": 1}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": None}}, "chat_template_kwargs.a"),
        ({"chat_template_kwargs": {"a": [1]}}, "chat_template_kwargs.a"),
        ({"chat_template_kwargs": {"a": {"b": 1}}}, "chat_template_kwargs.a"),
        ({"chat_template_kwargs": {"a": NAN}}, "chat_template_kwargs.a"),
        ({"chat_template_kwargs": {"a": "x" * 257}}, "chat_template_kwargs.a"),
        ({"chat_template_kwargs": {"messages": "x"}}, "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": {"add_generation_prompt": False}}, "chat_template_kwargs.add_generation_prompt"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs.chat_template"),
    ],
    ids=str,
)
@pytest.mark.parametrize("prefix", ["", "sampling."])
def test_the_error_names_the_wrong_field(fields: dict[str, Any], field: str, prefix: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        sampling.check(made(fields), prefix)
    assert caught.value.field == f"{prefix}{field}"
    assert f"'{prefix}{field}'" in caught.value.message


def test_valid_fields_are_accepted() -> None:
    given = {"enable_thinking": False, "budget": 512, "share": 0.5, "tone": "x" * 256}
    wanted = types_pb2.Sampling(stop=["a"] * 4, logprobs=True, top_logprobs=20, chat_template_kwargs=struct(given))
    sampling.check(wanted)
    assert sampling.template_kwargs(wanted) == given
    assert type(sampling.template_kwargs(wanted)["budget"]) is int
