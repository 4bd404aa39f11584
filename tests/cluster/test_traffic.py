"""The production profile under steady load: nobody notices an update, a lost pod, another number of pods or a database
that is away.

Needs the platform's images and test-postgres on the cluster (`make images`).
"""

from __future__ import annotations

import functools
import itertools
import random
import time
import urllib.request
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.kube import Namespace
from tests.cluster.release import CHART, SERVICES, Load, Release
from tests.full import FULL

VALUES = (
    "--values",
    str(CHART / "profiles" / "production.yaml"),
    "--values",
    str(Path(__file__).with_name("values-production.yaml")),
)
# Each service at least once.
UPDATES = 20 if FULL else 6
DELETIONS = 20 if FULL else 6
# For which each pod must have its share.
SHARE_SECONDS = 60 if FULL else 20
SCALED = ("gateway", "safety", "orchestrator", "modelserver", "monitor")

pytestmark = [pytest.mark.timeout(1500), pytest.mark.allow_blocking]


@pytest.fixture(scope="module")
def release(namespace: Namespace) -> Release:
    release = Release(namespace)
    release.install(*VALUES)
    return release


def assert_none_failed(load: Load) -> None:
    """Not one request, and the load did not stand still."""
    summary = load.summary()
    print(f"\n{summary}")
    assert not load.failures(), load.failures()[:5]
    assert summary["answered"] > 100


def assert_all_on_record(release: Release, load: Load) -> None:
    """Every answered request is on record, exactly once."""
    answered = load.ids()

    def recorded() -> bool:
        return not set(answered) - {record["request_id"] for record in release.records()}

    release.namespace.wait(recorded, 60, f"{len(answered)} answers on record", every_seconds=3)
    ids = [record["request_id"] for record in release.records()]
    assert len(ids) == len(set(ids))


def settled(release: Release, *services: str) -> bool:
    """Whether the workloads have all their pods, of the newest version, and none beyond."""
    for found in release.workloads(*services):
        wanted, status = found["spec"]["replicas"], found["status"]
        if status.get("observedGeneration", 0) < found["metadata"]["generation"]:
            return False
        if not (
            wanted == status.get("readyReplicas", 0) == status.get("updatedReplicas", 0) == status.get("replicas", 0)
        ):
            return False
    return True


def test_helm_test_asks_and_is_answered(release: Release) -> None:
    assert "Succeeded" in release.helm("test", "--timeout", "2m")


def test_rolling_updates_fail_no_request(release: Release) -> None:
    with release.load() as load:
        # Two at a time, as an upgrade of several services does.
        services = itertools.cycle(SERVICES)
        for _ in range(UPDATES // 2):
            pair = (next(services), next(services))
            release.namespace.kubectl("rollout", "restart", *release.names(*pair))
            release.namespace.wait(functools.partial(settled, release, *pair), 180, f"{pair} updated")
        time.sleep(5)
        assert_none_failed(load)
        assert_all_on_record(release, load)


def test_deleted_pods_fail_no_request(release: Release) -> None:
    chance = random.Random(20)
    with release.load() as load:
        # Two at a time, of different services.
        for _ in range(DELETIONS // 2):
            every = release.pods_by_service()
            running = {service: every[service] for service in chance.sample(SERVICES, 2)}
            pods = [chance.choice(sorted(found)) for found in running.values()]
            release.namespace.kubectl("delete", "pod", *pods, "--wait=false")
            # Another pod may have the name of the one that is gone.
            gone = {uid(found[pod]) for found, pod in zip(running.values(), pods, strict=True)}
            release.namespace.wait(functools.partial(whole_without, release, gone), 180, f"whole again without {pods}")
        time.sleep(5)
        assert_none_failed(load)
        assert_all_on_record(release, load)


def whole_without(release: Release, gone: AbstractSet[str]) -> bool:
    return not gone & {uid(pod) for pod in release.pods().values()} and settled(release, *SERVICES)


def uid(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["uid"])


def test_from_one_to_three_and_back_fails_no_request_and_spreads_the_load(release: Release) -> None:
    scale(release, 1)
    # Each HTTP request on a connection of its own: a kept connection stays with its pod.
    with release.load(PAUSE_SECONDS="0.2", KEEP_ALIVE="no") as load:
        scale(release, 3)
        # Clients look for new pods every half a minute.
        release.namespace.wait(functools.partial(evenly_served, release), 70, "an even share of the load for each pod")
        scale(release, 1)
        time.sleep(5)
        assert_none_failed(load)
        assert_all_on_record(release, load)
    scale(release, 2)


def scale(release: Release, pods: int) -> None:
    release.namespace.kubectl("scale", *release.names(*SCALED), f"--replicas={pods}")
    release.namespace.wait(lambda: settled(release, *SCALED), 240, f"{pods} pods of each")


def evenly_served(release: Release) -> bool:
    """Whether each pod of a service takes within a fifth of an even share of its load, for a while."""
    before = served(release)
    time.sleep(SHARE_SECONDS)
    after = served(release)
    shares = {service: [after[service][pod] - before[service][pod] for pod in before[service]] for service in SCALED}
    print(f"\n{shares}")
    for each in shares.values():
        even = sum(each) / len(each)
        if even <= 20 or any(abs(share - even) > 0.2 * even for share in each):
            return False
    return True


def served(release: Release) -> dict[str, dict[str, float]]:
    """Calls that each pod has served so far."""
    every = release.pods_by_service()
    return {
        service: {name: calls(pod["status"]["podIP"]) for name, pod in every[service].items()} for service in SCALED
    }


def calls(ip: str) -> float:
    """Finished calls of clients and neighbours, of every method."""
    with urllib.request.urlopen(f"http://{ip}:9090/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    names = ("genaifactory_rpc_requests_total{", "genaifactory_http_requests_total{")
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(names))


def test_answers_go_on_while_the_database_is_away_and_nothing_is_lost(release: Release) -> None:
    with release.load() as load:
        namespace = release.namespace
        for _ in range(2):
            namespace.kubectl("delete", "pod", f"{release.name}-postgresql-0", "--grace-period=0", "--force")
            time.sleep(5)
            namespace.wait(lambda: release.ready("postgresql"), 120, "the database back")
        # Longer away: what is answered waits in the orchestrators' outboxes.
        namespace.kubectl("scale", f"statefulset/{release.name}-postgresql", "--replicas=0")
        namespace.wait(lambda: not release.pods("postgresql"), 60, "no database")
        answered = load.answered()
        time.sleep(30)
        assert load.answered() > answered + 50
        namespace.kubectl("scale", f"statefulset/{release.name}-postgresql", "--replicas=1")
        namespace.wait(
            lambda: release.ready("postgresql") and release.ready("monitor"), 120, "the database and monitor back"
        )
        assert_none_failed(load)
        assert_all_on_record(release, load)
    release.ask("Who approves annual leave?", conversation="after")
