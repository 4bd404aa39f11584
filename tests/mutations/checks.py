"""Checks of the table that need no test run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.mutations.table import Mutation

ROOT = Path(__file__).parents[2]
BELOW = "tests/unit/"
"""Where the named tests are."""


def problems(mutation: Mutation) -> Iterator[str]:
    """Problems of the mutation, each as a sentence."""
    path = ROOT / mutation.file
    count = path.read_text().count(mutation.text) if path.is_file() else None
    if count is None:
        yield f"{mutation.file} does not exist; the table names it for: {mutation.why}"
    elif count != 1:
        yield f"{mutation.file} holds {count} times, not once: {mutation.text!r}"
    if mutation.text == mutation.replacement:
        yield f"{mutation.file}: the replacement changes nothing: {mutation.text!r}"
    if not mutation.tests:
        yield f"{mutation.file}: no test is named for: {mutation.why}"
    for test in mutation.tests:
        file, *_, name = test.split("::")
        source = ROOT / BELOW / file
        if ".." in source.parts:
            yield f"{test} is not below {BELOW}, where the tests are that run; the table names it for: {mutation.why}"
            continue
        if not source.is_file() or not re.search(
            rf"^ *(async )?def {re.escape(name)}\(", source.read_text(), re.MULTILINE
        ):
            yield f"{BELOW}{test} does not exist; the table names it for: {mutation.why}"
