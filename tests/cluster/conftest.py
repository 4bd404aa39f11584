"""A namespace for each file, or folder of files with one installation, on the cluster that KUBECONFIG names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.kube import Namespace, new_namespace


@pytest.fixture(scope="module")
def namespace(request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """A namespace of the file's own."""
    with new_namespace(request.module.__name__.rpartition(".")[2].replace("_", "-")) as namespace:
        yield namespace
