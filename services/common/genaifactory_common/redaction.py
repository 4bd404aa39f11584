"""Addresses in messages and logs, without what may be secret in them."""

from __future__ import annotations

import re

_SECRETS = re.compile(r"(?<=//)[^/\s@]*@|[?#][^\s)'\"]*")


def without_secrets(text: str) -> str:
    """An address, or a text with addresses in it, without user, password and query."""
    return _SECRETS.sub("", text)
