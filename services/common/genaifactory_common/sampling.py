"""The bounds of types.v1.Sampling: one table and one check, for every service that receives one."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from google.protobuf import struct_pb2

from genaifactory.types.v1 import types_pb2
from genaifactory_common.errors import InvalidArgument

MAX_STOPS = 4
MAX_STOP_CHARACTERS = 1_000
MAX_TOP_LOGPROBS = 20
MAX_TEMPLATE_KWARGS = 16
MAX_TEMPLATE_TEXT_CHARACTERS = 256

_KWARG = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
# Variables that the platform itself sets, and arguments of the function that renders the template.
_RESERVED_KWARGS = frozenset((
    "add_generation_prompt", "bos_token", "chat_template", "continue_final_message", "conversation", "documents",
    "eos_token", "max_length", "messages", "padding", "raise_exception", "return_assistant_tokens_mask",
    "return_dict", "return_tensors", "self", "strftime_now", "tokenize", "tokenizer_kwargs", "tools", "truncation",
))  # fmt: skip


@dataclass(frozen=True)
class Range:
    """The numbers that a field accepts."""

    least: float
    most: float
    above: bool = False
    """Whether `least` itself is excluded."""

    def __contains__(self, value: float) -> bool:  # of a NaN: False
        return value <= self.most and (value > self.least if self.above else value >= self.least)

    def __str__(self) -> str:
        return f"above {self.least:g} to {self.most:g}" if self.above else f"{self.least:g} to {self.most:g}"


RANGES = {
    "temperature": Range(0, 2),
    "top_p": Range(0, 1, above=True),
    "top_k": Range(1, 1_000_000),
    "min_p": Range(0, 1),
    "max_tokens": Range(1, 1_000_000),
    "frequency_penalty": Range(-2, 2),
    "presence_penalty": Range(-2, 2),
    "repetition_penalty": Range(0, 10, above=True),
    "n": Range(1, 16),
}
"""By field; each may be unset."""


def check(sampling: types_pb2.Sampling, prefix: str = "sampling.") -> None:
    """Raises InvalidArgument with the field, written with `prefix`, for what is out of range."""
    for name, allowed in RANGES.items():
        if sampling.HasField(name):  # type: ignore[arg-type]  # a name of the message
            value = getattr(sampling, name)
            if value not in allowed:
                raise _wrong(f"{prefix}{name}", f"is {value:g}; it must be {allowed}")
    if len(sampling.stop) > MAX_STOPS:
        raise _wrong(f"{prefix}stop", f"may hold at most {MAX_STOPS} texts; it holds {len(sampling.stop)}")
    for index, text in enumerate(sampling.stop):
        if not 1 <= len(text) <= MAX_STOP_CHARACTERS:
            raise _wrong(f"{prefix}stop[{index}]", f"must have 1 to {MAX_STOP_CHARACTERS} characters")
    if sampling.top_logprobs > MAX_TOP_LOGPROBS:
        raise _wrong(f"{prefix}top_logprobs", f"must be 0 to {MAX_TOP_LOGPROBS}")
    if sampling.top_logprobs and not sampling.logprobs:
        raise _wrong(f"{prefix}top_logprobs", f"needs '{prefix}logprobs' to be true")
    _check_template_kwargs(sampling.chat_template_kwargs, f"{prefix}chat_template_kwargs")


def template_kwargs(sampling: types_pb2.Sampling) -> dict[str, str | bool | float | int]:
    """The checked variables of the chat template; whole numbers as integers, since a Struct holds floats alone."""
    return {name: _scalar(value) for name, value in sampling.chat_template_kwargs.fields.items()}


def _check_template_kwargs(kwargs: struct_pb2.Struct, path: str) -> None:
    if len(kwargs.fields) > MAX_TEMPLATE_KWARGS:
        raise _wrong(path, f"may hold at most {MAX_TEMPLATE_KWARGS} names; it holds {len(kwargs.fields)}")
    for name, value in kwargs.fields.items():
        if not _KWARG.fullmatch(name):
            raise _wrong(path, "must have names of 1 to 64 letters, digits and '_', the first no digit")
        field = f"{path}.{name}"
        if name in _RESERVED_KWARGS:
            raise _wrong(field, "is set by the platform; leave it out")
        kind = value.WhichOneof("kind")
        if kind not in ("bool_value", "number_value", "string_value") or (
            kind == "number_value" and not math.isfinite(value.number_value)
        ):
            raise _wrong(field, "must be true, false, a number or a text")
        if len(value.string_value) > MAX_TEMPLATE_TEXT_CHARACTERS:
            raise _wrong(field, f"must have at most {MAX_TEMPLATE_TEXT_CHARACTERS} characters")


def _scalar(value: struct_pb2.Value) -> str | bool | float | int:
    if value.HasField("bool_value"):
        return value.bool_value
    if value.HasField("string_value"):
        return value.string_value
    return int(value.number_value) if value.number_value.is_integer() else value.number_value


def _wrong(field: str, what: str) -> InvalidArgument:
    return InvalidArgument(f"'{field}' {what}.", field=field)
