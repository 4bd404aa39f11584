"""How the command line finds a platform on a cluster, and calls real services there: over TCP and TLS."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from genaifactory.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, runtime, settings, specs, testing
from genaifactory_common.certificates import Authority
from genaifactory_common.errors import InvalidArgument, Unavailable
from genaifactory_common.identity import Caller
from genaifactory_common.runtime import ServiceApp
from genaifactory_common.telemetry import Telemetry
from genaifactory_common.testing.orchestrator import FakeOrchestrator, delta, done, route
from genaifactory_gateway import app as gateway
from genaifactory_gateway.settings import Http
from genaifactory_gateway.settings import Settings as GatewaySettings
from genaifactory_local import endpoints
from genaifactory_local import testing as local_testing
from genaifactory_monitor import app as monitor
from genaifactory_monitor.settings import Settings as MonitorSettings
from genaifactory_retriever import app as retriever
from genaifactory_retriever.settings import Settings as RetrieverSettings

KEY, USER = "gf-administrator", "gf-user"
TENANTS = """
tenants:
  - name: acme
    keys:
      - {{id: admin, sha256: {hash}, role: admin}}
      - {{id: user, sha256: {user}, role: user}}
{more}
roles:
  - {{name: admin, permissions: [chat, usage, ingest, export, operate]}}
  - {{name: user, permissions: [chat]}}
models: [{{name: extractive, backend: {{type: modelserver, model: extractive}}}}]
routes: [{{name: chat, task: chat, models: [extractive]}}]
knowledge_bases: [{{name: documents}}]
policies: [{{name: default}}]
"""


def _factory(*others: str) -> str:
    return TENANTS.format(
        hash=specs.hash_key(KEY), user=specs.hash_key(USER), more="\n".join(f"  - name: {name}" for name in others)
    )


@dataclass(frozen=True)
class Cluster:
    """Services on loopback, and the environment of a pod beside them."""

    environment: dict[str, str]
    monitor: str
    tls: settings.Tls

    async def genaifactory(self, *arguments: str) -> tuple[int, str, str]:
        """Runs a command there; exit code, stdout and stderr."""
        return await local_testing.genaifactory(*arguments, environment=self.environment)


def _identity(name: str) -> str:
    return f"spiffe://cluster.local/ns/genai/sa/factory-{name}"


def _issue(authority: Authority, folder: Path, name: str) -> settings.Tls:
    made = authority.issue(_identity(name), ["localhost"], valid=timedelta(days=1))
    tls = settings.Tls(
        certificate=folder / f"{name}.crt", private_key=folder / f"{name}.key", ca=folder / f"{name}-ca.crt"
    )
    tls.certificate.write_bytes(made.certificate)
    tls.private_key.write_bytes(made.key)
    tls.ca.write_bytes(authority.pem)
    return tls


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """A real gateway, retriever and monitor; behind the gateway, a scripted orchestrator."""
    authority = Authority.create("test", valid=timedelta(days=1))
    factory = tmp_path / "factory.yaml"
    factory.write_text(_factory())
    source = specs.Source.from_file(factory)
    of_orchestrator = _issue(authority, tmp_path, "orchestrator")
    private_key = base64.b64encode(testing.SIGNER.private_key).decode()
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "GENAIFACTORY_API_KEY").write_text(KEY)
    async with AsyncExitStack() as stack:

        async def serve(app: ServiceApp, name: str, *callers: str) -> str:
            server = settings.Server(
                address="localhost:0",
                tls=_issue(authority, tmp_path, name),
                callers=tuple(map(_identity, callers)),
                drain_seconds=1,
            )
            address = await stack.enter_async_context(runtime.running(app, server))
            return f"dns:///{address}"

        key = testing.SIGNER.public_key
        of_monitor = MonitorSettings(data_dir=tmp_path / "monitor", context_public_key=key)
        at_monitor = await serve(
            monitor.create_app(of_monitor, Telemetry("monitor")), "monitor", "gateway", "orchestrator"
        )
        of_retriever = RetrieverSettings(data_dir=tmp_path / "retriever", context_public_key=key)
        at_retriever = await serve(
            retriever.create_app(of_retriever, source, Telemetry("retriever")), "retriever", "gateway"
        )
        orchestrator = FakeOrchestrator()
        orchestrator.script = [route(), delta("Sixteen days."), done()]
        to_orchestrator = await stack.enter_async_context(testing.served(orchestrator.app(testing.VERIFIER)))
        to_monitor = await stack.enter_async_context(
            channels.connect(at_monitor, _issue(authority, tmp_path, "gateway"))
        )
        to_retriever = await stack.enter_async_context(
            channels.connect(at_retriever, _issue(authority, tmp_path, "gateway"))
        )
        of_gateway = GatewaySettings(http=Http(address="127.0.0.1:0"), context_private_key=SecretStr(private_key))
        to = gateway.Channels(
            orchestrator=to_orchestrator, monitor=to_monitor, retriever=to_retriever, safety=to_orchestrator
        )
        gateway_app = gateway.create_app(of_gateway, source, to, Telemetry("gateway"))
        at_gateway = await serve(gateway_app, "gateway")
        yield Cluster(
            {
                "GENAIFACTORY_CLUSTER__HTTP_URL": f"http://{gateway_app.http_address()}",
                "GENAIFACTORY_CLUSTER__GRPC_ADDRESS": at_gateway,
                "GENAIFACTORY_CLUSTER__TLS__CA": str(of_orchestrator.ca),
                "GENAIFACTORY_FACTORY_FILE": str(factory),
                "GENAIFACTORY_SECRETS_DIR": str(secrets),
            },
            at_monitor,
            of_orchestrator,
        )


async def _record(cluster: Cluster) -> None:
    """Records an interaction of the tenant, as the orchestrator does."""
    interaction = monitor_pb2.Interaction(
        request_id="req-1",
        tenant="acme",
        principal="alice",
        key_id="alice",
        task="chat",
        route="chat",
        model="extractive",
        input=[types_pb2.Message(role=types_pb2.ROLE_USER, content="How many days?")],
        output="Sixteen days.",
        outcome=monitor_pb2.OUTCOME_ANSWERED,
    )
    interaction.start_time.GetCurrentTime()
    testing.act_as(Caller("acme", "alice", "alice", "user", ("chat",)))
    async with channels.connect(cluster.monitor, cluster.tls) as channel:
        stub = monitor_pb2_grpc.MonitorServiceStub(channel)
        request = monitor_pb2.RecordInteractionsRequest(interactions=[interaction])
        await channels.unary(stub.RecordInteractions, request, timeout_seconds=10)


@pytest.mark.slow
@pytest.mark.allow_blocking  # reads and writes small files
async def test_every_command_works_from_a_pod_beside_the_platform(cluster: Cluster, tmp_path: Path) -> None:
    code, out, err = await cluster.genaifactory("ingest", "--samples", "--json")
    assert code == 0, err
    assert json.loads(out)["added"] == 8
    removed = await cluster.genaifactory("remove", "sample/leave.md")
    assert removed == (0, "1 document removed\n", "")

    other = tmp_path / "other-ca.crt"
    other.write_bytes(Authority.create("another", valid=timedelta(days=1)).pem)
    await _record(cluster)
    code, out, err = await cluster.genaifactory("export", "--route", "chat")
    assert code == 0, err
    assert json.loads(out)["request_id"] == "req-1"
    code, out, err = await cluster.genaifactory("usage", "--json")
    assert code == 0, err
    assert [row["model"] for row in json.loads(out)] == ["extractive"]

    code, out, err = await cluster.genaifactory("ask", "How many days?", "--route", "chat")
    assert (code, out) == (0, "Sixteen days.\n"), err
    code, out, err = await cluster.genaifactory("smoke", "--route", "chat", "--no-citation")
    assert code == 0, err
    assert "Answer    Sixteen days." in out
    code, out, err = await cluster.genaifactory("smoke", "--route", "chat")
    assert code == 1
    assert "cites nothing" in err
    code, out, err = await cluster.genaifactory("config", "check")
    valid, *compared = out.splitlines()
    assert (code, valid.endswith("is valid: routes chat")) == (0, True)
    assert "warning: knowledge_bases[documents]: no route searches it, so nobody reaches 7 documents" in err
    assert not compared

    for arguments in (("remove", "sample/leave.md"), ("export",), ("ingest", "--samples"), ("blocked",)):
        code, out, err = await cluster.genaifactory(*arguments, "--key", USER)
        assert (code, out) == (1, ""), arguments
        assert "The role 'user' has no permission" in err
        assert err.count("\n") == 1
    code, out, err = await cluster.genaifactory("config", "check", "--key", USER)
    assert "Not compared with what is stored: documents (The role 'user' has no permission 'operate'.)" in out
    trusting_another = {
        **cluster.environment,
        "GENAIFACTORY_CLUSTER__TLS__CA": str(other),
        "GENAIFACTORY_CLUSTER__PATIENCE_SECONDS": "3",
    }
    code, out, err = await local_testing.genaifactory("usage", environment=trusting_another)
    assert (code, out) == (1, "")
    assert KEY not in err


ENVIRONMENT = {
    "GENAIFACTORY_CLUSTER__HTTP_URL": "http://factory-gateway",
    "GENAIFACTORY_CLUSTER__GRPC_ADDRESS": "dns:///factory-gateway:50051",
    "GENAIFACTORY_CLUSTER__TLS__CA": "ca.crt",
}


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of a pod without keys, in a folder of its own; returns the factory.yaml that it follows."""
    monkeypatch.chdir(tmp_path)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GENAIFACTORY_API_KEY", raising=False)
    file = tmp_path / "factory.yaml"
    file.write_text(_factory())
    return file


def test_without_a_cluster_in_the_environment_the_platform_is_on_this_machine(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="No platform runs on"):
        endpoints.find(tmp_path)


def test_a_missing_environment_variable_is_named(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENAIFACTORY_CLUSTER__TLS__CA")
    with pytest.raises(InvalidArgument, match="GENAIFACTORY_CLUSTER__TLS is wrong: Field required"):
        endpoints.find(environment.parent)


def test_the_tenant_is_that_of_the_key(environment: Path) -> None:
    platform = endpoints.find(environment.parent)
    assert (platform.tenant(KEY), platform.tenant("gf-of-nobody")) == ("acme", "")


def test_a_missing_api_key_is_an_error_that_names_its_variable(environment: Path) -> None:
    platform = endpoints.find(environment.parent)
    with pytest.raises(InvalidArgument, match="set GENAIFACTORY_API_KEY"):
        platform.connected(None)


def test_an_authority_that_cannot_be_read_is_named(environment: Path) -> None:
    """Without it a key could be sent to another server under the gateway's name."""
    platform = endpoints.find(environment.parent)
    with pytest.raises(InvalidArgument, match=r"ca\.crt cannot be read"):
        platform.connected(KEY)
