"""Where a running platform answers, on this machine or on a cluster, and the key that the command line shows it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pydantic import Field, SecretStr

from genaifactory_common import settings, specs
from genaifactory_common.errors import InvalidArgument
from genaifactory_local import environment, state

if TYPE_CHECKING:
    import grpc.aio

PATIENCE_SECONDS = 30.0
"""How long a command waits for a gateway that restarts."""


class Platform(Protocol):
    """A running platform: where its gateway is, and the key to show there."""

    @property
    def http_url(self) -> str:
        """Of the OpenAI API."""

    @property
    def collector(self) -> str:
        """Where its spans go, in words; empty: into the state folder."""

    def key(self) -> str:
        """An API key. Raises InvalidArgument when there is none."""

    def connected(self, key: str | None, *, patience_seconds: float = PATIENCE_SECONDS) -> grpc.aio.Channel:
        """A channel to the gateway that shows the key, and waits so long for a gateway that restarts.

        key: None: the platform's own. Raises InvalidArgument when there is none, or no authority to trust.
        """

    def factory(self) -> specs.Factory:
        """The factory.yaml that it follows. Raises InvalidConfiguration."""

    def tenant(self, key: str) -> str:
        """Name of the key's tenant; empty for a key that its factory.yaml does not hold."""


class OnThisMachine:
    """The platform that `genaifactory run` started on a state folder."""

    def __init__(self, folder: Path) -> None:
        """Raises Unavailable when none runs on it."""
        self._state, self._endpoints = state.find_running(folder)
        self.http_url = self._endpoints.http_url
        self.collector = self._endpoints.collector

    def key(self) -> str:
        """The development key."""
        return state.development_key(self._state)

    def connected(self, key: str | None, *, patience_seconds: float = PATIENCE_SECONDS) -> grpc.aio.Channel:
        """On a port of this machine."""
        from genaifactory_common import channels

        return channels.connect(
            self._endpoints.grpc_address, patience_seconds=patience_seconds, api_key=key or self.key()
        )

    def factory(self) -> specs.Factory:
        """What the platform follows."""
        return specs.load(Path(self._endpoints.factory))

    def tenant(self, key: str) -> str:
        """The first for the development key, which factory.yaml does not hold."""
        return self._endpoints.tenant if key == self.key() else _tenant(key, self.factory())


class Cluster(settings.Settings):
    """Where the gateway of a platform on a cluster is, as seen from a pod there."""

    http_url: str = Field(description="Its OpenAI API, http://HOST:PORT.")
    grpc_address: str = Field(description="Its gRPC API, dns:///NAME:PORT.")
    tls: settings.Trust


class Settings(settings.Common):
    """What the command line reads from the environment."""

    cluster: Cluster | None = Field(default=None, description="None: the platform is on this machine.")
    api_key: SecretStr | None = Field(default=None, description="What is shown to the gateway.")


class OnACluster:
    """The platform that a chart installed, from a pod beside it."""

    def __init__(self, where: Cluster, own: Settings) -> None:
        self.http_url = where.http_url
        self.collector = "the collector that the chart's global.otlpEndpoint names, if it names one"
        self._where = where
        self._own = own

    def key(self) -> str:
        """Of the environment."""
        if self._own.api_key is None:
            raise InvalidArgument("There is no API key: give --key, or set GENAIFACTORY_API_KEY.", field="--key")
        return self._own.api_key.get_secret_value()

    def connected(self, key: str | None, *, patience_seconds: float = PATIENCE_SECONDS) -> grpc.aio.Channel:
        """By its name in the cluster's DNS."""
        from genaifactory_common import channels

        where = self._where
        return channels.connect(
            where.grpc_address, where.tls, patience_seconds=patience_seconds, api_key=key or self.key()
        )

    def factory(self) -> specs.Factory:
        """What the pods are given."""
        return specs.load(self._own.factory_file)

    def tenant(self, key: str) -> str:
        """As factory.yaml has it."""
        return _tenant(key, self.factory())


def find(folder: Path) -> Platform:
    """The platform on a cluster, where the environment says so, else the one that runs on the state folder.

    Raises Unavailable when none runs there, InvalidArgument when the environment is wrong.
    """
    own = environment.load(Settings)
    return OnThisMachine(folder) if own.cluster is None else OnACluster(own.cluster, own)


def _tenant(key: str, factory: specs.Factory) -> str:
    sha256 = specs.hash_key(key)
    return next((tenant.name for tenant in factory.tenants for each in tenant.keys if each.sha256 == sha256), "")
