"""Reads Secrets on a Kubernetes cluster, and changes them unless they have changed since they were read."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Self

import httpx2
from lightkube import ApiError, Client, KubeConfig
from lightkube.core.exceptions import ConfigError
from lightkube.resources import core_v1
from lightkube.types import PatchType

from genaifactory_common.errors import Conflict, FactoryError, Internal, NotFound, PermissionDenied, Unavailable
from genaifactory_operator.secret import Change, Secret

CHANGED = "genaifactory.dev/changed"
"""Annotation with the time of the issuer's last change, from which the wait between two steps of a rotation counts."""

_TIMEOUT_SECONDS = 15.0
_CONFLICT = 409
_ABSENT = 404
_FORBIDDEN = frozenset({401, 403})


class Secrets:
    """The Secrets of one namespace; a context manager. Needs the verbs get and patch on those that it accesses."""

    def __init__(self, namespace: str) -> None:
        """Connects as the pod's ServiceAccount or, outside of a cluster, by KUBECONFIG. Raises Unavailable."""
        self._namespace = namespace
        try:
            self._client = Client(
                KubeConfig.from_env(),
                timeout=httpx2.Timeout(_TIMEOUT_SECONDS),
                field_manager="genaifactory-issuer",
                trust_env=False,
            )
        except (ConfigError, OSError, KeyError, ValueError) as error:
            raise Unavailable(f"There is no Kubernetes cluster to connect to: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def read(self, name: str) -> Secret:
        """The Secret of this name. Raises FactoryError that names the Secret and what is missing."""
        with self._translated(name, "get"):
            found = self._client.get(core_v1.Secret, name, namespace=self._namespace)
        metadata = found.metadata
        assert metadata is not None
        assert metadata.resourceVersion is not None
        data = {key: base64.b64decode(value) for key, value in (found.data or {}).items()}
        changed = (metadata.annotations or {}).get(CHANGED)
        return Secret(name, metadata.resourceVersion, data, _time(changed))

    def apply(self, change: Change, now: datetime) -> None:
        """Patches the Secret. Raises Conflict when it has changed since it was read, else FactoryError as `read`."""
        patch = {
            "metadata": {"resourceVersion": change.secret.version, "annotations": {CHANGED: now.isoformat()}},
            "data": {
                key: None if value is None else base64.b64encode(value).decode() for key, value in change.data.items()
            },
        }
        name = change.secret.name
        with self._translated(name, "patch"):
            self._client.patch(core_v1.Secret, name, patch, namespace=self._namespace, patch_type=PatchType.MERGE)

    @contextmanager
    def _translated(self, name: str, verb: str) -> Iterator[None]:
        """Raises the API's errors as FactoryError."""
        try:
            yield
        except ApiError as error:
            raise self._error(name, verb, error) from None
        except httpx2.HTTPError as error:
            raise Unavailable(f"The Kubernetes API does not answer ({type(error).__name__}: {error}).") from None

    def _error(self, name: str, verb: str, error: ApiError) -> FactoryError:
        secret = f"The Secret {self._namespace}/{name}"
        code = error.status.code
        if code == _CONFLICT:
            return Conflict(f"{secret} has changed since it was read.")
        if code == _ABSENT:
            return NotFound(f"{secret} does not exist. The issuer fills Secrets; the chart creates them.")
        if code in _FORBIDDEN:
            return PermissionDenied(f"{secret} is forbidden to the issuer: its Role needs the verb '{verb}' on it.")
        return Internal(f"{secret}: the Kubernetes API refuses {verb}: {error.status.message}")


def _time(text: str | None) -> datetime | None:
    try:
        found = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    return found if found is not None and found.tzinfo is not None else None
