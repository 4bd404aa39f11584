"""Parses the metrics of a PromQL query, and the labels that select and group them."""

from __future__ import annotations

import re
from dataclasses import dataclass

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_RANGE = re.compile(r"\[[^\]]*\]")
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\{([^{}]*)\}")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_NAME = re.compile(r"(?<![\w:.])[a-zA-Z_:][\w:]*(?!\s*\(|[\w:])")
_LABEL = re.compile(r"\w+")
_WORDS = {"and", "or", "unless", "offset", "bool", "by", "on"}


@dataclass(frozen=True)
class Names:
    """The metrics and labels of a query."""

    matched: dict[str, set[str]]
    """Metrics, each with the labels that select its series."""
    grouped: set[str]
    """Labels that aggregations keep or that join two sides."""


def names(query: str) -> Names:
    """Parses a query."""
    rest = _RANGE.sub("", _STRING.sub('""', query))
    matched: dict[str, set[str]] = {}
    for name, matchers in _SELECTOR.findall(rest):
        labels = matched.setdefault(name, set())
        for matcher in filter(str.strip, matchers.split(",")):
            label = _LABEL.match(matcher.strip())
            assert label is not None, query
            labels.add(label[0])
    rest = _SELECTOR.sub(r"\1", rest)
    grouped = {label for labels in _GROUPING.findall(rest) for label in _LABEL.findall(labels)}
    for name in _NAME.findall(_GROUPING.sub("", rest)):
        if name not in _WORDS:
            matched.setdefault(name, set())
    return Names(matched, grouped)
