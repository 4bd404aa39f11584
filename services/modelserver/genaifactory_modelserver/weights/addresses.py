"""Addresses of weights and adapters as configuration and requests write them: read strictly."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from genaifactory_common.errors import InvalidArgument
from genaifactory_common.redaction import without_secrets


def scheme(address: str) -> str:
    """The address's scheme, lower case; empty for a path."""
    head, colon, _ = address.partition(":")
    return head.lower() if colon and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", head) else ""


def folder(address: str, *, field: str) -> Path:
    """The folder of an absolute path or a file:// address. Raises InvalidArgument."""
    path = address
    if scheme(address) == "file":
        parts = urlsplit(address)
        if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
            raise InvalidArgument(f"'{without_secrets(address)}' is no local folder; write file:///PATH.", field=field)
        path = unquote(parts.path)
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgument(
            f"The folder '{without_secrets(address)}' must be an absolute path, as /models/tiny.", field=field
        )
    return Path(path)


def mirror(address: str, *, field: str) -> str:
    """A mirror's folder, with a slash at its end. Raises InvalidArgument."""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if not host:
        raise InvalidArgument(f"'{without_secrets(address)}' is no address; write https://HOST/FOLDER/.", field=field)
    if parts.query or parts.fragment:
        raise InvalidArgument(f"'{without_secrets(address)}': a mirror's address has no ? and no #.", field=field)
    if parts.scheme.lower() != "https" and not (parts.scheme.lower() == "http" and loopback(host)):
        raise InvalidArgument(
            f"'{without_secrets(address)}': only https:// is taken, and http:// on this machine.", field=field
        )
    return address if address.endswith("/") else f"{address}/"


def loopback(host: str) -> bool:
    """Whether the host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
