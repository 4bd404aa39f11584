"""Which addresses a page may come from: a URL, or a redirect, must not reach what only this machine can reach."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port -> addresses. Raises OSError."""

_NAT64 = IPv6Network("64:ff9b::/96")


class Refused(Exception):
    """The host must not be connected to; the message continues "the page ..."."""


async def resolve(host: str, port: int) -> Sequence[str]:
    """By the system's resolver. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


async def addresses(host: str, port: int, resolver: Resolve, *, private: bool) -> Sequence[str]:
    """Addresses of a host, to connect to without looking its name up again: it could name another one by then.

    private: whether those of private networks and of this machine are allowed. Raises Refused when one of them is not
    allowed, and OSError when the host is unknown.
    """
    found = await resolver(host, port)
    for each in found:
        address = _plain(ip_address(each))
        if _is_never(address):
            raise Refused(f"is on {host}, whose address {each} is no address of a web page")
        if not private and not address.is_global:
            raise Refused(f"is on {host}, whose address {each} is not public; private_addresses would allow it")
    return found


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 address stands for."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
        if address.sixtofour is not None:
            return address.sixtofour
    return address


def _is_never(address: IPv4Address | IPv6Address) -> bool:
    """Link-local is where clouds serve the credentials of a machine."""
    return (
        address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or (isinstance(address, IPv6Address) and address.teredo is not None)
    )
