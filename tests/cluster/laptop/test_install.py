"""The laptop profile on a real cluster: one command to an answer, and nobody else gets one.

Needs the platform's images on the cluster (`make images`).
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import grpc
import httpx
import pytest

from genaifactory.retriever.v1 import retriever_pb2
from genaifactory_common.certificates import Authority
from tests.cluster.laptop.profile import PROPAGATION_SECONDS
from tests.cluster.release import SERVICES, Release
from tests.full import FULL

PRIVATE_KEY = "GENAIFACTORY_CONTEXT_PRIVATE_KEY"
A_DAY = timedelta(days=1)
CALLERS = {
    "gateway": (),
    "safety": ("gateway", "orchestrator"),
    "orchestrator": ("gateway",),
    "retriever": ("gateway", "orchestrator"),
    "modelserver": ("gateway", "orchestrator"),
    "monitor": ("gateway", "orchestrator"),
}
# Which of the addresses, given as JSON, accept a TCP connection.
CONNECT = """
import concurrent.futures, json, socket, sys
def accepts(address):
    try:
        socket.create_connection(address[1:], timeout=3).close()
    except OSError:
        return False
    return True
addresses = json.loads(sys.argv[1])
with concurrent.futures.ThreadPoolExecutor(len(addresses)) as pool:
    print(json.dumps([each[0] for each, accepted in zip(addresses, pool.map(accepts, addresses)) if accepted]))
"""
# Files of the pod's image that hold one of the secrets, or a private key.
SCAN = """
import json, os, sys
needles = [bytes.fromhex(each) for each in json.loads(sys.argv[1])]
skipped = ("/proc", "/sys", "/dev", "/tmp", "/data", "/etc/genaifactory-tls", "/etc/genaifactory-secrets")
found, files = [], 0
for folder, folders, names in os.walk("/"):
    folders[:] = [name for name in folders if os.path.join(folder, name) not in skipped]
    for name in names:
        path = os.path.join(folder, name)
        try:
            if os.path.islink(path) or os.path.getsize(path) > 50_000_000:
                continue
            data = open(path, "rb").read()
        except OSError:
            continue
        files += 1
        if any(needle in data for needle in needles):
            found.append(path)
print(json.dumps({"files": files, "found": found}))
"""
WRITE = """
import os
try:
    open("/opt/genaifactory/x", "w")
except OSError as error:
    print(os.getuid(), error.strerror)
"""

pytestmark = [pytest.mark.timeout(900), pytest.mark.allow_blocking]


def shell(release: Release, component: str) -> str:
    """A pod of a component that commands can be run in."""
    return release.shell() if component == "tools" else next(iter(release.pods(component)))


def test_helm_test_asks_and_is_answered(release: Release) -> None:
    assert "Succeeded" in release.helm("test", "--timeout", "2m")


def test_everything_together_takes_less_than_three_gibibytes(release: Release) -> None:
    (node,) = release.namespace.get("nodes")
    path = f"/api/v1/nodes/{node['metadata']['name']}/proxy/stats/summary"
    stats = json.loads(release.namespace.kubectl("get", "--raw", path))
    used = {
        pod["podRef"]["name"]: pod["memory"]["workingSetBytes"] / 2**20
        for pod in stats["pods"]
        if pod["podRef"]["namespace"] == release.namespace.name and "workingSetBytes" in pod.get("memory", {})
    }
    print(f"\nMiB: { {name: round(size) for name, size in sorted(used.items())} }, together {sum(used.values()):.0f}")
    assert len(used) >= len(SERVICES)
    assert sum(used.values()) < 3 * 1024


def test_no_pod_restarted_on_the_way(release: Release) -> None:
    restarts = {
        name: status["restartCount"]
        for name, pod in release.pods().items()
        for status in pod["status"]["containerStatuses"]
    }
    assert not any(restarts.values()), restarts


def test_an_answer_streams_and_is_on_record(release: Release) -> None:
    headers = {"authorization": f"Bearer {release.key}"}
    body = {"model": "rag", "stream": True, "messages": [{"role": "user", "content": "Who approves annual leave?"}]}
    url = f"http://{release.address()}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=60, trust_env=False) as response:
        request_id = response.headers["x-request-id"]
        assert list(response.iter_lines())[-2:] == ["data: [DONE]", ""]
    release.namespace.wait(
        lambda: request_id in [record["request_id"] for record in release.records()], 30, "the answer on record"
    )


def test_pods_run_as_nobody_on_a_file_system_that_they_cannot_write(release: Release) -> None:
    for component in (*SERVICES, "tools"):
        written = release.namespace.exec(shell(release, component), "python", "-c", WRITE)
        assert written.strip() == "65532 Read-only file system", component


def test_only_its_callers_reach_a_service(release: Release) -> None:
    release.namespace.apply(outside_pod(release))
    release.namespace.kubectl("wait", "pod/outside", "--for=condition=Ready", "--timeout=60s")
    addresses = [
        (name, pod["status"]["podIP"], port)
        for service, pods in release.pods_by_service().items()
        for pod in pods.values()
        for name, port in ((service, 50051), (f"{service} metrics", 9090))
    ]
    for position in (*SERVICES, "tools", "outside"):
        pod = "outside" if position == "outside" else shell(release, position)
        found = release.namespace.exec(pod, "python", "-c", CONNECT, json.dumps(addresses))
        allowed = {service for service, callers in CALLERS.items() if position in callers}
        if position in ("tools", "outside"):
            allowed.add("gateway")  # the entry for clients, which requires an API key
        own = {position, f"{position} metrics"}  # a pod always reaches itself
        assert set(json.loads(found)) - own == allowed, position


def test_a_service_takes_its_callers_certificates_only(release: Release) -> None:
    """From the node, which no NetworkPolicy keeps out: what is left is mTLS."""
    other = Authority.create("another", valid=A_DAY)
    for service in SERVICES[1:]:
        address = f"{next(iter(release.pods(service).values()))['status']['podIP']}:50051"
        ca = release.secret(f"{service}-tls")["ca.crt"]
        name = f"{release.name}-{service}"
        for component in SERVICES:
            files = release.secret(f"{component}-tls")
            code = knock(address, name, ca, files["tls.crt"], files["tls.key"])
            # Let in, it is asked who the call is for, which nobody has signed here.
            wanted = "UNAUTHENTICATED" if component in CALLERS[service] else "PERMISSION_DENIED"
            assert code == wanted, f"{component} to {service}"
        assert knock(address, name, ca) == "UNAVAILABLE", f"no certificate to {service}"
        forged = other.issue(
            f"spiffe://cluster.local/ns/{release.namespace.name}/sa/{release.name}-orchestrator", [name], valid=A_DAY
        )
        assert knock(address, name, ca, forged.certificate, forged.key) == "UNAVAILABLE", f"another CA to {service}"


def test_a_client_refuses_a_server_with_another_services_certificate(release: Release) -> None:
    files = release.secret("orchestrator-tls")
    address = f"{next(iter(release.pods('safety').values()))['status']['podIP']}:50051"
    assert (
        knock(address, f"{release.name}-monitor", files["ca.crt"], files["tls.crt"], files["tls.key"]) == "UNAVAILABLE"
    )


def test_the_gateway_asks_for_a_key(release: Release) -> None:
    url = f"http://{release.address()}/v1/models"
    assert httpx.get(url, trust_env=False).status_code == 401
    assert httpx.get(url, headers={"authorization": "Bearer gf-wrong"}, trust_env=False).status_code == 401
    assert httpx.get(url, headers={"authorization": f"Bearer {release.key}"}, trust_env=False).status_code == 200


def test_no_secret_is_where_it_does_not_belong(release: Release, issuer_log: str) -> None:
    namespace = release.namespace
    secrets = secret_values(release)
    assert len(secrets) >= 9
    config_maps = namespace.kubectl("get", "configmaps", "--output", "json")
    manifests = namespace.kubectl("get", "deployments,statefulsets,jobs,cronjobs,pods", "--output", "json")
    for name, value in secrets.items():
        assert value.decode() not in config_maps, f"{name} is in a ConfigMap"
        assert value.decode() not in manifests, f"{name} is in a manifest"
    needles = json.dumps([value.hex() for value in secrets.values()])
    for component in (*SERVICES, "tools"):
        pod = shell(release, component)
        environment = namespace.exec(pod, "cat", "/proc/1/environ")
        logs = namespace.kubectl("logs", pod)
        for name, value in secrets.items():
            assert value.decode() not in environment, f"{name} is in the environment of {component}"
            assert value.decode() not in logs, f"{name} is in the log of {component}"
        scanned = json.loads(namespace.exec(pod, "python", "-c", SCAN, needles, seconds=300))
        assert scanned["files"] > 1000
        assert not scanned["found"], component
    assert issuer_log
    assert not [name for name, value in secrets.items() if value.decode() in issuer_log]


def test_no_pod_but_the_gateways_mounts_the_key_that_signs_callers_or_anothers_certificate(release: Release) -> None:
    release.helm("test", "--timeout", "2m")  # its pod stays
    mounted = {
        pod["metadata"]["labels"]["app.kubernetes.io/component"]: volumes(pod)
        for pod in release.namespace.get("pods", "--selector", f"app.kubernetes.io/instance={release.name}")
    }
    assert set(mounted) >= {*SERVICES, "tools"}
    for component, secrets in mounted.items():
        keys = {name: items for name, items in secrets.items() if items is None or "tls.key" in items}
        allowed = {f"{release.name}-{component}-tls", f"{release.name}-context-public-key"}
        if component == "gateway":
            allowed.add(f"{release.name}-context-key")
        assert set(keys) <= allowed, f"{component} mounts {sorted(keys)}"
    assert mounted["tools"] == {
        f"{release.name}-gateway-tls": {"ca.crt"},
        f"{release.name}-api-key": {"GENAIFACTORY_API_KEY"},
    }


def volumes(pod: dict[str, Any]) -> dict[str, set[str] | None]:
    """Secrets that a pod mounts, with the keys of them; None: all."""
    found: dict[str, set[str] | None] = {}
    for volume in pod["spec"]["volumes"]:
        sources = [each["secret"] for each in volume.get("projected", {}).get("sources", ()) if "secret" in each]
        for source in (*([volume["secret"]] if "secret" in volume else []), *sources):
            items = {item["key"] for item in source["items"]} if "items" in source else None
            found[source.get("secretName") or source["name"]] = items
    return found


def secret_values(release: Release) -> dict[str, bytes]:
    """What must stay in Secrets, one line of each: keys are recognised by a line of their middle."""
    found = {}
    for secret in release.namespace.get("secrets"):
        if secret["type"] == "helm.sh/release.v1":
            continue
        for key, value in secret.get("data", {}).items():
            text = base64.b64decode(value)
            if key.endswith(".crt") or "PUBLIC" in key:
                continue
            lines = text.strip().splitlines()
            found[f"{secret['metadata']['name']}/{key}"] = lines[len(lines) // 2]
    return found


@pytest.mark.parametrize("service", [*SERVICES, "tools"])
def test_a_service_may_ask_nothing_of_the_kubernetes_api(release: Release, service: str) -> None:
    account = f"system:serviceaccount:{release.namespace.name}:{release.name}-{service}"
    asked = (
        *(
            to("get", "secrets", f"{release.name}-{name}")
            for name in ("ca", "context-key", "api-key", f"{service}-tls")
        ),
        to("list", "secrets"),
        to("list", "pods"),
        to("create", "pods"),
        to("create", "pods", subresource="exec"),
        to("get", "configmaps"),
        to("patch", "deployments", group="apps"),
        to("create", "serviceaccounts", subresource="token"),
        to("get", "nodes"),
    )
    assert allowed(release, account, asked) == []
    pod = shell(release, service)
    listed = release.namespace.exec(pod, "ls", "/var/run")
    assert "secrets" not in listed, "a token is mounted"


def test_the_issuer_may_read_and_change_its_own_secrets_only(release: Release) -> None:
    account = f"system:serviceaccount:{release.namespace.name}:{release.name}-issuer"
    own = [
        f"{release.name}-{name}"
        for name in ("ca", "context-key", "context-public-key", *(f"{service}-tls" for service in SERVICES))
    ]
    wanted = [to(verb, "secrets", name) for verb in ("get", "patch") for name in own]
    others = (
        *(to("delete", "secrets", name) for name in own),
        to("get", "secrets", f"{release.name}-api-key"),
        to("list", "secrets"),
        to("watch", "secrets"),
        to("create", "secrets"),
        to("update", "secrets", f"{release.name}-ca"),
        to("create", "pods"),
        to("create", "pods", subresource="exec"),
        to("get", "configmaps"),
        to("get", "nodes"),
    )
    assert allowed(release, account, (*wanted, *others)) == wanted


def to(verb: str, resource: str, name: str = "", *, group: str = "", subresource: str = "") -> dict[str, str]:
    """What an account might do: a ResourceAttributes without its namespace."""
    return {"verb": verb, "resource": resource, "name": name, "group": group, "subresource": subresource}


def allowed(release: Release, account: str, asked: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """What of it a service account may do, by the API server's own answers (SubjectAccessReview)."""
    namespace = release.namespace.name
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
    reviews = [
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": account, "groups": groups, "resourceAttributes": {**each, "namespace": namespace}},
        }
        for each in asked
    ]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": reviews})
    output = ("--output", "jsonpath={.status.allowed}{'\\n'}")
    answers = release.namespace.kubectl("create", "--filename", "-", *output, text=text).split()
    assert set(answers) <= {"true", "false"}, answers
    return [each for each, answer in zip(asked, answers, strict=True) if answer == "true"]


@pytest.mark.timeout(1200)
def test_certificates_and_the_key_of_callers_tokens_are_rotated_at_once_while_nothing_stops(release: Release) -> None:
    namespace = release.namespace
    certificates = {name: release.secret(f"{name}-tls") for name in SERVICES}
    key = release.secret("context-key")[PRIVATE_KEY]
    with release.load() as load, namespace.refreshed():
        for job in ("rotate", "rotate-context-key"):
            namespace.kubectl("create", "job", job, f"--from=cronjob/{release.name}-{job}")
        namespace.wait(lambda: release.secret("context-key")[PRIVATE_KEY] != key, 200, "the next key signs")
        # Every gateway has seen it, and every service both keys.
        time.sleep(PROPAGATION_SECONDS)
        assert len(trusted_keys(release)) == 2
        for component, line in (
            ("gateway", "the signing key: follows a change"),
            *((service, "callers' public keys: follows a change") for service in SERVICES if service != "gateway"),
        ):
            for pod in release.pods(component):
                assert line in namespace.kubectl("logs", pod), pod
        namespace.kubectl("wait", "job/rotate", "--for=condition=Complete", "--timeout=600s", seconds=620)
        if FULL:  # until the last token of the old key has ended, which other tests need not wait for
            done = ("job/rotate-context-key", "--for=condition=Complete", "--timeout=600s")
            namespace.kubectl("wait", *done, seconds=620)
            assert len(trusted_keys(release)) == 1
        # The old authority is trusted by nobody any more, the new one by all.
        time.sleep(PROPAGATION_SECONDS)
        answered = load.answered()
        namespace.wait(lambda: load.answered() > answered, 30, "answers with the new certificates and key")
        summary = load.summary()
        assert not load.failures(), load.failures()[:5]
    print(f"\n{summary}")
    for name, old in certificates.items():
        new = release.secret(f"{name}-tls")
        assert new["tls.crt"] != old["tls.crt"]
        assert new["ca.crt"] != old["ca.crt"]
        assert new["ca.crt"].count(b"BEGIN CERTIFICATE") == 1
    assert not any(
        status["restartCount"] for pod in release.pods().values() for status in pod["status"]["containerStatuses"]
    )
    shown = served_certificate(next(iter(release.pods("safety").values()))["status"]["podIP"], release)
    assert shown == "UNAUTHENTICATED"


def trusted_keys(release: Release) -> list[object]:
    """Public keys by which the services check callers' tokens."""
    keys: list[object] = json.loads(release.secret("context-public-key")["GENAIFACTORY_CONTEXT_PUBLIC_KEYS"])["keys"]
    return keys


def served_certificate(ip: str, release: Release) -> str:
    """What safety says to orchestrator's new certificate, when only the new authority is trusted."""
    files = release.secret("orchestrator-tls")
    return knock(f"{ip}:50051", f"{release.name}-safety", files["ca.crt"], files["tls.crt"], files["tls.key"])


def knock(address: str, name: str, ca: bytes, certificate: bytes | None = None, key: bytes | None = None) -> str:
    """The status of one call to a server that must prove to be `name`."""
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    options = [("grpc.ssl_target_name_override", name), ("grpc.enable_retries", 0)]
    with grpc.secure_channel(address, credentials, options) as channel:
        # Any method will do: who calls is looked at before what.
        method = channel.unary_unary(_method(name), retriever_pb2.ListIndexesRequest.SerializeToString, bytes)
        try:
            method(retriever_pb2.ListIndexesRequest(), timeout=10)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def _method(name: str) -> str:
    service = name.rpartition("-")[2]
    methods = {
        "safety": "/genaifactory.safety.v1.SafetyService/CheckText",
        "orchestrator": "/genaifactory.orchestrator.v1.OrchestratorService/DeleteConversation",
        "retriever": "/genaifactory.retriever.v1.RetrieverService/ListIndexes",
        "modelserver": "/genaifactory.modelserver.v1.ModelService/ListModels",
        "monitor": "/genaifactory.monitor.v1.MonitorService/GetUsage",
    }
    return methods[service]


def outside_pod(release: Release) -> dict[str, object]:
    """A pod in the namespace that belongs to nobody."""
    deployment = release.namespace.get("deployment", f"{release.name}-tools")
    tools = deployment["spec"]["template"]["spec"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "outside"},
        "spec": {**tools, "serviceAccountName": "default"},
    }
