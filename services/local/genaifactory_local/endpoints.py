"""Addresses of a running platform, on this machine or on a cluster, and the API key of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from genaifactory_common import client, settings, specs
from genaifactory_local import state

if TYPE_CHECKING:
    import grpc.aio


class Platform(Protocol):
    """A running platform: the addresses of its gateway, and an API key."""

    @property
    def http_url(self) -> str:
        """Of the OpenAI API."""

    @property
    def collector(self) -> str:
        """Where its spans are sent, in words; empty: they are in the state folder."""

    def key(self) -> str:
        """An API key. Raises InvalidArgument when there is none."""

    def connected(self, key: str | None, *, patience_seconds: float | None = None) -> grpc.aio.Channel:
        """A channel to the gateway with the key, which waits so long for a gateway that restarts.

        key, patience_seconds: None: the platform's own. Raises InvalidArgument when there is no key, or no certificate
        authority.
        """

    def factory(self) -> specs.Factory:
        """The factory.yaml that it follows. Raises InvalidConfiguration."""

    def tenant(self, key: str) -> str:
        """Name of the key's tenant; empty for a key that is not in its factory.yaml."""


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

    def connected(self, key: str | None, *, patience_seconds: float | None = None) -> grpc.aio.Channel:
        """To a port of this machine."""
        from genaifactory_common import channels

        patience = client.PATIENCE_SECONDS if patience_seconds is None else patience_seconds
        return channels.connect(self._endpoints.grpc_address, patience_seconds=patience, api_key=key or self.key())

    def factory(self) -> specs.Factory:
        """The file that the platform follows."""
        return specs.load(Path(self._endpoints.factory))

    def tenant(self, key: str) -> str:
        """The first tenant for the development key, which is not in factory.yaml."""
        return self._endpoints.tenant if key == self.key() else _tenant(key, self.factory())


class OnACluster:
    """The platform that the chart installed, for a pod in its namespace."""

    def __init__(self, where: client.Cluster, own: client.Settings) -> None:
        self.http_url = where.http_url
        self.collector = "the collector that the chart's global.otlpEndpoint names, if it names one"
        self._where = where
        self._own = own

    def key(self) -> str:
        """From the environment."""
        return self._own.key(option="--key")

    def connected(self, key: str | None, *, patience_seconds: float | None = None) -> grpc.aio.Channel:
        """By its name in the cluster's DNS."""
        return self._where.connected(key or self.key(), patience_seconds=patience_seconds)

    def factory(self) -> specs.Factory:
        """The file that is mounted into the pods."""
        return specs.load(self._own.factory_file)

    def tenant(self, key: str) -> str:
        """From factory.yaml."""
        return _tenant(key, self.factory())


def find(folder: Path) -> Platform:
    """The platform on a cluster, where the environment names one, else the one that runs on the state folder.

    Raises Unavailable when none runs there, InvalidArgument when the environment is wrong.
    """
    own = settings.load(client.Settings)
    return OnThisMachine(folder) if own.cluster is None else OnACluster(own.cluster, own)


def _tenant(key: str, factory: specs.Factory) -> str:
    sha256 = specs.hash_key(key)
    return next((tenant.name for tenant in factory.tenants for each in tenant.keys if each.sha256 == sha256), "")
