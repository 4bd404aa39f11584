"""Ports for servers whose port a test has to know before they start."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 20_000  # Ray gives those below to its workers


def free_port() -> int:
    """A port of localhost without a listener, below those that the kernel gives to clients.

    One of theirs may be taken by any program's connection before the server starts.
    """
    above = int(_EPHEMERAL.read_text().split()[0])
    while True:
        port = random.randrange(_LOWEST, above)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
