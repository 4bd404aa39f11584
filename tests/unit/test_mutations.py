"""The table of mutations fits the code as it is now; `make test-mutations` applies it."""

from __future__ import annotations

import pytest

from tests.mutations import checks
from tests.mutations.table import MUTATIONS, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.why)
def test_a_line_changes_one_place_and_names_tests_that_exist(mutation: Mutation) -> None:
    assert list(checks.problems(mutation)) == []


FITS = MUTATIONS[0]


@pytest.mark.parametrize(
    ("mutation", "problem"),
    [
        (FITS._replace(file="services/none.py"), "services/none.py does not exist"),
        (FITS._replace(text="import asyncio as never\n"), "holds 0 times, not once"),
        (FITS._replace(text="\n"), "times, not once"),
        (FITS._replace(replacement=FITS.text), "the replacement changes nothing"),
        (FITS._replace(tests=()), "no test is named"),
        (FITS._replace(tests=("gateway/test_administration.py::test_none",)), "test_none does not exist"),
        (FITS._replace(tests=("gateway/test_none.py::test_a",)), "test_none.py::test_a does not exist"),
        (FITS._replace(tests=("../unit/test_mutations.py::test_a_line_that_does_not_fit_is_reported",)), "not below"),
    ],
    ids=[
        "file",
        "text gone",
        "text twice",
        "nothing changed",
        "no test",
        "test gone",
        "test file gone",
        "test elsewhere",
    ],
)
def test_a_line_that_does_not_fit_is_reported(mutation: Mutation, problem: str) -> None:
    (found,) = checks.problems(mutation)
    assert problem in found
