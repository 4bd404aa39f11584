"""The laptop profile, installed once for the tests of this folder."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.cluster.kube import Namespace, new_namespace
from tests.cluster.laptop.profile import VALUES
from tests.cluster.release import Release


@pytest.fixture(scope="package")
def namespace() -> Iterator[Namespace]:
    with new_namespace("laptop") as namespace:
        yield namespace


@pytest.fixture(scope="package")
def release(namespace: Namespace) -> Release:
    """Installed by one command; prints how long it took to the first answer."""
    release = Release(namespace)
    started = time.monotonic()
    release.install(*VALUES)
    answer = release.ask()
    seconds = time.monotonic() - started
    assert answer["annotations"], answer
    print(f"\ninstalled and answered after {seconds:.0f} s")
    assert seconds < 180
    return release


@pytest.fixture(scope="package", autouse=True)
def issuer_log(release: Release) -> str:
    """The log of the job that made certificates and keys, before an upgrade removes the job."""
    return release.namespace.kubectl("logs", f"job/{release.name}-issuer-1")
