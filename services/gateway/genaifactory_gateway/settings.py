"""The gateway's settings: addresses, bounds of requests, and the services behind it."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from genaifactory_common import formats, settings
from genaifactory_common.errors import InvalidArgument
from genaifactory_common.followed import Fixed, Followed
from genaifactory_common.passes import LONGEST_SECONDS
from genaifactory_common.settings import Tls
from genaifactory_common.tokens import LIFETIME_SECONDS, Signer


def _private_key(value: SecretStr) -> SecretStr:
    try:
        Signer.parse(value.get_secret_value())
    except InvalidArgument:
        raise ValueError("must be 32 bytes, base64") from None
    return value


_KEY = settings.variable(["context_private_key"])


class Http(settings.Settings):
    """The HTTP server. TLS is terminated before it, at the ingress."""

    address: str = Field(default="127.0.0.1:8080", description="HOST:PORT; port 0: any free one.")
    max_connections: int = Field(
        default=4096, ge=1, description="Further ones are closed at once. One address has at most three quarters."
    )
    max_body_bytes: int = Field(default=4 << 20, ge=1024, le=12 << 20, description="A larger body is refused with 413.")
    max_header_bytes: int = Field(default=32 << 10, ge=1024, description="Request line and headers of one request.")
    max_document_bytes: int = Field(
        default=formats.MAX_DOCUMENT_BYTES,
        ge=1,
        description="A larger document is refused with 413 before it is read; the retriever has its own bound.",
    )
    header_timeout_seconds: float = Field(default=15.0, gt=0, description="From the first byte to the last header.")
    body_timeout_seconds: float = Field(default=30.0, gt=0, description="From the headers to the end of the body.")
    write_timeout_seconds: float = Field(
        default=30.0, gt=0, description="A client that reads nothing for this long is disconnected."
    )
    keep_alive_seconds: float = Field(default=75.0, gt=0, description="How long an idle connection stays open.")
    max_connection_age_seconds: float = Field(
        default=60.0,
        gt=0,
        description="The next answer after this closes the connection, so that clients use new pods.",
    )
    linger_seconds: float = Field(
        default=0.0,
        ge=0,
        description="How long a gateway that stops accepts connections, and serves one more answer on each; part of "
        "server.drain_seconds.",
    )


class Transfers(settings.Settings):
    """Uploads and exports, which run long: each holds a few MiB and a call to a service."""

    max_concurrent: int = Field(
        default=16, ge=1, description="Running at once; further ones are refused as overloaded."
    )
    max_concurrent_per_tenant: int = Field(default=4, ge=1, description="Of one tenant.")
    idle_seconds: float = Field(default=120.0, gt=0, description="An upload without data for this long is ended.")
    timeout_seconds: float = Field(
        default=3600.0, gt=0, description="For a whole transfer; a gRPC client's own deadline shortens it."
    )


class BatchWorker(settings.Settings):
    """How this gateway answers the lines of batches, with less right than requests that somebody waits for."""

    max_concurrent: int = Field(default=4, ge=0, le=100, description="Lines at once; 0: this gateway answers none.")
    busy_share: float = Field(
        default=0.5, gt=0, le=1, description="While more of max_concurrent_requests are in use, no line is begun."
    )
    reserved_share: float = Field(
        default=0.2, ge=0, lt=1, description="Of a tenant's limits, left to its other requests."
    )
    max_attempts: int = Field(
        default=10, ge=1, description="At one line, while models or services fail; then the failure is its result."
    )
    lease_seconds: float = Field(
        default=30.0, ge=0.3, le=3600, description="After a gateway died, its lines go to another one after this."
    )
    poll_seconds: float = Field(default=2.0, gt=0, description="Between two looks for work while there is none.")


class Upstreams(settings.Settings):
    """Addresses of the services behind the gateway: dns:///NAME:PORT or unix:PATH."""

    orchestrator: str = "dns:///orchestrator:50051"
    monitor: str = "dns:///monitor:50051"
    retriever: str = Field(
        default="dns:///retriever:50051", description="For documents; searches go through the orchestrator."
    )
    safety: str = Field(
        default="dns:///safety:50051", description="For data to train on; answers are checked by the orchestrator."
    )
    modelserver: str = Field(
        default="",
        description="For adapters: a name that resolves to the addresses of all replicas; empty: none.",
    )
    tls: Tls | None = Field(default=None, description="The gateway's certificate for them; None only for unix sockets.")
    patience_seconds: float = Field(
        default=30.0, ge=0, description="How long requests wait for a service that restarts; 0: they fail at once."
    )
    health_timeout_seconds: float = Field(default=1.0, gt=0, description="For one check of their health.")
    record_timeout_seconds: float = Field(default=10.0, gt=0, description="For one call to a running monitor.")
    documents_timeout_seconds: float = Field(default=30.0, gt=0, description="For one call to a running retriever.")
    check_timeout_seconds: float = Field(default=10.0, gt=0, description="For safety's check of one text.")
    conversations_timeout_seconds: float = Field(
        default=10.0, gt=0, description="For one call to the orchestrator about stored conversations."
    )


class Settings(settings.Common):
    """The gateway's settings."""

    http: Http = Http()
    upstreams: Upstreams = Upstreams()
    transfers: Transfers = Transfers()
    batch_worker: BatchWorker = BatchWorker()
    max_concurrent_requests: int = Field(
        default=512,
        ge=1,
        description="Of HTTP and gRPC together, counted once they are complete; further ones are refused at once as "
        "overloaded. One tenant has at most three quarters.",
    )
    max_body_bytes_at_once: int = Field(
        default=64 << 20,
        ge=16 << 20,
        description="Bodies of all requests under way, counted by their Content-Length from the beginning; further "
        "ones are refused at once as overloaded. One tenant has at most three quarters.",
    )
    context_private_key: Annotated[SecretStr, AfterValidator(_private_key)] = Field(
        description="Signs the callers' tokens: an Ed25519 key, 32 bytes in base64. Only the gateway has it. Changes "
        "of a file are applied."
    )
    context_token_seconds: float = Field(
        default=LONGEST_SECONDS,
        ge=LIFETIME_SECONDS,
        description="Longest validity of a token, also for a request with a later deadline. A replaced key is accepted "
        "for as long.",
    )

    def signer(self) -> Followed[Signer]:
        """The signing key. Raises InvalidArgument."""
        if settings.is_file(_KEY):
            return Followed("the signing key", lambda: settings.secret(_KEY) or "", Signer.parse)
        return Fixed(Signer.parse(self.context_private_key.get_secret_value()))
