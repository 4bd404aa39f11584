"""The configuration of the issuer's tests, and Secrets in memory that behave as a cluster's."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from genaifactory_common.errors import Conflict
from genaifactory_operator.configuration import Configuration
from genaifactory_operator.secret import Change, Secret

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
AUTHORITY = "factory-ca"
SERVICES = ("gateway", "monitor", "tools")


def wanted(**changes: Any) -> Configuration:
    """A configuration of three services, with a wait of two minutes."""
    document: dict[str, Any] = {
        "namespace": "genai",
        "authority": {"secret": AUTHORITY, "valid_days": 3650, "renew_before_days": 365},
        "certificates": {"valid_days": 90, "renew_before_days": 30},
        "issued": [
            {
                "secret": f"factory-{name}-tls",
                "identity": f"spiffe://cluster.local/ns/genai/sa/factory-{name}",
                "names": [f"factory-{name}", f"factory-{name}.genai.svc.cluster.local"],
            }
            for name in SERVICES
        ],
        "context_key": {"private_secret": "factory-context-key", "public_secrets": ["factory-context-public-key"]},
        "propagation_seconds": 120,
    }
    return Configuration.model_validate({**document, **changes})


class Memory:
    """Secrets, at first without data, as the chart creates them."""

    def __init__(self, names: Iterable[str]) -> None:
        self.secrets = {name: Secret(name, "1", {}) for name in names}

    def put(self, name: str, data: dict[str, bytes | None], changed: datetime | None) -> None:
        """Changes keys, whatever version the Secret has."""
        before = self.secrets[name]
        merged = {**before.data, **data}
        after = {key: value for key, value in merged.items() if value is not None}
        self.secrets[name] = Secret(name, str(int(before.version) + 1), after, changed)

    def apply(self, change: Change, now: datetime) -> None:
        """Applies a change of the issuer. Raises Conflict."""
        if self.secrets[change.secret.name].version != change.secret.version:
            raise Conflict("has changed since it was read")
        self.put(change.secret.name, dict(change.data), now)


def days(count: float) -> timedelta:
    """A time span."""
    return timedelta(days=count)
