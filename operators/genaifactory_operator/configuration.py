"""Configuration of the certificate issuer: which Secrets it fills, with what, and for how long that is valid."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import Field, StringConstraints, ValidationError, model_validator

from genaifactory_common import settings
from genaifactory_common.errors import InvalidArgument
from genaifactory_common.passes import LONGEST_SECONDS

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
"""The name of a Kubernetes object."""
DnsName = Annotated[str, StringConstraints(pattern=r"^(\*\.)?[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]


class Authority(settings.Settings):
    """The Secret of the certificate authority."""

    secret: Name
    external: bool = Field(
        default=False,
        description="It is your own: used as it is, never made, renewed or replaced. The first certificate in ca.crt "
        "signs; those after it are trusted too, so that you can replace it in steps.",
    )
    valid_days: int = Field(default=3650, ge=1)
    renew_before_days: int = Field(default=365, ge=0)


class Certificates(settings.Settings):
    """How long the services' certificates are valid."""

    valid_days: int = Field(default=90, ge=1)
    renew_before_days: int = Field(default=30, ge=0)


class Issued(settings.Settings):
    """One service's certificate."""

    secret: Name
    identity: str = Field(pattern=r"^spiffe://[a-z0-9.-]+/[A-Za-z0-9._/-]+$")
    names: tuple[DnsName, ...] = Field(min_length=1)


class ContextKey(settings.Settings):
    """The key with which the gateway signs callers' tokens."""

    private_secret: Name
    public_secrets: tuple[Name, ...] = ()
    rotate_after_days: int = Field(default=90, ge=1, description="The age at which it is replaced.")
    token_seconds: float = Field(
        default=LONGEST_SECONDS,
        gt=0,
        description="Longest life of a token that the gateway signs (its context_token_seconds): a key that is "
        "replaced is trusted for as long.",
    )


class Configuration(settings.Settings):
    """The whole configuration."""

    namespace: Name
    authority: Authority | None = Field(default=None, description="None: no certificates are issued.")
    certificates: Certificates = Certificates()
    issued: tuple[Issued, ...] = ()
    context_key: ContextKey | None = None
    propagation_seconds: float = Field(
        default=120.0,
        ge=0,
        description="How long a change of a Secret takes to reach every pod; a kubelet needs up to 90 s.",
    )

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every Secret that is named; those from which the content of others follows come last: see `issuer`."""
        names = [each.secret for each in self.issued]
        if self.context_key is not None:
            names += [*self.context_key.public_secrets, self.context_key.private_secret]
        return (*names, self.authority.secret) if self.authority is not None else tuple(names)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.issued and self.authority is None:
            raise ValueError("issued needs an authority that signs")
        twice = [name for name, count in Counter(self.secrets).items() if count > 1]
        if twice:
            raise ValueError(f"the Secret '{twice[0]}' is named twice")
        if self.certificates.renew_before_days >= self.certificates.valid_days:
            raise ValueError("certificates.renew_before_days must be less than certificates.valid_days")
        authority = self.authority
        if authority is not None and not authority.external:
            if authority.renew_before_days >= authority.valid_days:
                raise ValueError("authority.renew_before_days must be less than authority.valid_days")
            # Otherwise certificates that the ageing authority signs would be due for renewal at once.
            if authority.renew_before_days <= self.certificates.renew_before_days:
                raise ValueError("authority.renew_before_days must be more than certificates.renew_before_days")
        return self


def load(path: Path) -> Configuration:
    """The configuration in a file, YAML or JSON. Raises InvalidArgument that names every bad field."""
    try:
        return Configuration.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}.", field="--config") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path} is not YAML: {error}", field="--config") from None
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in each['loc']) or 'document'}: {each['msg'].removeprefix('Value error, ')}"
            for each in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise InvalidArgument(f"{path}: {'; '.join(problems)}", field="--config") from None
