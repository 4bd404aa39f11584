"""The settings that every service shares, read from the environment once: addresses, paths and secrets.

What a person configures is in factory.yaml (`specs`). Where others can read an environment, secrets are files of a
folder instead.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from genaifactory_common import tokens
from genaifactory_common.errors import InvalidArgument
from genaifactory_common.followed import Fixed, Followed


def _key_bytes(value: object) -> object:
    if isinstance(value, str):
        try:
            value = base64.b64decode(value, validate=True)
        except binascii.Error:
            raise ValueError("must be base64") from None
    if isinstance(value, bytes) and len(value) != 32:
        raise ValueError("must be 32 bytes, base64")
    return value


_PREFIX = "GENAIFACTORY_"
SECRETS_DIR = f"{_PREFIX}SECRETS_DIR"
"""The variable that names the folder of secrets: files named as the variables that they replace."""


def variable(path: Iterable[object]) -> str:
    """The environment variable of a setting: ("server", "address") is GENAIFACTORY_SERVER__ADDRESS."""
    return (_PREFIX + "__".join(str(part) for part in path)).upper()


def secret(name: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """The variable's value, else the present content of its file among the secrets; None when there is neither.

    Raises InvalidArgument when the file cannot be read.
    """
    if value := environ.get(name):
        return value
    if not (folder := environ.get(SECRETS_DIR)):
        return None
    try:
        return (Path(folder) / name).read_text(encoding="utf-8").rstrip("\r\n")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError):
        raise InvalidArgument(f"{name} in {SECRETS_DIR} cannot be read as text.", field=name) from None


def is_file(name: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether `secret` reads a file for the variable, which may change while a service runs."""
    folder = environ.get(SECRETS_DIR)
    return bool(folder) and not environ.get(name) and (Path(folder or "") / name).is_file()


class _SecretFiles(EnvSettingsSource):
    """The files that replace variables, parsed as these are: nested groups and JSON as well."""

    def _load_env_vars(self) -> Mapping[str, str | None]:
        folder = os.environ.get(SECRETS_DIR)
        if not folder:
            return {}
        try:
            # Kubernetes mounts a folder ..data beside them, and secrets that are no settings.
            names = [name for name in os.listdir(folder) if name.startswith(_PREFIX)]
        except OSError as error:
            raise InvalidArgument(f"{SECRETS_DIR} names no folder: {error.strerror}.", field=SECRETS_DIR) from None
        return {name.lower(): secret(name, {SECRETS_DIR: folder}) for name in names}


def _key_set(value: str) -> str:
    try:
        tokens.parse_jwks(value)
    except InvalidArgument as error:
        raise ValueError(error.message) from None
    return value


KEY_SET, KEY = variable(["context_public_keys"]), variable(["context_public_key"])

KeySet = Annotated[str, AfterValidator(_key_set)]
"""Ed25519 public keys as a JSON Web Key Set."""
PublicKey = Annotated[bytes, BeforeValidator(_key_bytes)]
"""An Ed25519 public key: 32 bytes, base64 in the environment."""


class Settings(BaseModel):
    """Base of every group: immutable, no unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Trust(Settings):
    """TLS of a client with an API key instead of a certificate. Changes of the file are followed."""

    ca: Path = Field(description="PEM bundle of the authorities that sign the peers' certificates.")


class Tls(Trust):
    """mTLS: this service's certificate and the authorities that it trusts. Changes of the files are followed."""

    certificate: Path = Field(description="PEM chain of this service.")
    private_key: Path = Field(description="PEM key of this service.")


class Server(Settings):
    """A service's listeners and their bounds."""

    address: str = Field(default="127.0.0.1:50051", description="HOST:PORT (port 0: any free one) or unix:PATH.")
    health_address: str | None = Field(
        default=None, description="HOST:PORT that serves grpc.health.v1 without TLS, for the kubelet's probes, if set."
    )
    metrics_port: int | None = Field(default=None, ge=0, le=65535, description="Serve Prometheus metrics here, if set.")
    drain_seconds: float = Field(default=25.0, ge=0, description="How long running calls may finish after SIGTERM.")
    quiet_seconds: float = Field(
        default=3.0,
        ge=0,
        description="A server on a port that stops accepts calls until none has come for this long, so that clients "
        "notice and use another replica; at most half of drain_seconds.",
    )
    parent_pid: int | None = Field(
        default=None,
        ge=1,
        description="The process that starts this one: once it has ended, in any way, this one stops as on SIGTERM.",
    )
    max_concurrent_calls: int = Field(default=1024, ge=1, description="More are refused at once as overloaded.")
    max_connection_age_seconds: float = Field(
        default=300.0, gt=0, description="Clients reconnect after this, and so find new replicas."
    )
    default_timeout_seconds: float = Field(default=600.0, gt=0, description="For calls without a deadline.")
    tls: Tls | None = Field(
        default=None,
        description="None: callers are accepted only on unix sockets. The gateway, whose clients send API keys, "
        "requires no certificates.",
    )
    callers: tuple[str, ...] = Field(
        default=(),
        description="URIs of the certificates that may call, spiffe://DOMAIN/ns/NAMESPACE/sa/NAME; required with tls, "
        "except at the gateway.",
    )


class Space(Settings):
    """Room on the volume of data_dir."""

    low_bytes: int = Field(
        default=256 << 20,
        ge=0,
        description="Less free space than this is reported (metrics, /readyz, log). At most a quarter of the volume.",
    )
    full_bytes: int = Field(
        default=32 << 20,
        ge=0,
        description="With less free space than this nothing new is accepted. At most an eighth of the volume.",
    )
    spare_bytes: int = Field(
        default=4 << 20,
        ge=0,
        description="Reserved in a file, for what was accepted before the volume was full, and for deletions.",
    )


class Telemetry(Settings):
    """Traces and logs."""

    otlp_endpoint: str | None = Field(
        default=None, description="OTLP/gRPC collector, http://HOST:PORT; None: no spans are sent."
    )
    spans_file: Path | None = Field(
        default=None,
        description="Without a collector: SQLite file of the spans of recent requests, bounded.",
    )
    sample_ratio: float = Field(default=1.0, ge=0, le=1, description="Share of traces begun here that are kept.")
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    log_format: str = Field(default="json", pattern="^(json|text)$")


class Common(BaseSettings):
    """The settings of every service; each service's Settings extends it.

    The environment variable of server.metrics_port is GENAIFACTORY_SERVER__METRICS_PORT. A file of that name in the
    folder GENAIFACTORY_SECRETS_DIR may replace it.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,  # the input of a failed check may be a secret
    )

    server: Server = Server()
    telemetry: Telemetry = Telemetry()
    factory_file: Path = Field(default=Path("factory.yaml"), description="The factory.yaml to follow.")
    context_public_keys: KeySet | None = Field(
        default=None, description="Verifies the callers' tokens that the gateway signs. Changes of a file are followed."
    )
    context_public_key: PublicKey | None = Field(
        default=None, description="One key instead of a set, where keys are not rotated."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Variables override the files of their names. Raises InvalidArgument when the folder cannot be read."""
        return init_settings, env_settings, _SecretFiles(settings_cls)

    def verifier(self) -> tokens.Verifier:
        """Verifies callers' tokens. Raises InvalidArgument without a public key: only the gateway needs none."""
        if self.context_public_keys is None and self.context_public_key is None:
            raise InvalidArgument(
                f"{KEY_SET}, or {KEY}, must be set: it verifies callers' tokens.", field="context_public_keys"
            )
        if is_file(KEY_SET) or is_file(KEY):
            return tokens.Verifier(Followed("callers' public keys", _public_keys, tokens.parse_jwks))
        if self.context_public_keys is not None:
            return tokens.Verifier(Fixed(tokens.parse_jwks(self.context_public_keys)))
        assert self.context_public_key is not None
        return tokens.Verifier(Fixed(tokens.key_set([self.context_public_key])))


def _public_keys() -> str:
    """The present key set. A Secret of a former version holds one key instead."""
    if (text := secret(KEY_SET)) is not None:
        return text
    try:
        key = _key_bytes(secret(KEY) or "")
    except ValueError as error:
        raise InvalidArgument(f"{KEY} {error}", field=KEY) from None
    assert isinstance(key, bytes)
    return tokens.jwks([key])


AnySettings = TypeVar("AnySettings", bound=Common)


def load(kind: type[AnySettings]) -> AnySettings:
    """The settings from the environment, for a command, whose errors are one line each.

    Raises InvalidArgument that names the environment variable.
    """
    try:
        return kind()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = variable(first["loc"])
        raise InvalidArgument(f"The environment variable {name} is wrong: {first['msg']}.", field=name) from None
