"""Certificates in files, as the kubelet mounts and replaces them, for tests of mTLS."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from genaifactory_common import settings
from genaifactory_common.certificates import Authority

GATEWAY = "spiffe://cluster.local/ns/genai/sa/factory-gateway"
"""The identity of the certificates, unless another is given."""

DAY = timedelta(days=1)


def new_authority(name: str = "Test CA") -> Authority:
    """A new authority, valid for two days, so that it outlives what it signs."""
    return Authority.create(name, valid=2 * DAY)


def write(
    folder: Path,
    authority: Authority,
    identity: str = GATEWAY,
    names: Sequence[str] = ("localhost",),
    *,
    trusted: Sequence[Authority] | None = None,
    now: datetime | None = None,
) -> settings.Tls:
    """Writes tls.crt, tls.key and ca.crt into the folder, all at once, replacing those that are there.

    The certificate is valid for a day from `now`. trusted: the authorities in ca.crt; None: the one that signs.
    """
    issued = authority.issue(identity, names, valid=DAY, now=now)
    contents = {
        "tls.crt": issued.certificate,
        "tls.key": issued.key,
        "ca.crt": b"".join(each.pem for each in trusted or (authority,)),
    }
    version = folder / f"..{uuid.uuid4().hex}"
    version.mkdir(parents=True)
    for name, content in contents.items():
        (version / name).write_bytes(content)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..data", name))
    next_data = folder / "..data_tmp"
    next_data.symlink_to(version.name)
    next_data.replace(folder / "..data")
    return settings.Tls(certificate=folder / "tls.crt", private_key=folder / "tls.key", ca=folder / "ca.crt")
