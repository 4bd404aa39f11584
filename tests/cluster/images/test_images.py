"""Every image as a restricted pod: it starts and holds what its bill of materials says; and the tests' PostgreSQL.

Needs the images on the cluster: make images image-test-postgres.
"""

from __future__ import annotations

import re
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.kube import Namespace

VERSION = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]["version"]
SERVICES = ("gateway", "safety", "orchestrator", "retriever", "modelserver", "monitor")
MODULES = {name: f"genaifactory_{name}.app" for name in SERVICES} | {
    "operator": "genaifactory_operator.__main__",
    "tools": "genaifactory_local.cli",
}
POSTGRES = "docker.io/genaifactory/test-postgres:15"
SECURITY = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
# Prints what is wrong with an image, from inside: a module that cannot be imported raises.
LOOK = """
import importlib, json, os, pathlib, re, sys
from importlib import metadata
importlib.import_module(sys.argv[1])
sbom = json.loads(pathlib.Path("/usr/share/sbom/genaifactory.cdx.json").read_text())
listed = {each["name"]: each["version"] for each in [*sbom["components"], sbom["metadata"]["component"]]}
paths = [path for path in sys.path if path.startswith("/opt/genaifactory")]
held = {re.sub(r"[-_.]+", "-", each.name).lower(): each.version for each in metadata.distributions(path=paths)}
assert held == listed, held.items() ^ listed.items()
assert "genaifactory-common" in held
if "onnxruntime" in held:
    from genaifactory_common import minilm
    assert minilm.load(pathlib.Path("/nowhere")).embed(["a"]).shape == (1, 384)
print("uid", os.getuid(), "pid", os.getpid())
"""


def pod(name: str, image: str, **container: Any) -> dict[str, Any]:
    """A pod of one container that a restricted namespace admits, with /tmp to write to."""
    volumes = container.pop("volumes", [])
    security = container.pop("security", {})
    mounts = [{"name": "tmp", "mountPath": "/tmp"}, *container.pop("volumeMounts", [])]
    main = {"name": "main", "image": image, "imagePullPolicy": "Never", "securityContext": SECURITY} | container
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 60,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}} | security,
            "containers": [main | {"volumeMounts": mounts}],
            "volumes": [{"name": "tmp", "emptyDir": {}}, *volumes],
        },
    }


def phase(namespace: Namespace, name: str) -> str:
    found: str = namespace.get("pod", name)["status"].get("phase", "Pending")
    return found


def wait_for(namespace: Namespace, name: str, *phases: str, seconds: float = 90) -> None:
    """Until the pod is in one of the phases."""
    namespace.wait(lambda: phase(namespace, name) in phases, seconds, f"{name} {' or '.join(phases)}")


@pytest.fixture(scope="module")
def looking(namespace: Namespace) -> None:
    """Two pods of each image, which start while others run."""
    pods = []
    for name, module in MODULES.items():
        command = ["tini", "--", "python", "-c", LOOK, module]
        image = f"docker.io/genaifactory/{name}:{VERSION}"
        pods += [
            pod(name, image, command=command),
            pod(f"{name}-any-user", image, command=command, security={"runAsUser": 123456, "runAsGroup": 123456}),
        ]
    namespace.apply(*pods)


@pytest.mark.parametrize("name", MODULES)
def test_an_image_runs_with_a_read_only_root_and_lists_what_it_holds(
    namespace: Namespace, looking: None, name: str
) -> None:
    for each, uid in ((name, 65532), (f"{name}-any-user", 123456)):
        wait_for(namespace, each, "Succeeded", "Failed", seconds=240)
        logs = namespace.kubectl("logs", each)
        assert phase(namespace, each) == "Succeeded", logs
        assert re.search(f"^uid {uid} pid (?!1$)", logs, re.MULTILINE), logs
    namespace.kubectl("delete", "pod", name, f"{name}-any-user", "--wait=false")


@pytest.mark.parametrize(("name", "says"), [("tools", "genaifactory"), ("operator", "python -m genaifactory_operator")])
def test_an_image_of_a_command_is_the_command(namespace: Namespace, name: str, says: str) -> None:
    namespace.apply(pod(f"{name}-help", f"docker.io/genaifactory/{name}:{VERSION}", args=["--help"]))
    wait_for(namespace, f"{name}-help", "Succeeded", "Failed")
    assert f"usage: {says} " in namespace.kubectl("logs", f"{name}-help").lower()


def test_a_service_that_is_still_starting_stops_at_once(namespace: Namespace) -> None:
    starting = "import time; print('up', flush=True); time.sleep(600)"
    image = f"docker.io/genaifactory/gateway:{VERSION}"
    namespace.apply(pod("starting", image, command=["tini", "--", "python", "-c", starting]))
    wait_for(namespace, "starting", "Running")
    namespace.wait(lambda: "up" in namespace.kubectl("logs", "starting"), 30, "started", every_seconds=0.2)
    started = time.monotonic()
    namespace.kubectl("delete", "pod", "starting")
    assert time.monotonic() - started < 20, "it waited for its grace period of 60 s"


def test_the_postgresql_of_tests_keeps_what_was_written_and_asks_for_the_password(namespace: Namespace) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "database"},
        "stringData": {"password": "s'3 cret"},
    }
    environment = {
        "POSTGRES_USER": "genaifactory",
        "POSTGRES_DB": "genaifactory",
        "POSTGRES_PASSWORD_FILE": "/etc/postgresql-secret/password",
        "PGDATA": "/var/lib/postgresql/data/pgdata",
    }
    server = pod(
        "postgres",
        POSTGRES,
        env=[{"name": name, "value": value} for name, value in environment.items()],
        readinessProbe={
            "exec": {"command": ["pg_isready", "--username", "genaifactory", "--host", "127.0.0.1", "--quiet"]},
            "periodSeconds": 1,
        },
        volumeMounts=[
            {"name": "data", "mountPath": "/var/lib/postgresql/data"},
            {"name": "run", "mountPath": "/var/run/postgresql"},
            {"name": "secret", "mountPath": "/etc/postgresql-secret", "readOnly": True},
        ],
        volumes=[
            {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
            {"name": "run", "emptyDir": {}},
            {"name": "secret", "secret": {"secretName": "database", "defaultMode": 0o440}},
        ],
        security={"runAsUser": 999, "runAsGroup": 999, "fsGroup": 999},
    )

    def start() -> None:
        namespace.apply(server)
        namespace.kubectl("wait", "pod/postgres", "--for=condition=Ready", "--timeout=120s", seconds=150)

    def sql(statement: str, password: str = "s'3 cret") -> str:
        psql = ("psql", "--username=genaifactory", "--host=127.0.0.1", "--no-psqlrc", "--tuples-only", "--no-align")
        return namespace.exec("postgres", "env", f"PGPASSWORD={password}", *psql, f"--command={statement}").strip()

    namespace.apply(claim, secret)
    start()
    sql("CREATE TABLE notes (text text); INSERT INTO notes VALUES ('giờ làm việc')")
    with pytest.raises(AssertionError, match="password authentication failed"):
        sql("SELECT 1", password="wrong")
    started = time.monotonic()
    namespace.kubectl("delete", "pod", "postgres")
    assert time.monotonic() - started < 20, "it waited for its grace period of 60 s"
    start()
    assert sql("SELECT text FROM notes") == "giờ làm việc"
    assert sql("SHOW server_version").startswith("15.")
    logs = namespace.kubectl("logs", "postgres")
    assert "database system was shut down at" in logs, logs
