"""Limits on calls of a failing backend: a retry budget and a circuit breaker."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from genaifactory_common import specs

Clock = Callable[[], float]
"""Monotonic seconds, as from time.monotonic."""


class RetryBudget:
    """Bounds retries to a share of requests, so that they do not multiply load in an outage (as Finagle and gRPC do).

    Every request deposits `ratio`, every retry withdraws 1. The balance starts at `reserve`, so that retries are
    possible from the start, and is at most that, so that a quiet hour does not allow a retry storm.
    """

    def __init__(self, *, ratio: float = 0.2, reserve: float = 10.0) -> None:
        self._ratio = ratio
        self._reserve = reserve
        self._balance = reserve

    def deposit(self) -> None:
        """Adds a request's share."""
        self._balance = min(self._reserve, self._balance + self._ratio)

    def withdraw(self) -> bool:
        """Whether a retry may begin; withdraws it if so."""
        # Ten deposits of 0.2 add up to slightly less than 2 in binary.
        if self._balance < 1.0 - 1e-9:
            return False
        self._balance -= 1.0
        return True


class BreakerState(IntEnum):
    """The value of the state's metric."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class CircuitBreaker:
    """Refuses calls of a backend after failures in a row; later admits one trial call, whose outcome decides."""

    def __init__(
        self, spec: specs.CircuitBreaker, clock: Clock, on_change: Callable[[BreakerState], None] = lambda _: None
    ) -> None:
        self._spec = spec
        self._clock = clock
        self._on_change = on_change
        self._failures = 0
        self._open_until = 0.0
        self._trial: Permit | None = None
        self._state = BreakerState.CLOSED

    @property
    def state(self) -> BreakerState:
        """The state after the last call."""
        return self._state

    def admit(self) -> Permit | None:
        """A permit for one call; None while the circuit is open. The call's outcome must be reported to the permit."""
        if self._state is BreakerState.CLOSED:
            return Permit(self)
        if self._trial is not None or self._clock() < self._open_until:
            return None
        self._trial = Permit(self)
        self._enter(BreakerState.HALF_OPEN)
        return self._trial

    def retry_after_seconds(self) -> float:
        """Seconds until a trial call may begin; 0 when one may now."""
        return 0.0 if self._state is BreakerState.CLOSED else max(0.0, self._open_until - self._clock())

    def _ended(self, permit: Permit, healthy: bool | None) -> None:
        if permit is self._trial:
            self._trial = None
            if healthy:
                self._failures = 0
                self._enter(BreakerState.CLOSED)
            elif healthy is False:
                self._open()
            return
        if self._state is not BreakerState.CLOSED:
            return  # of a call that began before the circuit opened
        if healthy:
            self._failures = 0
        elif healthy is False:
            self._failures += 1
            if self._failures >= self._spec.failures:
                self._open()

    def _open(self) -> None:
        self._open_until = self._clock() + self._spec.open_seconds
        self._enter(BreakerState.OPEN)

    def _enter(self, state: BreakerState) -> None:
        if state is not self._state:
            self._state = state
            self._on_change(state)


class Permit:
    """A permit for one call. Its outcome is to be reported once; further reports are ignored."""

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._breaker: CircuitBreaker | None = breaker

    def succeeded(self) -> None:
        """Reports that the backend works."""
        self._end(True)

    def failed(self) -> None:
        """Reports that the backend does not work."""
        self._end(False)

    def abandoned(self) -> None:
        """Reports that the call ended without an indication of the backend's health."""
        self._end(None)

    def _end(self, healthy: bool | None) -> None:
        if self._breaker is not None:
            breaker, self._breaker = self._breaker, None
            breaker._ended(self, healthy)
