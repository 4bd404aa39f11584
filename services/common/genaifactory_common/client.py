"""How a client in a pod reaches the platform on its cluster: the gateway's addresses, its authority, an API key.

The command line and the steps of the pipelines read it from the same variables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, SecretStr

from genaifactory_common import settings
from genaifactory_common.errors import InvalidArgument

if TYPE_CHECKING:
    import grpc.aio

PATIENCE_SECONDS = 30.0
"""How long a call waits for a gateway that restarts, unless the environment says otherwise."""


class Cluster(settings.Settings):
    """Addresses of the gateway of a platform on a cluster, for a pod there."""

    http_url: str = Field(description="Its OpenAI API, http://HOST:PORT.")
    grpc_address: str = Field(description="Its gRPC API, dns:///NAME:PORT.")
    tls: settings.Trust
    patience_seconds: float = Field(
        default=PATIENCE_SECONDS, ge=0, description="How long a command waits for a gateway that restarts."
    )

    def connected(self, key: str, *, patience_seconds: float | None = None) -> grpc.aio.Channel:
        """A channel to the gateway. patience_seconds: None: as the settings say.

        Raises InvalidArgument when there is no certificate authority.
        """
        from genaifactory_common import channels

        patience = self.patience_seconds if patience_seconds is None else patience_seconds
        return channels.connect(self.grpc_address, self.tls, patience_seconds=patience, api_key=key)


class Settings(settings.Common):
    """Settings of a client."""

    cluster: Cluster | None = Field(default=None, description="None: the platform is on this machine.")
    api_key: SecretStr | None = Field(default=None, description="For the gateway.")

    def key(self, *, option: str = "") -> str:
        """The API key. option: of a command, that gives one as well. Raises InvalidArgument when there is none."""
        if self.api_key is None:
            name = settings.variable(("api_key",))
            also = f"give {option}, or " if option else ""
            raise InvalidArgument(f"There is no API key: {also}set {name}.", field=option or name)
        return self.api_key.get_secret_value()
