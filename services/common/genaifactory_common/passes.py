"""Callers' tokens in call metadata: one for each service that the called method leads to.

    identity.set_current(caller, Issued(Fixed(signer)).of(caller), request_id)    # the gateway: signed when needed
    identity.set_current(caller, Received(metadata), request_id)                 # a service: received with its call

The key of the call's own token is CONTEXT, of a token that the called service may pass on CONTEXT-package.service.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import cache

from genaifactory_common import identity, rpcs
from genaifactory_common.followed import Followed
from genaifactory_common.tokens import LIFETIME_SECONDS, Signer

CONTEXT = "x-genaifactory-context"
REQUEST_ID = "x-genaifactory-request-id"
LONGEST_SECONDS = 3720.0
"""Longest lifetime of a token: a route's longest time, and the time for which a token is reused."""
# A token is signed for at least this much longer than its request needs, so that later requests can reuse it.
_REUSE_SECONDS = 60.0
_ISSUED = 4096

Metadata = tuple[tuple[str, str], ...]


class Issued:
    """Signs tokens when a call needs them, and reuses them while they are valid."""

    def __init__(self, signer: Followed[Signer], *, longest_seconds: float = LONGEST_SECONDS) -> None:
        """longest_seconds: longest lifetime of a token, also for a request with a later deadline."""
        self._signer = signer
        self._longest_seconds = longest_seconds
        self._issued: OrderedDict[tuple[identity.Caller, str, float], tuple[Signer, float, Metadata]] = OrderedDict()

    def of(self, caller: identity.Caller) -> identity.Passes:
        """The right to call every service on behalf of `caller`."""
        return _OfCaller(self, caller)

    def metadata(self, caller: identity.Caller, method: str, within_seconds: float) -> Metadata:
        """The tokens for a call of "/package.Service/Method" that may last so long."""
        minutes = math.ceil((within_seconds + _REUSE_SECONDS) / 60)
        lifetime = min(max(LIFETIME_SECONDS, minutes * 60.0), self._longest_seconds)
        signer, now = self._signer.current, time.time()
        key = (caller, method, lifetime)
        known = self._issued.get(key)
        if known is not None and known[0] is signer and now + min(within_seconds, lifetime - _REUSE_SECONDS) < known[1]:
            return known[2]
        signed = _signed(signer, caller, method, lifetime)
        self._issued[key] = (signer, now + lifetime, signed)
        self._issued.move_to_end(key)
        if len(self._issued) > _ISSUED:
            self._issued.popitem(last=False)
        return signed


class _OfCaller:
    def __init__(self, issued: Issued, caller: identity.Caller) -> None:
        self._issued = issued
        self._caller = caller

    def metadata(self, method: str, within_seconds: float) -> Metadata:
        return self._issued.metadata(self._caller, method, within_seconds)


class Received:
    """The tokens that came with a call, each to be sent to the service that it is for."""

    def __init__(self, by_key: Mapping[str, str]) -> None:
        """by_key: the call's metadata whose keys begin with CONTEXT."""
        self._by_key = by_key

    def metadata(self, method: str, within_seconds: float) -> Iterable[tuple[str, str]]:
        """The tokens, of those that came, for the method and for what it leads to."""
        if (token := self._by_key.get(passed_on(rpcs.service(method)))) is not None:
            yield CONTEXT, token
        for service in rpcs.granted(method):
            if (token := self._by_key.get(key := passed_on(service))) is not None:
                yield key, token


def _signed(signer: Signer, caller: identity.Caller, method: str, lifetime: float) -> Metadata:
    if rpcs.facts(method).peer:
        return ()

    def token(service: str, methods: Iterable[str]) -> str:
        names = [each.rpartition("/")[2] for each in methods]
        return signer.sign(caller, service, names, lifetime_seconds=lifetime)

    others = ((passed_on(service), token(service, methods)) for service, methods in rpcs.granted(method).items())
    return (CONTEXT, token(rpcs.service(method), [method])), *others


@cache
def passed_on(service: str) -> str:
    """The key of a token that the called service sends to "package.Service"."""
    return f"{CONTEXT}-{service.lower()}"
