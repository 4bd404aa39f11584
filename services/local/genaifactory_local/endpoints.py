"""Where a running platform answers and as whom the command line speaks to it: on this machine, or on a cluster."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from pydantic import Field, SecretStr

from genaifactory_common import settings, specs
from genaifactory_common.errors import InvalidArgument, Unavailable
from genaifactory_common.identity import Signer
from genaifactory_local import configuration, environment, state

Service = Literal["retriever", "orchestrator", "monitor"]
"""What the command line calls beside the gateway."""

TOOLS = "tools"
"""As whom it does so on a cluster, in traces and records."""

PATIENCE_SECONDS = 30.0
"""How long a command waits for a service that restarts."""


class Platform(Protocol):
    """A running platform, and the right to speak to it."""

    @property
    def http_url(self) -> str:
        """Of the OpenAI API."""

    @property
    def grpc_address(self) -> str:
        """Of the gateway's gRPC API."""

    @property
    def tls(self) -> settings.Tls | None:
        """What to show servers and whom of them to trust; None where only this machine's user can reach them."""

    @property
    def collector(self) -> str:
        """Where its spans go, in words; empty: into the state folder."""

    def address(self, service: Service) -> str:
        """gRPC address of an inner service. Raises Unavailable for one that the command line does not reach."""

    def key(self) -> str:
        """An API key. Raises InvalidArgument when there is none."""

    def tenant(self, wanted: str | None) -> str:
        """The tenant that is meant: `wanted`, or the only one. Raises InvalidArgument when it is not clear, or none."""

    def factory(self) -> specs.Factory:
        """The factory.yaml that it follows. Raises InvalidConfiguration."""

    def signing_in(self, tenant: str) -> Callable[[], None]:
        """Makes the running task's calls come from the tenant's administrator, for identity.LIFETIME_SECONDS a time.

        Raises InvalidArgument when there is no key to sign with.
        """


class OnThisMachine:
    """The platform that `genaifactory run` started on a state folder."""

    tls = None

    def __init__(self, folder: Path) -> None:
        """Raises Unavailable when none runs on it."""
        self._state, self._endpoints = state.find_running(folder)
        self.http_url = self._endpoints.http_url
        self.grpc_address = self._endpoints.grpc_address
        self.collector = self._endpoints.collector

    def address(self, service: Service) -> str:
        """Its unix socket."""
        return self._endpoints.socket(service)

    def key(self) -> str:
        """The development key."""
        return state.development_key(self._state)

    def factory(self) -> specs.Factory:
        """What the platform follows."""
        return specs.load(Path(self._endpoints.factory))

    def tenant(self, wanted: str | None) -> str:
        """The development key's, unless another is wanted."""
        return _known_tenant(wanted, self.factory()) if wanted else self._endpoints.tenant

    def signing_in(self, tenant: str) -> Callable[[], None]:
        """With the state folder's signing key."""
        signer = state.signer(self._state)
        return lambda: configuration.sign_in(signer, tenant)


class Cluster(settings.Settings):
    """Where the services of a platform on a cluster are, as seen from a pod there."""

    http_url: str = Field(description="The gateway's OpenAI API, http://HOST:PORT.")
    grpc_address: str = Field(description="The gateway's gRPC API, dns:///NAME:PORT.")
    retriever: str = Field(description="dns:///NAME:PORT")
    monitor: str = Field(description="dns:///NAME:PORT")
    tls: settings.Tls


class Settings(settings.Common):
    """What the command line reads from the environment."""

    cluster: Cluster | None = Field(default=None, description="None: the platform is on this machine.")
    context_private_key: SecretStr | None = Field(
        default=None, description="Signs the caller contexts, as the gateway does: 32 bytes in base64."
    )
    api_key: SecretStr | None = Field(default=None, description="For what is asked of the gateway.")


class OnACluster:
    """The platform that a chart installed, from a pod beside it that holds its keys."""

    def __init__(self, where: Cluster, own: Settings) -> None:
        self.http_url = where.http_url
        self.grpc_address = where.grpc_address
        self.tls = where.tls
        self.collector = "the collector that the chart's global.otlpEndpoint names, if it names one"
        self._where = where
        self._own = own

    def address(self, service: Service) -> str:
        """Its name in the cluster's DNS."""
        if service == "orchestrator":
            raise Unavailable("The tools of a cluster do not reach the orchestrator; its log says what is hidden.")
        return self._where.retriever if service == "retriever" else self._where.monitor

    def key(self) -> str:
        """Of the environment."""
        if self._own.api_key is None:
            raise InvalidArgument("There is no API key: give --key, or set GENAIFACTORY_API_KEY.", field="--key")
        return self._own.api_key.get_secret_value()

    def factory(self) -> specs.Factory:
        """What the pods are given."""
        return specs.load(self._own.factory_file)

    def tenant(self, wanted: str | None) -> str:
        """One of factory.yaml."""
        factory = self.factory()
        names = [tenant.name for tenant in factory.tenants]
        if wanted is None and len(names) > 1:
            raise InvalidArgument(f"Say for which tenant, with --tenant: {', '.join(names)}.", field="--tenant")
        return _known_tenant(wanted or names[0], factory)

    def signing_in(self, tenant: str) -> Callable[[], None]:
        """With the gateway's key, under a name of the command line's own."""
        if self._own.context_private_key is None:
            raise InvalidArgument("GENAIFACTORY_CONTEXT_PRIVATE_KEY must be set: it signs whom a call is for.")
        try:
            signer = Signer(base64.b64decode(self._own.context_private_key.get_secret_value(), validate=True))
        except (binascii.Error, ValueError):
            raise InvalidArgument("GENAIFACTORY_CONTEXT_PRIVATE_KEY must be 32 bytes, base64.") from None
        return lambda: configuration.sign_in(signer, tenant, TOOLS)


def find(folder: Path) -> Platform:
    """The platform on a cluster, where the environment says so, else the one that runs on the state folder.

    Raises Unavailable when none runs there, InvalidArgument when the environment is wrong.
    """
    own = environment.load(Settings)
    return OnThisMachine(folder) if own.cluster is None else OnACluster(own.cluster, own)


def _known_tenant(name: str, factory: specs.Factory) -> str:
    names = [tenant.name for tenant in factory.tenants]
    if name not in names:
        raise InvalidArgument(f"There is no tenant '{name}'; there are: {', '.join(names)}.", field="--tenant")
    return name
