"""A namespace for each file or folder of tests, on the cluster that KUBECONFIG names, and who runs them when.

Two processes run a file each, or a folder whose files share an installation.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from tests.cluster.kube import Namespace, new_namespace

HERE = Path(__file__).parent
# So that the processes end together: the longest file does not begin last, and the one at whose end the node restarts,
# which waits for all others, does.
ORDER = (
    "pipelines",
    "test_traffic.py",
    "laptop",
    "test_kserve.py",
    "images",
    "test_charts.py",
    "test_upgrade.py",
)


class ByInstallation(LoadScopeScheduling):  # type: ignore[misc]
    """Gives a process whole files or folders, in their order."""

    def _split_scope(self, nodeid: str) -> str:
        return Path(nodeid.partition("::")[0]).relative_to("tests/cluster").parts[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByInstallation:
    """Replaces the scheduler of any `--dist`."""
    config.option.loadscopereorder = False
    return ByInstallation(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts by ORDER; a file that it does not name comes before the last."""
    place = {name: number for number, name in enumerate(ORDER)}

    def of(item: pytest.Item) -> int:
        inside = item.path.relative_to(HERE).parts if item.path.is_relative_to(HERE) else ("",)
        return place.get(inside[0], len(ORDER) - 2)

    items.sort(key=of)


@pytest.fixture(scope="module")
def namespace(request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """A namespace of the file's own."""
    with new_namespace(request.module.__name__.rpartition(".")[2].replace("_", "-")) as namespace:
        yield namespace
