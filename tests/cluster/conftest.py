"""A namespace for each file or folder of tests, on the cluster that KUBECONFIG names.

Two processes share the work: a file, or the files of a folder, which share an installation, run in one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.kube import Namespace, new_namespace

HERE = Path(__file__).parent


# Before xdist reads the groups.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Says which tests must run in one process, for `--dist loadgroup`."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.xdist_group(item.path.relative_to(HERE).parts[0]))


@pytest.fixture(scope="module")
def namespace(request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """A namespace of the file's own."""
    with new_namespace(request.module.__name__.rpartition(".")[2].replace("_", "-")) as namespace:
        yield namespace
