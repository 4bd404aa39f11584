"""The charts before anything runs: the API server takes every manifest of every profile, and wrong values are named."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.kube import Namespace
from tests.cluster.release import CHART, helm

PROFILES = sorted(CHART.joinpath("profiles").glob("*.yaml"))
# Whatever a value can switch on beside the profiles.
EVERYTHING = {
    "certificates": {"mode": "cert-manager"},
    "global": {
        "scrape": "podMonitor",
        "otlpEndpoint": "http://otel-collector:4317",
        "postgresql": {"enabled": True},
        "qdrant": {"enabled": True},
    },
    "mlflow": {"enabled": True},
    "alerts": {"enabled": True},
    "dashboards": {"enabled": True},
    "samples": {"enabled": True},
    "ingress": {"enabled": True, "tlsSecret": "genai-tls", "className": "nginx"},
    "httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}], "hostnames": ["genai.example.com"]},
    "gateway": {"autoscaling": {"enabled": True}, "priorityClassName": "system-cluster-critical"},
}
# Definitions of the kinds that belong to others, by Go module and path.
DEFINITIONS = {
    "github.com/cert-manager/cert-manager@v1.19.1": (
        "deploy/crds/cert-manager.io_certificates.yaml",
        "deploy/crds/cert-manager.io_issuers.yaml",
    ),
    "github.com/prometheus-operator/prometheus-operator@v0.85.0": (
        "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
    ),
    "sigs.k8s.io/gateway-api@v1.4.0": ("config/crd/standard/gateway.networking.k8s.io_httproutes.yaml",),
}

pytestmark = [pytest.mark.timeout(600), pytest.mark.allow_blocking]


def accepted(namespace: Namespace, *arguments: str) -> int:
    """Has the API server check what the chart makes of the values; how many objects that is."""
    text = helm("template", "factory", str(CHART), "--namespace", namespace.name, "--no-hooks", *arguments).stdout
    namespace.kubectl("apply", "--server-side", "--dry-run=server", "--filename", "-", text=text)
    return sum(1 for each in yaml.safe_load_all(text) if each)


@pytest.fixture(scope="module")
def definitions(namespace: Namespace) -> Iterator[None]:
    """The custom resource definitions of cert-manager, the Prometheus Operator and the Gateway API."""
    if shutil.which("go") is None:
        pytest.skip("go is not installed: it fetches the definitions of the kinds of others")
    files = []
    for module, paths in DEFINITIONS.items():
        command = ("go", "mod", "download", "-json", module)
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, cwd="/")
        assert done.returncode == 0, done.stdout + done.stderr
        files += [Path(json.loads(done.stdout)["Dir"]) / path for path in paths]
    arguments = [argument for file in files for argument in ("--filename", str(file))]
    namespace.kubectl("apply", "--server-side", *arguments)
    namespace.kubectl("wait", "--for=condition=Established", "--timeout=60s", *arguments)
    yield
    namespace.kubectl("delete", *arguments)


@pytest.mark.parametrize("profile", [None, *PROFILES], ids=lambda path: path.stem if path else "defaults")
def test_the_api_server_takes_every_manifest_of_a_profile(namespace: Namespace, profile: Path | None) -> None:
    before = []
    if profile is not None and profile.stem in ("gpu", "private-model"):
        before.append(profile.with_name("production.yaml"))
    if profile is not None and profile.stem == "private-model":
        before.append(profile.with_name("gpu.yaml"))
    files = [*before, profile] if profile is not None else []
    assert accepted(namespace, *(argument for file in files for argument in ("--values", str(file)))) > 30


def test_the_api_server_takes_what_other_operators_are_asked_for(
    namespace: Namespace, definitions: None, tmp_path: Path
) -> None:
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(EVERYTHING))
    assert accepted(namespace, "--values", str(tmp_path / "values.yaml")) > 60


@pytest.mark.parametrize("chart", ["genai-factory", "service"])
def test_helm_lint_finds_nothing(namespace: Namespace, chart: str) -> None:
    helm("lint", "--strict", str(CHART.parent / chart))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("gateway.replicas=two", "'/replicas': got string, want integer"),
        ("gateway.replicaz=2", "additional properties 'replicaz' not allowed"),
        ("retriever.replicas=3", "retriever.replicas: 3 pods are too many"),
        ("monitor.replicas=2", "monitor.replicas: 2 pods would each have their own records"),
        ("orchestrator.autoscaling.enabled=true", "orchestrator.autoscaling.maxReplicas: 10 pods"),
        ("factory.version=7", "'/factory/version'"),
        ("factory.routes[0].model=x", "additional properties 'model' not allowed"),
        ("certificates.mode=none", "value must be one of 'issuer', 'cert-manager', 'existing'"),
        ("global.otlpEndpoint=collector", "'/global/otlpEndpoint'"),
        ("httpRoute.enabled=true", "httpRoute.parentRefs: name the Gateway"),
        ("global.existingFactory=mine", "apiKey.create"),
        ("mlflow.enabled=true,mlflow.url=http://mlflow:5000", "mlflow.enabled: the built-in MLflow would not be used"),
        ("mlflow.url=http://user:password@mlflow", "'/mlflow/url'"),
        ("samples.enabled=true,tools.enabled=false", "samples.enabled"),
        ("samples.enabled=true,apiKey.create=false", "name a Secret that holds one with the permission 'ingest'"),
        ("samples.enabled=true,apiKey.role=user", "whose role 'user' has no permission 'ingest'"),
    ],
)
def test_a_wrong_value_is_named(namespace: Namespace, value: str, message: str) -> None:
    done = helm(
        "install", "factory", str(CHART), "--namespace", namespace.name, "--dry-run=client", "--set", value, check=False
    )
    assert done.returncode != 0
    assert message in done.stderr


def test_an_api_key_of_ones_own_is_what_the_tools_show(namespace: Namespace) -> None:
    values = "apiKey.create=false,tools.apiKeySecret=mine,samples.enabled=true"
    text = helm("template", "factory", str(CHART), "--namespace", namespace.name, "--set", values).stdout
    shown: dict[str, str] = {}
    for each in filter(None, yaml.safe_load_all(text)):
        if each["kind"] in ("Pod", "Deployment", "Job"):
            pod = each["spec"] if each["kind"] == "Pod" else each["spec"]["template"]["spec"]
            for volume in pod["volumes"]:
                if volume["name"] == "secrets" and "secret" in volume:
                    shown[each["metadata"]["name"]] = volume["secret"]["secretName"]
    assert shown == dict.fromkeys(("factory-tools", "factory-test", "factory-samples-1"), "mine")


def test_a_rollout_waits_until_clients_can_have_found_the_new_pod(namespace: Namespace) -> None:
    profile = str(CHART / "profiles" / "production.yaml")
    text = helm("template", "factory", str(CHART), "--namespace", namespace.name, "--values", profile).stdout
    objects = [each for each in yaml.safe_load_all(text) if each]
    scaled = {each["spec"]["scaleTargetRef"]["name"] for each in objects if each["kind"] == "HorizontalPodAutoscaler"}
    waits = {
        each["metadata"]["name"]: each["spec"].get("minReadySeconds", 0)
        for each in objects
        if each["kind"] in ("Deployment", "StatefulSet")
        and (each["spec"].get("replicas", 1) > 1 or each["metadata"]["name"] in scaled)
    }
    assert "factory-gateway" in waits
    assert min(waits.values()) > 5, waits  # CoreDNS lets answers be kept for five seconds


def test_the_check_before_an_installation_reads_the_document_that_is_installed(namespace: Namespace) -> None:
    arguments = ("factory", str(CHART), "--namespace", namespace.name)
    rendered = yaml.safe_load_all(helm("template", *arguments).stdout)
    objects = {(each["kind"], each["metadata"]["name"]): each for each in rendered if each}
    installed, checked = (objects["ConfigMap", f"factory-{name}"]["data"] for name in ("factory", "check"))
    assert checked == installed  # with the hash of the key that is made while it renders
    job = objects["Job", "factory-check"]
    annotations = (objects["ConfigMap", "factory-check"]["metadata"]["annotations"], job["metadata"]["annotations"])
    assert {each["helm.sh/hook"] for each in annotations} == {"pre-install,pre-upgrade"}
    assert int(annotations[0]["helm.sh/hook-weight"]) < int(annotations[1]["helm.sh/hook-weight"])
    pod = job["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert [volume["configMap"]["name"] for volume in pod["volumes"]] == ["factory-check"]

    given = helm("template", *arguments, "--set", "global.existingFactory=mine,apiKey.create=false").stdout
    objects = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(given) if each}
    assert not {("ConfigMap", "factory-factory"), ("ConfigMap", "factory-check")} & objects.keys()
    mounted = {
        volume["configMap"]["name"]
        for (kind, _), each in objects.items()
        if kind in ("Deployment", "StatefulSet", "Job")
        for volume in each["spec"]["template"]["spec"]["volumes"]
        if volume["name"] == "config" and "issuer" not in each["metadata"]["name"]
    }
    assert mounted == {"mine"}

    without = helm("template", *arguments, "--set", "check.enabled=false").stdout
    assert "name: factory-check\n" not in without.replace("kind: NetworkPolicy\nmetadata:\n  name: factory-check\n", "")


@pytest.mark.parametrize("mlflow", ["", "mlflow.enabled=true", "mlflow.url=https://mlflow.example.com"])
def test_a_run_is_registered_where_there_is_an_mlflow(namespace: Namespace, mlflow: str) -> None:
    arguments = ("--namespace", namespace.name, "--set", f"pipelines.enabled=true,{mlflow}".rstrip(","))
    text = helm("template", "factory", str(CHART), *arguments, "--show-only", "templates/workflows.yaml").stdout
    objects = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(text) if each}
    templates = {each["name"]: each for each in objects["WorkflowTemplate", "factory-retrain"]["spec"]["templates"]}
    tasks = [each["name"] for each in templates["main"]["dag"]["tasks"]]
    assert ("register" in templates) == ("register" in tasks) == bool(mlflow)
    variables = {each["name"]: each["value"] for each in templates["finish"]["container"]["env"]}
    expected = {"mlflow.enabled=true": "http://factory-mlflow:5000"}.get(mlflow, mlflow.partition("=")[2])
    assert variables.get("MLFLOW_TRACKING_URI", "") == expected


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("http://10.0.0.5", 80),
        ("https://mlflow2", 443),
        ("https://mlflow2/base", 443),
        ("http://mlflow2:5000", 5000),
        ("http://[fd00::5]", 80),
        ("http://[fd00::5]:5000", 5000),
    ],
)
def test_the_policy_opens_the_port_of_an_mlflow_that_is_there_already(
    namespace: Namespace, url: str, port: int
) -> None:
    arguments = ("--namespace", namespace.name, "--set", f"mlflow.url={url}")
    text = helm("template", "factory", str(CHART), *arguments, "--show-only", "templates/mlflow.yaml").stdout
    (policy,) = filter(None, yaml.safe_load_all(text))
    (rule,) = policy["spec"]["egress"]
    assert rule["ports"] == [{"port": port, "protocol": "TCP"}]


def test_the_check_is_admitted_where_pods_are_restricted(namespace: Namespace) -> None:
    text = helm("template", "factory", str(CHART), "--namespace", namespace.name).stdout
    objects = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(text) if each}
    spec = objects["Job", "factory-check"]["spec"]["template"]["spec"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "check"}, "spec": spec}
    namespace.kubectl("apply", "--server-side", "--dry-run=server", "--filename", "-", text=json.dumps(pod))
