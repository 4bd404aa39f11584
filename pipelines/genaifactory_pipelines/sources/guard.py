"""Which addresses a page may come from: a URL, or a redirect, must not reach what only this machine can reach."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port -> addresses. Raises OSError."""

_NAT64 = IPv6Network("64:ff9b::/96")
_PUBLIC = IPv6Network("2000::/3")
"""The only part of IPv6 that is given to the internet: https://www.iana.org/assignments/ipv6-address-space."""
_NEVER = tuple(
    map(
        ip_network,
        (
            "fd00:ec2::/32",  # AWS: credentials
            "100.100.100.200/32",  # Alibaba Cloud: credentials
            "168.63.129.16/32",  # Azure: its agent
            "192.0.0.192/32",  # Oracle Cloud: credentials
            "64:ff9b:1::/48",  # IPv4 by a translator of one's own network, RFC 8215
            "::ffff:0:0:0/96",  # IPv4 by a translator, RFC 2765
            "::/96",  # IPv4-compatible, RFC 4291
        ),
    )
)


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
        if not private and not _is_public(address):
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


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    return address.is_global and (isinstance(address, IPv4Address) or address in _PUBLIC)


def _is_never(address: IPv4Address | IPv6Address) -> bool:
    """Where clouds serve the credentials of a machine, and IPv6 forms of IPv4 that would lead there."""
    if address.is_loopback:
        return False
    return (
        address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or (isinstance(address, IPv6Address) and address.teredo is not None)
        or any(address in network for network in _NEVER)
    )
