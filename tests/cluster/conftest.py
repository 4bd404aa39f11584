"""A namespace for each file or folder of tests, on the cluster that KUBECONFIG names.

With PROCESSES=2, a file, or the files of a folder, which share an installation, run in one of two processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from tests.cluster.kube import Namespace, new_namespace


class ByInstallation(LoadScopeScheduling):  # type: ignore[misc]
    """Gives a process whole files or folders, in their order: the last restarts the node when the others are done."""

    def _split_scope(self, nodeid: str) -> str:
        return Path(nodeid.partition("::")[0]).relative_to("tests/cluster").parts[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByInstallation:
    """Replaces the scheduler of any `--dist`."""
    config.option.loadscopereorder = False
    return ByInstallation(config, log)


@pytest.fixture(scope="module")
def namespace(request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """A namespace of the file's own."""
    with new_namespace(request.module.__name__.rpartition(".")[2].replace("_", "-")) as namespace:
        yield namespace
