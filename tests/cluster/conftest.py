"""A namespace of its own for each file, on the cluster that KUBECONFIG names."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from tests.cluster.kube import Namespace


@pytest.fixture(scope="module")
def namespace(request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """Admits only restricted pods; gone with the module."""
    if "KUBECONFIG" not in os.environ:
        pytest.skip("KUBECONFIG is not set: these tests need a Kubernetes cluster with KServe in Standard mode")
    found = Namespace(f"{request.module.__name__.rpartition('.')[2].replace('_', '-')}-{uuid.uuid4().hex[:6]}")
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    found.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": found.name, "labels": restricted}})
    yield found
    found.kubectl("delete", "namespace", found.name, "--wait=false")
